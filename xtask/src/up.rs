//! `cargo xtask up`: from a fresh clone to a cluster whose demo workload answers through eBPF.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::build::{programs, run};
use crate::image;

pub(crate) fn up() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("`cargo xtask up` sets up namespaces, cgroups and eBPF programs and needs root");
    }
    let begin = Instant::now();
    let programs = programs()?;
    let images = image::write(&programs)?;
    println!("==> built in {:.1} s", begin.elapsed().as_secs_f64());
    let mut demo = Command::new(programs.join("pith-bench"));
    demo.arg("--pith").arg(programs.join("pith")).arg("--images").arg(images).arg("demo");
    run(&mut demo)
}

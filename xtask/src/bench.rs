//! `cargo xtask bench`: builds everything and hands over to `pith-bench`, which measures.

use std::process::Command;

use anyhow::Result;

use crate::build::{programs, run};
use crate::image;

pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    let programs = programs()?;
    let images = image::write(&programs)?;
    let mut bench = Command::new(programs.join("pith-bench"));
    bench.arg("--pith").arg(programs.join("pith")).arg("--images").arg(images).args(arguments);
    run(&mut bench)
}

//! The chapters of docs/internals: their commands are run as they stand, so that they stay true.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Test;
use crate::bundle::Bundle;

pub(crate) const TESTS: &[Test] = &[("chapter_container", || chapter("container.md"))];

fn chapter(name: &str) {
    let busybox = Command::new("sh").args(["-c", "command -v busybox"]).output().expect("sh");
    if !busybox.status.success() {
        eprintln!("SKIPPED: chapter {name}: there is no busybox (apt-get install busybox-static)");
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/internals").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let script: String = text.split("```sh\n").skip(1).filter_map(|part| part.split("```").next()).collect();
    let bundle = Bundle::new("chapter");
    let folder = bundle.path("folder");
    std::fs::create_dir_all(&folder).expect("mkdir");
    let programs = PathBuf::from(crate::bundle::program());
    let programs = programs.parent().expect("it stands in a folder").display().to_string();
    let mut shell = Command::new("sh");
    shell.args(["-eu", "-c", &script]).current_dir(&folder);
    shell.env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap_or_default()));
    let outcome = bundle.finish(shell);
    // Whatever a command that failed left behind.
    let mut clean = Command::new(crate::bundle::program());
    clean.args(["--root", "state", "delete", "--force", "box"]).current_dir(&folder);
    bundle.finish(clean).ok();
    assert_eq!(outcome.code, 0, "{name}: {outcome:?}");
}

//! Where the programs under test are, whether this machine lets them run, and how to wait for an outcome.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Why end-to-end tests cannot run here; `None` when they can. Callers print it as a loud skip.
pub fn missing_right() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root for namespaces, cgroups and eBPF".to_owned());
    }
    let program = bin_dir().join("pith");
    (!program.exists()).then(|| format!("{} is not built: run `cargo xtask test`", program.display()))
}

/// The folder of `pith` and `pith-podd`: given by `cargo xtask test`, else where cargo puts them.
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("PITH_BIN_DIR") {
        return PathBuf::from(dir);
    }
    // A test binary is target/<triple>/<profile>/deps/name-hash.
    let exe = std::env::current_exe().expect("a running test knows its own file");
    exe.ancestors().nth(2).expect("cargo's layout has a profile folder").to_owned()
}

/// The executable of another crate's test, which is static like everything and so runs anywhere.
///
/// # Errors
/// `cargo xtask test` has not built it.
pub fn test_program(name: &str) -> Result<PathBuf> {
    let folder = bin_dir().join("deps");
    let list = || format!("list {}", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(list)? {
        let entry = entry.with_context(list)?;
        let file = entry.file_name().to_string_lossy().into_owned();
        // NAME-HASH; beside it stands NAME-HASH.d, and those of earlier builds with other features.
        if file.rsplit_once('-').is_some_and(|(stem, hash)| stem == name && !hash.contains('.')) {
            let built = entry.metadata().and_then(|metadata| metadata.modified()).with_context(list)?;
            found.push((built, entry.path()));
        }
    }
    let newest = found.into_iter().max().map(|(_, path)| path);
    newest.with_context(|| format!("{} holds no {name}: run `cargo xtask test`", folder.display()))
}

/// Where `cargo xtask image` writes the demo and probe images.
pub fn images_dir() -> PathBuf {
    folder("PITH_IMAGES_DIR", "target/images")
}

/// Where `cargo xtask test` puts the programs of others.
pub fn tools_dir() -> PathBuf {
    folder("PITH_TOOLS_DIR", "target/tools")
}

pub(crate) fn folder(variable: &str, below_root: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(below_root),
    }
}

/// Tries `attempt` until it succeeds. For things that nothing announces, such as a port that begins to answer.
///
/// # Panics
/// With the last reason when `deadline` is over.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut attempt: impl FnMut() -> std::result::Result<T, String>,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(reason) if Instant::now() >= end => panic!("{what}: not within {deadline:?}: {reason}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

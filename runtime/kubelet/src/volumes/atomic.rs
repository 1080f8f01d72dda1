//! Files from the API, replaced all at once: a container sees either the old set or the new one.
//!
//! ```text
//! <dir>/ca.crt  → ..data/ca.crt          one link for each first path component
//! <dir>/..data  → ..2026-01-02…-1        renamed over, which is what makes the change atomic
//! <dir>/..2026-01-02…-1/ca.crt           the files
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
};

use jiff::Timestamp;

/// The content of one file and its permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) content: Vec<u8>,
    pub(crate) mode: u32,
}

/// Files by their path relative to the volume.
pub(crate) type Payload = BTreeMap<PathBuf, File>;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// The path is one that may be written below a volume: relative, without `..`, not one of our own names.
pub(crate) fn is_safe(path: &Path) -> bool {
    let mut components = path.components();
    let first = components.clone().next();
    let own = matches!(first, Some(Component::Normal(n)) if n.as_encoded_bytes().starts_with(b".."));
    first.is_some() && !own && components.all(|c| matches!(c, Component::Normal(_)))
}

/// Makes `dir` show exactly `payload`. Does nothing when it does already.
pub(crate) fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    if shows(dir, payload)? {
        return Ok(false);
    }
    let old = fs::read_link(dir.join(DATA)).ok();
    let name = fresh_name(dir);
    let fresh = dir.join(&name);
    fs::DirBuilder::new().mode(0o755).create(&fresh)?;
    own(&fresh, group, 0o755)?;
    for (path, file) in payload {
        write_file(&fresh, path, file, group)?;
    }
    let staged = dir.join(DATA_NEW);
    remove_if_there(fs::remove_file(&staged))?;
    symlink(&name, &staged)?;
    fs::rename(&staged, dir.join(DATA))?;
    link_first_components(dir, payload)?;
    if let Some(old) = old {
        remove_if_there(fs::remove_dir_all(dir.join(old)))?;
    }
    own(dir, group, 0o755)?;
    Ok(true)
}

fn fresh_name(dir: &Path) -> PathBuf {
    let stem = Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.%N").to_string();
    (0..)
        .map(|n| PathBuf::from(format!("{stem}-{n}")))
        .find(|n| !dir.join(n).exists())
        .expect("the numbers do not end")
}

fn write_file(root: &Path, path: &Path, file: &File, group: Option<u32>) -> io::Result<()> {
    let target = root.join(path);
    if let Some(parent) = target.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
    io::Write::write_all(&mut out, &file.content)?;
    own(&target, group, file.mode)
}

/// Sets owner and permission bits; a group of the pod may read whatever its owner may.
fn own(path: &Path, group: Option<u32>, mode: u32) -> io::Result<()> {
    let mode = match group {
        Some(gid) => {
            std::os::unix::fs::chown(path, None, Some(gid))?;
            mode | ((mode & 0o500) >> 3)
        }
        None => mode,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn first_components(payload: &Payload) -> BTreeSet<&std::ffi::OsStr> {
    payload.keys().filter_map(|p| p.iter().next()).collect()
}

fn link_first_components(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted = first_components(payload);
    for name in &wanted {
        match symlink(Path::new(DATA).join(name), dir.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().starts_with(b"..") && !wanted.contains(name.as_os_str()) {
            remove_if_there(fs::remove_file(dir.join(name)))?;
        }
    }
    Ok(())
}

fn shows(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let data = dir.join(DATA);
    if !data.exists() {
        return Ok(false);
    }
    let mut files = 0;
    count(&data, &mut files)?;
    if files != payload.len() {
        return Ok(false);
    }
    for (path, file) in payload {
        match fs::read(data.join(path)) {
            Ok(content) if content == file.content => {}
            Ok(_) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

fn count(dir: &Path, files: &mut usize) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count(&entry.path(), files)?;
        } else {
            *files += 1;
        }
    }
    Ok(())
}

fn remove_if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |c: &str| File { content: c.as_bytes().to_vec(), mode: 0o640 };
        files.iter().map(|(p, c)| (PathBuf::from(p), file(c))).collect()
    }

    #[test]
    fn replaces_all_at_once() {
        let temp = tempfile::tempdir().expect("temporary folder");
        let dir = temp.path().join("v");
        assert!(write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).expect("writes"));
        assert_eq!(fs::read_to_string(dir.join("sub/b")).expect("reads"), "2");
        assert_eq!(fs::metadata(dir.join("a")).expect("stat").permissions().mode() & 0o777, 0o640);
        assert!(!write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).expect("same"));
        assert!(write(&dir, &payload(&[("a", "3")]), None).expect("writes"));
        assert_eq!(fs::read_to_string(dir.join("a")).expect("reads"), "3");
        assert!(!dir.join("sub").exists(), "what is no longer there is gone");
        let own = fs::read_dir(&dir).expect("lists").count();
        assert_eq!(own, 3, "one link, ..data and one generation");
    }

    #[test]
    fn paths_that_leave_are_refused() {
        for bad in ["", "/a", "../a", "a/../b", "..data", "..x/a"] {
            assert!(!is_safe(Path::new(bad)), "{bad}");
        }
        for good in ["a", "a/b", ".hidden", "a..b"] {
            assert!(is_safe(Path::new(good)), "{good}");
        }
    }
}

//! Where a container of `pith run` keeps its files, and how one that was killed is cleaned up after.
//!
//! ```text
//! DIR/run/lock            held while one of the folders below is made or swept
//! DIR/run/roots/<id>      upper, work, root: locked by its `pith run` for as long as that lives
//! DIR/run/state/<id>      what pith-oci knows about it: `pith-oci --root DIR/run/state list`
//! ```
//!
//! The kernel gives a lock up with the process that holds it, so a folder in `roots` that can be locked is nobody's.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pith_container::compile::Overlay;
use pith_image::{Image, Store};
use pith_oci::witness::Witness;

/// Longest name, so that everything that carries it stays a valid file name.
const ID_MAX: usize = 64;

/// A container's name: part of paths of cgroups and files.
pub(super) fn id(text: &str) -> Result<String, String> {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if first && rest && text.len() <= ID_MAX {
        return Ok(text.to_owned());
    }
    Err(format!("a name is up to {ID_MAX} letters, digits, dashes, dots and underscores, the first no sign"))
}

pub(super) struct Places {
    dir: PathBuf,
    states: PathBuf,
}

/// One container's files, locked.
pub(super) struct Place {
    pub(super) id: String,
    pub(super) dir: PathBuf,
    _lock: File,
}

impl Places {
    pub(super) fn open(dir: &Path) -> Result<Places> {
        let dir = dir.join("run");
        let places = Places { states: dir.join("state"), dir };
        for dir in [places.dir.clone(), places.dir.join("roots"), places.states.clone()] {
            // 700: it holds other people's set-user-ID programs.
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.with_context(|| format!("create {}", dir.display()))?;
        }
        Ok(places)
    }

    /// The folder of pith-oci's state.
    pub(super) fn states(&self) -> &Path {
        &self.states
    }

    /// Removes what is left of containers whose `pith run` was killed.
    pub(super) fn sweep(&self, store: &Store, witness: &dyn Witness) -> Result<()> {
        let _lock = self.lock()?;
        let roots = self.dir.join("roots");
        for entry in fs::read_dir(&roots).with_context(|| format!("read {}", roots.display()))? {
            let dir = entry.with_context(|| format!("read {}", roots.display()))?.path();
            let Some(id) = dir.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
                continue;
            };
            let Some(lock) = try_lock(&dir)? else { continue };
            pith_oci::remove_container(&self.states, &id, witness)
                .with_context(|| format!("clean up after {id}, whose `pith run` was killed"))?;
            store.release(&id)?;
            Place { id, dir, _lock: lock }.remove()?;
        }
        Ok(())
    }

    pub(super) fn make(&self, id: Option<&str>) -> Result<Place> {
        let _lock = self.lock()?;
        let id = id.map_or_else(|| format!("run-{}", std::process::id()), str::to_owned);
        let dir = self.dir.join("roots").join(&id);
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!("{id} is running already"),
            made => made.with_context(|| format!("create {}", dir.display()))?,
        }
        let lock = try_lock(&dir)?.with_context(|| format!("lock {}: somebody else did", dir.display()))?;
        for name in ["upper", "work", "root"] {
            let path = dir.join(name);
            // 755: the upper layer's own mode is the mode of the container's root.
            let made = fs::DirBuilder::new().mode(0o755).create(&path);
            made.with_context(|| format!("create {}", path.display()))?;
        }
        Ok(Place { id, dir, _lock: lock })
    }

    fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        file.lock().with_context(|| format!("lock {}", path.display()))?;
        Ok(file)
    }
}

/// Locks a folder, unless somebody has.
fn try_lock(dir: &Path) -> Result<Option<File>> {
    let file = match File::open(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(|| format!("open {}", dir.display()))?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", dir.display())),
    }
}

impl Place {
    /// Where the root is mounted, in the container's mount namespace alone.
    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The image's layers with a folder on top that takes the changes.
    pub(super) fn overlay(&self, image: &Image) -> Overlay {
        let upper = Some((self.dir.join("upper"), self.dir.join("work")));
        Overlay { lower: image.lowerdirs(), upper }
    }

    /// The image's files once more, in place of an overlay of them.
    pub(super) fn copy(&self, image: &Image) -> Result<()> {
        Ok(image.copy_to(&self.root())?)
    }

    pub(super) fn remove(self) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            open_up(&self.dir);
        }
        fs::remove_dir_all(&self.dir).with_context(|| format!("remove {}", self.dir.display()))
    }
}

/// Folders that their owner may not look into: overlayfs makes one in `work`, and a program whatever it likes. What
/// cannot be opened is said by whoever removes it.
fn open_up(dir: &Path) {
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_table() {
        for (text, good) in [
            ("web", true),
            ("a.b-c_1", true),
            ("", false),
            ("-a", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
        ] {
            assert_eq!(id(text).is_ok(), good, "{text:?}");
        }
        assert!(id(&"x".repeat(ID_MAX + 1)).is_err());
    }

    #[test]
    fn a_folder_is_nobodys_once_its_lock_is_gone() {
        let dir = tempfile::tempdir().expect("a folder");
        let places = Places::open(dir.path()).expect("made");
        let store = Store::open(dir.path().join("images")).expect("a store");
        let witness = super::super::Explain::new(None);
        let place = places.make(Some("a")).expect("made");
        assert!(places.make(Some("a")).is_err(), "it is there already");
        places.sweep(&store, &witness).expect("swept");
        assert!(place.dir.is_dir(), "it is in use");
        let path = place.dir.clone();
        drop(place);
        places.sweep(&store, &witness).expect("swept");
        assert!(!path.exists(), "nobody uses it");
    }
}

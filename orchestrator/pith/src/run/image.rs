//! Which image is meant: a path to an archive, one in the store, or one in a registry.

use std::path::Path;

use anyhow::{Context, Result, bail};
use pith_image::{Error, Image, Reference, Store};

use crate::image;

pub(super) fn find(dir: &Path, text: &str) -> Result<(Store, Image)> {
    let dir = dir.join("images");
    // A word that cannot be an image makes no store.
    if is_path(text) {
        let file = Path::new(text);
        image::check(file)?;
        let store = Store::open(dir)?;
        let image = from_archive(&store, file)?;
        return Ok((store, image));
    }
    // Ids and beginnings of ids look like references, too.
    let reference = text.parse()?;
    let store = Store::open(dir)?;
    let image = by_name(&store, text, &reference)?;
    Ok((store, image))
}

/// No reference starts like a path.
fn is_path(text: &str) -> bool {
    text.starts_with(['/', '.'])
}

fn from_archive(store: &Store, file: &Path) -> Result<Image> {
    let mut images = image::import(store, file)?;
    match (images.pop(), images.len()) {
        (Some(image), 0) => Ok(image),
        (None, _) => bail!("{} holds no image", file.display()),
        (Some(_), others) => {
            bail!("{} holds {} images: import it, and run one of them by name", file.display(), others + 1)
        }
    }
}

fn by_name(store: &Store, text: &str, reference: &Reference) -> Result<Image> {
    match store.resolve(text) {
        Err(Error::NotFound { .. }) => {}
        found => return Ok(found?),
    }
    image::pull(store, reference).with_context(|| {
        let hint =
            if Path::new(text).exists() { format!(" (the file here is ./{text})") } else { String::new() };
        format!("{text} is not in {}{hint}, and to pull it failed", store.dir().display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_table() {
        for (text, path) in [
            ("./demo.tar", true),
            ("../demo.tar", true),
            ("/tmp/demo.tar", true),
            ("demo.tar", false),
            ("nginx", false),
            ("quay.io/a/b:c", false),
        ] {
            assert_eq!(is_path(text), path, "{text}");
        }
    }
}

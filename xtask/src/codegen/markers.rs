//! Reads the `+listType` family of markers from the comments of k8s-pb's sources: Go tags do not carry them.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

/// Markers of one field, or of a type when the field is empty, in the words of the schema table.
pub(super) struct Markers(BTreeMap<(String, String, String), String>);

impl Markers {
    /// Reads every `mod.rs` under k8s-pb's `src`.
    pub(super) fn read(source: &Path) -> Result<Self> {
        let mut found = BTreeMap::new();
        let mut folders = vec![source.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.file_name().is_some_and(|n| n == "mod.rs") {
                    let package = folder.strip_prefix(source)?.to_string_lossy().into_owned();
                    scan(&package, &fs::read_to_string(&path)?, &mut found);
                }
            }
        }
        Ok(Self(found))
    }

    /// `package` is a path such as `api/core/v1`; an empty `field` asks for the type's own markers.
    pub(super) fn get(&self, package: &str, ty: &str, field: &str) -> Option<&str> {
        let key = (package.to_owned(), ty.to_lowercase(), field.to_lowercase());
        self.0.get(&key).map(String::as_str)
    }
}

fn scan(package: &str, text: &str, found: &mut BTreeMap<(String, String, String), String>) {
    let (mut ty, mut kind, mut keys) = (String::new(), None, Vec::new());
    for line in text.lines().map(str::trim) {
        if let Some(marker) = line.strip_prefix("/// +") {
            let (name, value) = marker.split_once('=').unwrap_or((marker, ""));
            match name {
                "listType" => kind = Some(format!("list:{value}")),
                "mapType" | "structType" => kind = Some(format!("map:{value}")),
                "listMapKey" => keys.push(value.to_owned()),
                _ => {}
            }
        } else if let Some(rest) = line.strip_prefix("pub ") {
            let word = |s: &str| {
                s.split([' ', ':', '{']).next().unwrap_or_default().replace(['_', '#'], "").to_lowercase()
            };
            let field = if let Some(name) = rest.strip_prefix("struct ") {
                ty = word(name);
                String::new()
            } else {
                word(rest.strip_prefix("r#").unwrap_or(rest))
            };
            if let Some(mut text) = kind.take() {
                if text == "list:map" {
                    text = format!("list:map:{}", keys.join(","));
                }
                found.insert((package.to_owned(), ty.clone(), field), text);
            }
            keys.clear();
        }
    }
}

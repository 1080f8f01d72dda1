//! Reads k8s-pb's sources: the `+listType` family of markers in its comments, which Go's tags do not carry, and
//! its protobuf tags, to compare.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

/// Package, type and field, the latter two in lower case; an empty field is the type itself.
type Place = (String, String, String);

/// What k8s-pb says about types and fields.
#[derive(Default)]
pub(super) struct Markers {
    /// List and map types in the words of the schema table.
    kinds: BTreeMap<Place, String>,
    tags: BTreeMap<Place, String>,
}

impl Markers {
    /// Reads every `mod.rs` under k8s-pb's `src`.
    pub(super) fn read(source: &Path) -> Result<Self> {
        let mut found = Self::default();
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
        Ok(found)
    }

    /// `package` is a path such as `api/core/v1`; an empty `field` asks for the type's own markers.
    pub(super) fn get(&self, package: &str, ty: &str, field: &str) -> Option<&str> {
        self.kinds.get(&place(package, ty, field)).map(String::as_str)
    }

    /// The protobuf tag of a field.
    pub(super) fn tag(&self, package: &str, ty: &str, field: &str) -> Option<&str> {
        self.tags.get(&place(package, ty, field)).map(String::as_str)
    }
}

fn place(package: &str, ty: &str, field: &str) -> Place {
    (package.to_owned(), ty.to_lowercase(), field.to_lowercase())
}

fn scan(package: &str, text: &str, found: &mut Markers) {
    let (mut ty, mut kind, mut keys, mut tag) = (String::new(), None, Vec::new(), None);
    for line in text.lines().map(str::trim) {
        if let Some(marker) = line.strip_prefix("/// +") {
            let (name, value) = marker.split_once('=').unwrap_or((marker, ""));
            match name {
                "listType" => kind = Some(format!("list:{value}")),
                "mapType" | "structType" => kind = Some(format!("map:{value}")),
                "listMapKey" => keys.push(value.to_owned()),
                _ => {}
            }
        } else if line.starts_with("#[prost(") {
            tag = line.split("tag = \"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned);
        } else if let Some(rest) = line.strip_prefix("pub ") {
            let field = match rest.strip_prefix("struct ") {
                Some(name) => {
                    ty = word(name);
                    String::new()
                }
                None => word(rest.strip_prefix("r#").unwrap_or(rest)),
            };
            let place = place(package, &ty, &field);
            if let Some(mut text) = kind.take() {
                if text == "list:map" {
                    text = format!("list:map:{}", keys.join(","));
                }
                found.kinds.insert(place.clone(), text);
            }
            if let Some(tag) = tag.take() {
                found.tags.insert(place, tag);
            }
            keys.clear();
        }
    }
}

/// The identifier at the start, without the underscores that Rust's naming put in.
fn word(text: &str) -> String {
    text.split([' ', ':', '{']).next().unwrap_or_default().replace('_', "").to_lowercase()
}

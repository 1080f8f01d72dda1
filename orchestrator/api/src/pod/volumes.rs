//! Volumes of a pod.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    containers,
    validate::{maybe_one_of, name},
};
use crate::{
    field::{FieldError, Path},
    names,
    object::{has, list, text},
    quantity::Quantity,
};

const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const DOWNWARD_PATHS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Complains, and returns the names that mounts may use.
pub(super) fn validate<'a>(
    volumes: &'a Value,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) -> HashSet<&'a str> {
    let mut seen = HashSet::new();
    for (i, volume) in list(volumes).iter().enumerate() {
        let path = path.index(i);
        let volume_name = text(&volume["name"]);
        if volume_name.is_empty() {
            errors.push(FieldError::required(path.child("name"), ""));
        } else {
            name(&volume["name"], names::label, &path.child("name"), errors);
            if !seen.insert(volume_name) {
                errors.push(FieldError::duplicate(path.child("name"), &volume["name"]));
            }
        }
        source(volume, &path, errors);
    }
    seen
}

fn source(volume: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let sources: Vec<&str> =
        volume.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).filter(|k| *k != "name").collect();
    if sources.is_empty() {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
    for extra in sources.iter().skip(1) {
        errors.push(FieldError::forbidden(path.child(extra), "may not specify more than 1 volume type"));
    }
    let Some(kind) = sources.first() else { return };
    let (source, path) = (&volume[*kind], path.child(kind));
    match *kind {
        "emptyDir" if text(&source["sizeLimit"]).parse().is_ok_and(|q: Quantity| q.is_negative()) => {
            errors.push(FieldError::forbidden(
                path.child("sizeLimit"),
                "SizeLimit field must be a valid resource quantity",
            ));
        }
        "hostPath" => {
            if text(&source["path"]).is_empty() {
                errors.push(FieldError::required(path.child("path"), ""));
            } else {
                backsteps(&source["path"], &path.child("path"), errors);
            }
            maybe_one_of(&source["type"], HOST_PATH_TYPES, &path.child("type"), errors);
        }
        "secret" => keyed(source, "secretName", &path, errors),
        "configMap" => keyed(source, "name", &path, errors),
        "downwardAPI" => {
            mode(&source["defaultMode"], &path.child("defaultMode"), errors);
            downward(source, &path, errors);
        }
        "projected" => projected(source, &path, errors),
        "nfs" => {
            for field in ["server", "path"] {
                if text(&source[field]).is_empty() {
                    errors.push(FieldError::required(path.child(field), ""));
                }
            }
        }
        "persistentVolumeClaim" if text(&source["claimName"]).is_empty() => {
            errors.push(FieldError::required(path.child("claimName"), ""));
        }
        "image" if text(&source["reference"]).is_empty() => {
            errors.push(FieldError::required(path.child("reference"), ""));
        }
        "csi" if text(&source["driver"]).is_empty() => {
            errors.push(FieldError::required(path.child("driver"), ""));
        }
        // Storage that no replica of pith can mount: the kubelet says so in an event, as for any driver that is missing.
        _ => {}
    }
}

/// A Secret's or ConfigMap's content as files.
fn keyed(source: &Value, name_field: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if text(&source[name_field]).is_empty() {
        errors.push(FieldError::required(path.child(name_field), ""));
    }
    mode(&source["defaultMode"], &path.child("defaultMode"), errors);
    items(source, path, errors);
}

fn items(source: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for (i, item) in list(&source["items"]).iter().enumerate() {
        let items = path.child("items");
        let place = items.index(i);
        if text(&item["key"]).is_empty() {
            errors.push(FieldError::required(place.child("key"), ""));
        }
        if text(&item["path"]).is_empty() {
            errors.push(FieldError::required(place.child("path"), ""));
        } else {
            local_non_reserved(&item["path"], &place.child("path"), errors);
        }
        mode(&item["mode"], &place.child("mode"), errors);
    }
}

fn downward(source: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for (i, item) in list(&source["items"]).iter().enumerate() {
        let place = path.index(i);
        if text(&item["path"]).is_empty() {
            errors.push(FieldError::required(place.child("path"), ""));
        } else {
            local_non_reserved(&item["path"], &place.child("path"), errors);
        }
        match (has(item, "fieldRef"), has(item, "resourceFieldRef")) {
            (true, true) => errors.push(FieldError::invalid(
                place,
                item,
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            )),
            (true, false) => {
                containers::field_ref(&item["fieldRef"], DOWNWARD_PATHS, &place.child("fieldRef"), errors)
            }
            (false, true) => {
                let place = place.child("resourceFieldRef");
                if text(&item["resourceFieldRef"]["containerName"]).is_empty() {
                    errors.push(FieldError::required(place.child("containerName"), ""));
                }
                containers::resource_ref(&item["resourceFieldRef"], &place, errors);
            }
            (false, false) => {
                errors.push(FieldError::required(place, "one of fieldRef and resourceFieldRef is required"))
            }
        }
        mode(&item["mode"], &place.child("mode"), errors);
    }
}

fn projected(source: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    mode(&source["defaultMode"], &path.child("defaultMode"), errors);
    let path = path.child("sources");
    for (i, part) in list(&source["sources"]).iter().enumerate() {
        let place = path.index(i);
        let kinds = part.as_object().map_or(0, serde_json::Map::len);
        if kinds == 0 {
            errors.push(FieldError::required(place, "must specify a volume type"));
        } else if kinds > 1 {
            errors.push(FieldError::forbidden(place, "may not specify more than 1 volume type"));
        }
        for kind in ["secret", "configMap"] {
            if has(part, kind) {
                if text(&part[kind]["name"]).is_empty() {
                    errors.push(FieldError::required(place.child(kind).child("name"), ""));
                }
                items(&part[kind], &place.child(kind), errors);
            }
        }
        if has(part, "downwardAPI") {
            downward(&part["downwardAPI"], &place.child("downwardAPI"), errors);
        }
        if has(part, "serviceAccountToken") {
            let (token, place) = (&part["serviceAccountToken"], place.child("serviceAccountToken"));
            if token["expirationSeconds"].as_i64().is_some_and(|s| s < 600) {
                let detail = "may not specify a duration less than 10 minutes";
                errors.push(FieldError::invalid(
                    place.child("expirationSeconds"),
                    &token["expirationSeconds"],
                    detail,
                ));
            }
            if text(&token["path"]).is_empty() {
                errors.push(FieldError::required(place.child("path"), ""));
            }
        }
    }
}

fn mode(value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if value.as_i64().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        errors.push(FieldError::invalid(
            path,
            value,
            "must be a number between 0 and 0777 (octal), both inclusive",
        ));
    }
}

fn backsteps(value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if text(value).split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
}

/// A path that stays where it starts.
pub(super) fn local_path(value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if text(value).starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    backsteps(value, path, errors);
}

/// As [`local_path`]; names that start with two dots are the kubelet's own.
fn local_non_reserved(value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    local_path(value, path, errors);
    if text(value).starts_with("..") && !text(value).starts_with("../") && text(value) != ".." {
        errors.push(FieldError::invalid(path, value, "must not start with '..'"));
    }
}

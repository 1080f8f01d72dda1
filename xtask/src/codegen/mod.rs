//! `cargo xtask codegen --kubectl F`: writes `orchestrator/api/schema/types.txt`, the table of API types that
//! decoding, protobuf, patches and OpenAPI are driven by.
//!
//! A stock kubectl carries the Go description of every API type: JSON names, what is left out when empty, what
//! is a pointer, protobuf tags, patch keys. k8s-pb's comments add the list types. Nothing is typed by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use self::{
    go::{Field, GoType, Program, Shape, TypeAddr},
    markers::Markers,
};

mod go;
mod markers;

/// Where the table is kept, from the workspace's root.
const TABLE: &str = "orchestrator/api/schema/types.txt";

/// Packages whose types are taken; types they refer to come along.
const PACKAGES: &[&str] = &[
    "k8s.io/api/admission/v1",
    "k8s.io/api/admissionregistration/v1",
    "k8s.io/api/apps/v1",
    "k8s.io/api/authentication/v1",
    "k8s.io/api/authorization/v1",
    "k8s.io/api/autoscaling/v1",
    "k8s.io/api/autoscaling/v2",
    "k8s.io/api/batch/v1",
    "k8s.io/api/certificates/v1",
    "k8s.io/api/coordination/v1",
    "k8s.io/api/core/v1",
    "k8s.io/api/discovery/v1",
    "k8s.io/api/events/v1",
    "k8s.io/api/networking/v1",
    "k8s.io/api/node/v1",
    "k8s.io/api/policy/v1",
    "k8s.io/api/rbac/v1",
    "k8s.io/api/scheduling/v1",
    "k8s.io/api/storage/v1",
    "k8s.io/apimachinery/pkg/apis/meta/v1",
];

/// Types with an encoding of their own, in JSON or in protobuf.
const SPECIAL: &[(&str, &str)] = &[
    ("k8s.io/apimachinery/pkg/apis/meta/v1.Time", "time"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime", "microtime"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.Duration", "duration"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1", "raw"),
    ("k8s.io/apimachinery/pkg/api/resource.Quantity", "quantity"),
    ("k8s.io/apimachinery/pkg/util/intstr.IntOrString", "intorstring"),
    ("k8s.io/apimachinery/pkg/runtime.RawExtension", "raw"),
];

pub(crate) fn run(kubectl: &Path) -> Result<()> {
    let bytes = fs::read(kubectl).with_context(|| format!("reading {}", kubectl.display()))?;
    let program = Program::parse(bytes).with_context(|| format!("{}", kubectl.display()))?;
    let markers = Markers::read(&k8s_pb_sources()?)?;
    let table = Writer { program, markers }.table()?;
    fs::write(TABLE, table).with_context(|| format!("writing {TABLE}"))?;
    Ok(())
}

/// Cargo knows where it unpacked the k8s-pb of Cargo.lock.
fn k8s_pb_sources() -> Result<PathBuf> {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline"])
        .output()
        .context("running cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["name"] == "k8s-pb")
        .and_then(|p| p["manifest_path"].as_str())
        .context("k8s-pb is not among the dependencies")?;
    Ok(Path::new(manifest).with_file_name("src"))
}

struct Writer {
    program: Program,
    markers: Markers,
}

impl Writer {
    fn table(&self) -> Result<String> {
        let mut packages: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut waiting = Vec::new();
        for listed in self.program.listed() {
            let Shape::Pointer(target) = self.program.read(listed)?.shape else { continue };
            let ty = self.program.read(target)?;
            if matches!(ty.shape, Shape::Struct(_))
                && PACKAGES.contains(&ty.package.as_str())
                && !ty.name.contains('[')
            {
                waiting.push(target);
            }
        }
        while let Some(addr) = waiting.pop() {
            if !seen.insert(addr) {
                continue;
            }
            let ty = self.program.read(addr)?;
            let Shape::Struct(fields) = &ty.shape else { continue };
            let Some(text) = self.fields(&ty, fields, &mut waiting)? else { continue };
            packages.entry(dotted(&ty.package)).or_default().insert(ty.name, text);
        }
        let mut out = String::from(HEADER);
        for (package, types) in packages {
            writeln!(out, "package {package}")?;
            for (name, text) in types {
                writeln!(out, "{name}{text}")?;
            }
        }
        Ok(out)
    }

    /// The lines of one type, or `None` where it is no wire type (no JSON tag at all).
    fn fields(&self, ty: &GoType, fields: &[Field], waiting: &mut Vec<TypeAddr>) -> Result<Option<String>> {
        let path = ty.package.trim_start_matches("k8s.io/");
        let mut out = String::new();
        if let Some(marker) = self.markers.get(path, &ty.name, "") {
            write!(out, " {marker}")?;
        }
        if !fields.is_empty() && fields.iter().all(|f| tag(&f.tag, "json").is_none()) {
            return Ok(None);
        }
        for field in fields {
            let Some(json) = tag(&field.tag, "json") else { continue };
            let mut words = json.split(',');
            let name = words.next().unwrap_or_default();
            if name == "-" {
                continue;
            }
            let options: Vec<&str> = words.collect();
            let inline = options.contains(&"inline") || name.is_empty();
            let number = tag(&field.tag, "protobuf").and_then(|t| t.split(',').nth(1)).unwrap_or("0");
            self.check_tag(path, ty, name, number)?;
            let kind = self
                .kind(&ty.package, field.ty, waiting)
                .with_context(|| format!("{}.{}.{}", ty.package, ty.name, field.name))?;
            write!(out, "\n {} {number} {kind}", if inline { "=" } else { name })?;
            for option in options.iter().filter(|o| matches!(**o, "omitempty" | "omitzero")) {
                write!(out, " {option}")?;
            }
            if let Some(strategy) = tag(&field.tag, "patchStrategy") {
                for word in strategy.split(',') {
                    match tag(&field.tag, "patchMergeKey").filter(|_| word == "merge") {
                        Some(key) => write!(out, " merge:{key}")?,
                        None => write!(out, " {word}")?,
                    }
                }
            }
            if let Some(marker) = self.markers.get(path, &ty.name, name) {
                write!(out, " {marker}")?;
            }
        }
        Ok(Some(out))
    }

    /// k8s-pb was generated from the .proto files: two sources that have to agree.
    fn check_tag(&self, path: &str, ty: &GoType, name: &str, number: &str) -> Result<()> {
        match self.markers.tag(path, &ty.name, name) {
            Some(tag) if tag != number => {
                bail!("{path}.{}.{name} has tag {number} in kubectl, {tag} in k8s-pb", ty.name)
            }
            _ => Ok(()),
        }
    }

    fn kind(&self, package: &str, addr: TypeAddr, waiting: &mut Vec<TypeAddr>) -> Result<String> {
        let ty = self.program.read(addr)?;
        let full = format!("{}.{}", ty.package, ty.name);
        if let Some((_, word)) = SPECIAL.iter().find(|(name, _)| *name == full) {
            return Ok((*word).to_owned());
        }
        Ok(match ty.shape {
            Shape::Bool => "bool".to_owned(),
            Shape::Int32 => "int32".to_owned(),
            Shape::Int64 => "int64".to_owned(),
            Shape::Float64 => "float64".to_owned(),
            Shape::String => "string".to_owned(),
            Shape::Pointer(to) => format!("*{}", self.kind(package, to, waiting)?),
            Shape::Slice(of) if matches!(self.program.read(of)?.shape, Shape::Byte) => "bytes".to_owned(),
            // gogoproto wraps lists that have a name (`Verbs`, `ExtraValue`) in a message.
            Shape::Slice(_) if !ty.name.is_empty() => "names".to_owned(),
            Shape::Slice(of) => format!("[]{}", self.kind(package, of, waiting)?),
            Shape::Map(of) => format!("{{}}{}", self.kind(package, of, waiting)?),
            Shape::Struct(_) => {
                waiting.push(addr);
                if ty.package == package { ty.name } else { format!("{}.{}", dotted(&ty.package), ty.name) }
            }
            // `runtime.Object`: any API object.
            Shape::Other(20) => "raw".to_owned(),
            Shape::Byte => bail!("a lone byte"),
            Shape::Other(kind) => bail!("Go kind {kind} has no wire form"),
        })
    }
}

/// OpenAPI's way of writing an import path: `io.k8s.api.core.v1`.
fn dotted(package: &str) -> String {
    let rest = package.trim_start_matches("k8s.io/").replace(['/', '-'], ".");
    format!("io.k8s.{rest}")
}

/// One key of a Go struct tag.
fn tag<'a>(tag: &'a str, key: &str) -> Option<&'a str> {
    let start = tag.find(&format!("{key}:\""))? + key.len() + 2;
    tag[start..].split('"').next()
}

const HEADER: &str = "\
# Written by `cargo xtask codegen`; not edited by hand.
# A type's line: its name, then whether it is atomic as a whole. A field's line: JSON name (`=` where the
# struct is inlined into its parent), protobuf tag (0: none), Go type (`*` pointer, `[]` list, `{}` map of
# strings), then: omitempty, omitzero; patch strategy (merge[:key], retainKeys, replace); list or map type.
";

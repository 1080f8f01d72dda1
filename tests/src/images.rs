//! Images of other people's programs, made from Debian's packages without Docker: what `docker pull nginx` would give,
//! near enough, as an archive that `pith image import` takes.
//!
//! Packages are fetched once into `target/tools/debian` by apt, which verifies them; nothing is installed on the
//! machine. A root filesystem is the unpacked packages of one program and of all it depends on; what their
//! installation scripts would have done and the program needs, is done here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::debian::{self, run};
use crate::program::folder;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Goes up when images are made in another way, so that an older archive is not taken for a new one.
const EDITION: u32 = 2;

/// An OCI layout in a tar archive, and the name of the image in it.
pub struct Archive {
    pub path: PathBuf,
    pub reference: &'static str,
}

/// How one image is made.
struct Recipe {
    reference: &'static str,
    packages: &'static [&'static str],
    entrypoint: &'static [&'static str],
    cmd: &'static [&'static str],
    port: Option<&'static str>,
    finish: fn(&Path) -> Result<()>,
}

/// One static binary with a shell and the usual tools.
///
/// # Errors
/// When the packages cannot be had: print it and skip.
pub fn busybox() -> Result<Archive> {
    make(&Recipe {
        reference: "pith.local/busybox:debian",
        packages: &["busybox-static"],
        entrypoint: &[],
        cmd: &["/bin/sh"],
        port: None,
        finish: |root| {
            let output = Command::new(root.join("bin/busybox")).arg("--list-full").output();
            let applets = output.context("ask busybox for its applets")?.stdout;
            for applet in String::from_utf8_lossy(&applets).lines().filter(|applet| *applet != "bin/busybox")
            {
                link(root, "/bin/busybox", applet)?;
            }
            users(root, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
        },
    })
}

/// A web server: dynamically linked, starts as root, its workers run as another user.
///
/// # Errors
/// As [`busybox`].
pub fn nginx() -> Result<Archive> {
    make(&Recipe {
        reference: "pith.local/nginx:debian",
        packages: &["nginx-light"],
        entrypoint: &["/usr/sbin/nginx"],
        cmd: &["-g", "daemon off;"],
        port: Some("80/tcp"),
        finish: |root| {
            users(
                root,
                "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n",
            )?;
            link(root, "/etc/nginx/sites-available/default", "etc/nginx/sites-enabled/default")?;
            write(root, "var/www/html/index.html", "<h1>Welcome to nginx!</h1>\n")?;
            // As Docker's image does: `kubectl logs` shows them.
            link(root, "/dev/stdout", "var/log/nginx/access.log")?;
            link(root, "/dev/stderr", "var/log/nginx/error.log")
        },
    })
}

/// A database: dynamically linked, does not need root.
///
/// # Errors
/// As [`busybox`].
pub fn redis() -> Result<Archive> {
    make(&Recipe {
        reference: "pith.local/redis:debian",
        packages: &["redis-server"],
        entrypoint: &["/usr/bin/redis-server"],
        cmd: &["--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/tmp"],
        port: Some("6379/tcp"),
        finish: |root| {
            users(root, "root:x:0:0:root:/root:/bin/sh\nredis:x:999:999:redis:/var/lib/redis:/bin/sh\n")
        },
    })
}

/// The archive in `target/images`, made if it is not there.
fn make(recipe: &Recipe) -> Result<Archive> {
    let name = recipe.reference.rsplit('/').next().unwrap_or(recipe.reference).replace(':', "-");
    let images = folder("PITH_IMAGES_DIR", "target/images");
    fs::create_dir_all(&images).with_context(|| format!("create {}", images.display()))?;
    let path = images.join(format!("{name}-{EDITION}.tar"));
    let archive = Archive { path, reference: recipe.reference };
    if archive.path.exists() {
        return Ok(archive);
    }
    // Beside its place, so that half an archive never has the name of a whole one.
    let work = TempDir::with_prefix_in("pith-image-", &images).context("create a folder")?;
    let root = work.path().join("root");
    debian::unpack(recipe.packages, &work.path().join("apt"), &root)?;
    (recipe.finish)(&root).with_context(|| format!("finish {}", recipe.reference))?;
    let layout = work.path().join("layout");
    write_layout(recipe, &root, &layout).with_context(|| format!("lay out {}", recipe.reference))?;
    let complete = work.path().join("archive.tar");
    run(tar(&layout).arg("--file").arg(&complete).args(["oci-layout", "index.json", "blobs"]))?;
    fs::rename(&complete, &archive.path).with_context(|| format!("create {}", archive.path.display()))?;
    Ok(archive)
}

fn write_layout(recipe: &Recipe, root: &Path, layout: &Path) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
    // Folders of every Debian system that no package of a program brings along.
    for dir in ["tmp", "run"] {
        fs::create_dir_all(root.join(dir)).with_context(|| format!("create /{dir}"))?;
    }
    run(Command::new("chmod").arg("1777").arg(root.join("tmp")))?;
    let layer = layout.join("layer.tar");
    run(tar(root).arg("--file").arg(&layer).arg("."))?;
    let diff_id = digest(&fs::read(&layer).context("read the layer")?);
    // -n leaves out name and time.
    run(Command::new("gzip").args(["-n", "-1"]).arg(&layer))?;
    let layer = fs::read(layout.join("layer.tar.gz")).context("read the layer")?;
    let mut config = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "WorkingDir": "/",
        "Cmd": recipe.cmd,
    });
    if !recipe.entrypoint.is_empty() {
        config["Entrypoint"] = json!(recipe.entrypoint);
    }
    if let Some(port) = recipe.port {
        config["ExposedPorts"] = json!({ port: {} });
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let config = blob(&blobs, CONFIG, config.to_string().as_bytes())?;
    let layer = blob(&blobs, LAYER, &layer)?;
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
    let mut manifest = blob(&blobs, MANIFEST, manifest.to_string().as_bytes())?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": recipe.reference });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] });
    write(layout, "index.json", &index.to_string())?;
    write(layout, "oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
}

/// Writes a blob and returns its descriptor.
fn blob(blobs: &Path, media_type: &str, content: &[u8]) -> Result<Value> {
    let digest = digest(content);
    let path = blobs.join(digest.trim_start_matches("sha256:"));
    fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": content.len() }))
}

fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// GNU tar, with nothing of the moment in the archive.
fn tar(folder: &Path) -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--numeric-owner", "--sort=name", "--mtime=@0", "--directory"]).arg(folder);
    tar
}

fn users(root: &Path, passwd: &str) -> Result<()> {
    let groups: String = passwd
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            Some(format!("{}:x:{}:\n", fields.first()?, fields.get(3)?))
        })
        .collect();
    write(root, "etc/passwd", passwd)?;
    write(root, "etc/group", &groups)
}

fn write(root: &Path, path: &str, content: &str) -> Result<()> {
    let path = root.join(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    fs::write(&path, content).with_context(|| format!("write {}", path.display()))
}

fn link(root: &Path, target: &str, path: &str) -> Result<()> {
    let path = root.join(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    match symlink(target, &path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        result => result.with_context(|| format!("link {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use pith_image::{Quiet, Store};

    use super::*;

    /// Each is imported, and its program runs in its own root, with its own libraries.
    #[test]
    fn programs_run_from_imported_roots() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: programs_run_from_imported_roots: needs root");
            return;
        }
        let dir = TempDir::new().expect("a folder");
        let store = Store::open(dir.path().join("images")).expect("a store");
        type Make = fn() -> Result<Archive>;
        let cases: [(&str, Make, &[&str], &str); 3] = [
            ("busybox", busybox, &["/bin/sh", "-c", "echo a | tr a b"], "b"),
            ("nginx", nginx, &["/usr/sbin/nginx", "-v"], "nginx version"),
            ("redis", redis, &["/usr/bin/redis-server", "--version"], "Redis server v="),
        ];
        for (name, make, command, expect) in cases {
            let archive = match make() {
                Ok(archive) => archive,
                Err(error) => {
                    eprintln!("SKIPPED: programs_run_from_imported_roots: {name}: {error:#}");
                    continue;
                }
            };
            store.import(&archive.path, None, &Quiet).expect("import");
            let image = store.resolve(archive.reference).expect("by its name");
            let root = image.lowerdirs().remove(0);
            let output = Command::new("chroot").arg(root).args(command).output().expect("run chroot");
            let said = [output.stdout, output.stderr].concat();
            assert!(
                String::from_utf8_lossy(&said).contains(expect),
                "{name}: {}",
                String::from_utf8_lossy(&said)
            );
        }
    }
}

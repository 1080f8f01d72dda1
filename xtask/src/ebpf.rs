//! `cargo xtask ebpf`: builds the eBPF programs into `ebpf/prebuilt/pith.o`, which `pith-proxy` embeds, so that
//! everyone else needs stable Rust only.
//!
//! Invariant: the committed object comes from the committed sources. `ebpf/prebuilt/pith.json` holds the
//! hash of the sources, the hash of the object and the toolchain; `--check` builds again and compares bytes.
//! The build depends on nothing but sources and toolchain: paths are remapped, debug sections dropped, crates known by
//! name ([`rustc`]), and no symbol is mangled.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod elf;
pub(crate) mod rustc;

/// The last version that can use the LLVM that rustc brings along.
const BPF_LINKER: &str = "0.10.4";
/// The LLVM that bpf-linker's feature `rust-llvm-22` expects.
const LLVM_MAJOR: &str = "22";
/// What Debian calls a rustc that is new enough, its standard library and that one's sources.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "libstd-rust-web-dev", "rust-web-src"];
const TARGET: &str = "bpfel-unknown-none";
/// What the object is built from.
const SOURCES: [&str; 7] = [
    "ebpf/abi/Cargo.toml",
    "ebpf/abi/src",
    "ebpf/core/Cargo.toml",
    "ebpf/core/src",
    "ebpf/programs/Cargo.toml",
    "ebpf/programs/Cargo.lock",
    "ebpf/programs/src",
];

/// Where the committed object came from.
#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
struct Origin {
    sources_sha256: String,
    object_sha256: String,
    rustc: String,
    bpf_linker: String,
}

/// Builds the object, or with `check` builds it again and compares.
pub(crate) fn run(check_only: bool) -> Result<()> {
    let root = workspace_root()?;
    let object_file = root.join("ebpf/prebuilt/pith.o");
    let origin_file = root.join("ebpf/prebuilt/pith.json");
    let sources_sha256 = hash_sources(&root)?;
    if check_only {
        return check(&root, &object_file, &origin_file, &sources_sha256);
    }
    let toolchain = find_toolchain(true)?;
    let object = build(&root, &toolchain)?;
    fs::create_dir_all(root.join("ebpf/prebuilt")).context("create ebpf/prebuilt")?;
    fs::write(&object_file, &object).with_context(|| format!("write {}", object_file.display()))?;
    let origin = Origin {
        sources_sha256,
        object_sha256: hex(&Sha256::digest(&object)),
        rustc: toolchain.version.clone(),
        bpf_linker: BPF_LINKER.to_owned(),
    };
    let text = serde_json::to_string_pretty(&origin).context("write the origin as JSON")? + "\n";
    fs::write(&origin_file, text).with_context(|| format!("write {}", origin_file.display()))?;
    println!("ebpf: {} ({} bytes) built by {}", object_file.display(), object.len(), origin.rustc);
    Ok(())
}

fn check(root: &Path, object_file: &Path, origin_file: &Path, sources_sha256: &str) -> Result<()> {
    let committed = fs::read(object_file).with_context(|| format!("read {}", object_file.display()))?;
    let text = fs::read_to_string(origin_file).with_context(|| format!("read {}", origin_file.display()))?;
    let origin: Origin =
        serde_json::from_str(&text).with_context(|| format!("parse {}", origin_file.display()))?;
    ensure!(
        origin.sources_sha256 == sources_sha256,
        "ebpf: the programs have changed since ebpf/prebuilt/pith.o was built; run `cargo xtask ebpf` and commit it"
    );
    ensure!(
        origin.object_sha256 == hex(&Sha256::digest(&committed)),
        "ebpf: ebpf/prebuilt/pith.o is not the object that pith.json describes; run `cargo xtask ebpf`"
    );
    let toolchain = match find_toolchain(true) {
        Ok(toolchain) => toolchain,
        Err(error) => {
            println!("ebpf: hashes of sources and object agree");
            println!("ebpf: NOT CHECKED: whether a build gives the same bytes: {error:#}");
            return Ok(());
        }
    };
    let built = build(root, &toolchain)?;
    if toolchain.version != origin.rustc {
        println!(
            "ebpf: hashes of sources and object agree, and the programs build with {}",
            toolchain.version
        );
        println!("ebpf: NOT CHECKED: bytes, because the committed object was built by {}", origin.rustc);
        return Ok(());
    }
    if let Some(at) = first_difference(&committed, &built) {
        bail!(
            "ebpf: a build by {} differs from ebpf/prebuilt/pith.o at byte {at} ({} and {} bytes); \
             run `cargo xtask ebpf` and commit the result",
            toolchain.version,
            committed.len(),
            built.len()
        );
    }
    println!("ebpf: {} built again by {}: same bytes", object_file.display(), toolchain.version);
    Ok(())
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    Some(a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len())))
}

/// A rustc that has the sources of `core` and an LLVM that the linker understands.
struct Toolchain {
    rustc: PathBuf,
    /// First line of `rustc -vV`.
    version: String,
    sysroot: PathBuf,
    libllvm: PathBuf,
}

/// Debian's rustc, else a rustup nightly; installs Debian's where that is possible and wanted.
fn find_toolchain(install: bool) -> Result<Toolchain> {
    let mut reasons = Vec::new();
    let mut attempt = |rustc: PathBuf| match inspect(&rustc) {
        Ok(toolchain) => Some(toolchain),
        Err(error) => {
            reasons.push(format!("{}: {error:#}", rustc.display()));
            None
        }
    };
    if let Some(rustc) = env::var_os("PITH_EBPF_RUSTC") {
        return inspect(Path::new(&rustc));
    }
    let debian = PathBuf::from("/usr/bin/rustc");
    if let Some(toolchain) = attempt(debian.clone()) {
        return Ok(toolchain);
    }
    let nightly = Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]).output();
    if let Some(output) = nightly.ok().filter(|output| output.status.success())
        && let Some(toolchain) = attempt(String::from_utf8_lossy(&output.stdout).trim().into())
    {
        return Ok(toolchain);
    }
    if install && install_debian()? {
        return inspect(&debian);
    }
    bail!(
        "no toolchain can build eBPF programs here. On Debian 12: apt install {}; elsewhere: \
         rustup toolchain install nightly --component rust-src. Looked at: {}",
        DEBIAN_PACKAGES.join(" "),
        reasons.join("; ")
    )
}

fn inspect(rustc: &Path) -> Result<Toolchain> {
    let about = stdout(Command::new(rustc).arg("-vV"))?;
    let version = about.lines().next().context("rustc -vV said nothing")?.to_owned();
    let llvm = about.lines().find_map(|line| line.strip_prefix("LLVM version: ")).unwrap_or_default();
    ensure!(
        llvm.split('.').next() == Some(LLVM_MAJOR),
        "{version} uses LLVM {llvm}, bpf-linker {BPF_LINKER} needs {LLVM_MAJOR}"
    );
    let sysroot = PathBuf::from(stdout(Command::new(rustc).args(["--print", "sysroot"]))?.trim());
    let core = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    ensure!(core.exists(), "{version} has no sources of core ({})", core.display());
    let libllvm = find_libllvm(&sysroot.join("lib"))
        .with_context(|| format!("no libLLVM {LLVM_MAJOR} below {}", sysroot.join("lib").display()))?;
    Ok(Toolchain { rustc: rustc.to_owned(), version, sysroot, libllvm })
}

/// rustc's own LLVM: beside it (rustup) or in a folder named after the architecture (Debian).
fn find_libllvm(lib: &Path) -> Option<PathBuf> {
    let multiarch = lib.join(format!("{}-linux-gnu", env::consts::ARCH));
    let mut found: Vec<PathBuf> = [lib.to_owned(), multiarch]
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("libLLVM") && name.contains(".so") && name.contains(LLVM_MAJOR)
        })
        .collect();
    found.sort();
    found.into_iter().next()
}

/// Installs Debian's packages where this is Debian and we are root; they shadow nothing of rustup's.
fn install_debian() -> Result<bool> {
    let root = stdout(Command::new("id").arg("-u"))?.trim() == "0";
    if !root || !Path::new("/etc/debian_version").exists() {
        return Ok(false);
    }
    println!("ebpf: installing {} with apt", DEBIAN_PACKAGES.join(", "));
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(DEBIAN_PACKAGES);
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    if !apt.status().context("run apt-get")?.success() {
        bail!("apt-get could not install {}; try `apt-get update` first", DEBIAN_PACKAGES.join(" "));
    }
    Ok(true)
}

/// Builds the programs and returns the object without its debug sections.
fn build(root: &Path, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let linker = bpf_linker(root)?;
    let target = root.join("target/ebpf");
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Cpanic=abort".to_owned(),
        // Debian's rustc knows the target, but not the name by which aya asks for its architecture.
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        remap(root, "/pith"),
        remap(&cargo_home, "/cargo"),
        remap(&toolchain.sysroot.join("lib/rustlib/src/rust"), "/rust"),
    ];
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root.join("ebpf/programs"))
        .args(["build", "--locked", "--release", "-Zbuild-std=core", "--target", TARGET])
        .env("RUSTC", &toolchain.rustc)
        // Building core needs unstable options of cargo and rustc.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_TARGET_DIR", &target)
        // The linker takes the first libLLVM on this path: let it be rustc's own and no other.
        .env("LD_LIBRARY_PATH", only_libllvm(root, &toolchain.libllvm)?)
        .env_remove("RUSTUP_TOOLCHAIN");
    rustc::call_instead(&mut cargo).context("find this program's own file")?;
    if !cargo.status().context("run cargo")?.success() {
        bail!("ebpf/programs does not build with {}", toolchain.version);
    }
    let file = target.join(TARGET).join("release/pith");
    let object = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    let object = elf::without_debug_sections(&object).with_context(|| format!("strip {}", file.display()))?;
    if let Some(name) = elf::mangled_name(&object) {
        bail!(
            "ebpf: the function {name} was not inlined: its name holds cargo's hash of the folder it was built in, \
             so that no other folder gives the same bytes; mark it #[inline(always)]"
        );
    }
    Ok(object)
}

/// A folder that holds a link to one libLLVM and nothing else.
fn only_libllvm(root: &Path, libllvm: &Path) -> Result<PathBuf> {
    let folder = root.join("target/tools/llvm");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let name = libllvm.file_name().context("libLLVM has a name")?;
    symlink(libllvm, folder.join(name)).with_context(|| format!("link {}", libllvm.display()))?;
    Ok(folder)
}

/// The linker, installed below `target/tools` when it is missing.
fn bpf_linker(root: &Path) -> Result<PathBuf> {
    let tools = root.join("target/tools");
    let linker = tools.join("bin/bpf-linker");
    // `bpf-linker --version` loads LLVM, so cargo's own record is asked instead.
    let record = fs::read_to_string(tools.join(".crates.toml")).unwrap_or_default();
    if linker.exists() && record.contains(&format!("\"bpf-linker {BPF_LINKER} ")) {
        return Ok(linker);
    }
    println!("ebpf: installing bpf-linker {BPF_LINKER} below {} (about 90 s)", tools.display());
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["install", "--locked", "--force", "bpf-linker", "--version", BPF_LINKER])
        .args(["--no-default-features", "--features", &format!("rust-llvm-{LLVM_MAJOR}"), "--root"])
        .arg(&tools)
        // A folder of its own: its flags are not this workspace's.
        .current_dir("/")
        .env_remove("CARGO_TARGET_DIR");
    if !cargo.status().context("run cargo install")?.success() {
        bail!("bpf-linker {BPF_LINKER} could not be installed");
    }
    Ok(linker)
}

/// Hash of names and contents of everything the object is built from.
fn hash_sources(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(root).context("sources lie below the root")?;
        let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        hash.update(name.to_string_lossy().as_bytes());
        hash.update([0]);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    Ok(hex(&hash.finalize()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        collect(&entry.with_context(|| format!("read {}", path.display()))?.path(), files)?;
    }
    Ok(())
}

fn workspace_root() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(manifest.parent().context("xtask lies in the workspace")?.to_owned())
}

fn stdout(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed something unreadable"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_difference_table() {
        let cases = [
            ("same", "abc", "abc", None),
            ("first byte", "xbc", "abc", Some(0)),
            ("shorter", "ab", "abc", Some(2)),
            ("longer", "abcd", "abc", Some(3)),
        ];
        for (name, a, b, expect) in cases {
            assert_eq!(first_difference(a.as_bytes(), b.as_bytes()), expect, "{name}");
        }
    }

    /// The same check as `--check` makes first, so that a stale object fails the ordinary tests too.
    #[test]
    fn committed_object_is_of_these_sources() {
        let root = workspace_root().expect("the workspace is there");
        let text = fs::read_to_string(root.join("ebpf/prebuilt/pith.json")).expect("the object is committed");
        let origin: Origin = serde_json::from_str(&text).expect("written by this program");
        assert_eq!(
            origin.sources_sha256,
            hash_sources(&root).expect("the sources are there"),
            "run `cargo xtask ebpf` and commit ebpf/prebuilt"
        );
    }
}

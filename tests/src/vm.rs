//! A virtual machine with a kernel of Debian's and a pure cgroup v2 hierarchy, for what this machine's own kernel
//! cannot show. qemu emulates it (no KVM is asked for), so it is slow: minutes of work, not hours.
//!
//! The machine's root is a tmpfs filled from an initramfs: busybox, pith, and what a test brings. It runs one
//! script and powers off; the script's output is what comes back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::debian::{self, run};
use crate::program::{bin_dir, folder};

/// Modules that a machine of its own would load by itself when they are asked for, in the order of their needs.
const MODULES: [&str; 8] = ["llc", "stp", "bridge", "overlay", "veth", "sch_ingress", "cls_bpf", "act_bpf"];
/// The last line of a script that ran to its end, with its exit status.
const END: &str = "VM-END ";
const MEMORY_MIB: &str = "1536";

/// Debian's kernels for virtual machines, by series.
const KERNELS: [(&str, &str); 2] =
    [("6.1", "linux-image-cloud-amd64"), ("6.12", "linux-image-6.12-cloud-amd64")];

/// Does what a boot does, then runs the script.
const INIT: &str = include_str!("vm-init.sh");

/// A machine to be booted, with its kernel and emulator at hand.
pub struct Vm {
    kernel: PathBuf,
    modules: PathBuf,
    tools: PathBuf,
}

/// What a script printed and how it ended.
#[derive(Debug)]
pub struct Console {
    pub text: String,
    pub status: i32,
}

impl Vm {
    /// Fetches what is missing.
    ///
    /// # Errors
    /// No apt, or no such kernel in its archives: print it and skip.
    pub fn with_kernel(series: &str) -> Result<Self> {
        let tools = folder("PITH_TOOLS_DIR", "target/tools").join("vm");
        complete(&tools.join("emulator"), |root, apt| {
            debian::unpack(&["qemu-system-x86", "busybox-static"], apt, root)
        })?;
        let meta = KERNELS.iter().find(|(known, _)| *known == series).map(|(_, meta)| *meta);
        let meta = meta.with_context(|| format!("no package is known for Linux {series}"))?;
        let package = debian::dependency(meta, &format!("linux-image-{series}."))?
            .with_context(|| format!("Debian's archives here have no kernel {series}"))?;
        let root = tools.join(format!("linux-{series}"));
        complete(&root, |root, _| debian::unpack_alone(&package, root))?;
        let release = package.trim_start_matches("linux-image-");
        let kernel = root.join("boot").join(format!("vmlinuz-{release}"));
        let modules = ["lib/modules", "usr/lib/modules"].map(|dir| root.join(dir).join(release));
        let modules = modules.into_iter().find(|dir| dir.exists());
        let modules = modules.with_context(|| format!("{package} holds no modules"))?;
        Ok(Self { kernel, modules, tools })
    }

    /// Boots, runs `script` with `/bin/sh`, and powers off. `files` are put where their second path says.
    ///
    /// # Errors
    /// The emulator failed, or the machine did not power off before `deadline`: with all that it had printed.
    pub fn run(&self, script: &str, files: &[(&Path, &str)], deadline: Duration) -> Result<Console> {
        let work = TempDir::with_prefix("pith-vm-").context("create a folder")?;
        let initramfs = self.initramfs(work.path(), script, files)?;
        let emulator = self.tools.join("emulator");
        let mut qemu = Command::new("timeout");
        // Its own loader and libraries: what is installed on this machine does not matter.
        qemu.arg(deadline.as_secs().to_string()).arg(emulator.join("lib64/ld-linux-x86-64.so.2"));
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|dir| emulator.join(dir));
        qemu.arg("--library-path").arg(std::env::join_paths(libraries).context("the emulator's folder")?);
        qemu.arg(emulator.join("usr/bin/qemu-system-x86_64"));
        // Started by a loader, qemu does not find what stands beside it.
        qemu.env("QEMU_MODULE_DIR", emulator.join("usr/lib/x86_64-linux-gnu/qemu"));
        for firmware in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            qemu.arg("-L").arg(emulator.join(firmware));
        }
        // Two processors in one thread: side by side, the emulator may run code that the kernel has patched meanwhile,
        // and the kernel takes the breakpoint that it patches with for somebody else's.
        qemu.args(["-accel", "tcg,thread=single"]);
        qemu.args(["-machine", "q35", "-cpu", "max", "-smp", "2", "-m", MEMORY_MIB]);
        qemu.args(["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-nic", "none"]);
        qemu.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&initramfs);
        qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
        let output = qemu.stdin(Stdio::null()).output().context("start qemu")?;
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        let status = text.lines().rev().find_map(|line| line.strip_prefix(END)?.trim().parse().ok());
        match status {
            Some(status) => Ok(Console { text, status }),
            None => bail!(
                "the machine did not finish its script within {deadline:?} ({}): {}\n{text}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }

    fn initramfs(&self, work: &Path, script: &str, files: &[(&Path, &str)]) -> Result<PathBuf> {
        let root = work.join("root");
        let busybox = self.tools.join("emulator/bin/busybox");
        let (pith, podd) = (bin_dir().join("pith"), bin_dir().join("pith-podd"));
        let programs = [(busybox.as_path(), "bin/busybox"), (&pith, "bin/pith"), (&podd, "bin/pith-podd")];
        for (from, to) in programs.iter().chain(files) {
            let to = root.join(to.trim_start_matches('/'));
            let parent = to.parent().context("a file stands in a folder")?;
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
            fs::copy(from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        }
        for (name, text) in [("init", INIT), ("script", script)] {
            let path = root.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        let into = root.join("modules");
        fs::create_dir_all(&into).with_context(|| format!("create {}", into.display()))?;
        for (number, name) in MODULES.iter().enumerate() {
            if let Some(file) = find_module(&self.modules, name)? {
                unpack_module(&busybox, &file, &into.join(format!("{number}-{name}.ko")))?;
            }
        }
        let archive = work.join("initramfs.gz");
        pack(&busybox, &root, &archive)?;
        Ok(archive)
    }
}

/// Fills a folder once: half of it never has the name of the whole.
fn complete(target: &Path, fill: impl Fn(&Path, &Path) -> Result<()>) -> Result<()> {
    if target.exists() {
        return Ok(());
    }
    let parent = target.parent().context("a folder below target")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    let work = TempDir::with_prefix_in("unpack-", parent).context("create a folder")?;
    let root = work.path().join("root");
    fill(&root, &work.path().join("apt"))?;
    fs::rename(&root, target).with_context(|| format!("rename to {}", target.display()))
}

/// `NAME.ko`, however it is compressed.
fn find_module(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    let mut folders = vec![folder.join("kernel")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if file.strip_prefix(name).is_some_and(|rest| rest.starts_with(".ko")) {
                return Ok(Some(path));
            }
        }
    }
    Ok(None)
}

fn unpack_module(busybox: &Path, file: &Path, to: &Path) -> Result<()> {
    if file.extension().is_some_and(|extension| extension == "xz") {
        let output =
            Command::new(busybox).args(["xz", "-dc"]).arg(file).output().context("run busybox xz")?;
        return fs::write(to, output.stdout).with_context(|| format!("write {}", to.display()));
    }
    fs::copy(file, to).map(drop).with_context(|| format!("copy {}", file.display()))
}

/// `cpio -H newc`, compressed: what the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
fn pack(busybox: &Path, root: &Path, archive: &Path) -> Result<()> {
    let shell = r#"cd "$1" && "$0" find . | "$0" cpio -o -H newc 2>/dev/null | "$0" gzip -1 > "$2""#;
    run(Command::new("sh").args(["-c", shell]).arg(busybox).arg(root).arg(archive))
}

//! The mounts of a container, its devices, and what is covered in them.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDeviceType, Mount, Spec};

use crate::plan::{Attributes, Device, DeviceKind, Propagation, Slot, Source, Step};

use super::mount_options::{self, MountOptions, NODEV, NOEXEC, NOSUID, RDONLY};
use super::{CgroupView, CompileError, Options, Slots, unsupported};

/// Steps for a container's mounts, by when they are carried out.
pub(super) struct Mounts<'a> {
    options: &'a Options,
    new_cgroup_namespace: bool,
    /// Before the root is entered.
    pub(super) make: Vec<Step>,
    /// After.
    pub(super) attach: Vec<Step>,
    /// When everything else is in place.
    pub(super) cover: Vec<Step>,
}

/// What every container finds in /dev: OCI's default devices.
const DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

impl<'a> Mounts<'a> {
    pub(super) fn new(options: &'a Options, new_cgroup_namespace: bool) -> Mounts<'a> {
        Mounts { options, new_cgroup_namespace, make: vec![], attach: vec![], cover: vec![] }
    }

    pub(super) fn make(&mut self, spec: &Spec, linux: &Linux, slots: &mut Slots) -> Result<(), CompileError> {
        let devices = devices(linux)?;
        let mut devices_pending = true;
        for (index, mount) in spec.mounts().iter().flatten().enumerate() {
            let field = format!("mounts[{index}]");
            let target = clean(mount.destination());
            if target == Path::new("/") {
                return Err(invalid(&field, mount.destination(), "is the root itself"));
            }
            if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
                return Err(unsupported(format!("{field}.uidMappings"), ""));
            }
            let parsed = mount_options::parse(mount.options().as_deref().unwrap_or_default(), &field)?;
            let is_dev = target == Path::new("/dev");
            if parsed.bind.is_some() || mount.typ().as_deref() == Some("bind") {
                // Whoever binds a whole /dev wants that one as it is.
                devices_pending &= !is_dev;
                self.bind(mount, target, &parsed, &field, slots)?;
            } else if matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")) {
                self.cgroup(target, &parsed, &field, slots)?;
            } else {
                let own_devices = if is_dev { devices.as_slice() } else { &[] };
                devices_pending &= !is_dev;
                self.filesystem(mount, target, &parsed, own_devices, &field, slots)?;
            }
        }
        if devices_pending {
            let slot = slots.next()?;
            self.attach.push(Step::OpenDirectory { slot, path: PathBuf::from("/dev") });
            self.attach.extend(devices.into_iter().map(|device| Step::MakeDevice { slot, device }));
            self.attach.extend(links(slot));
        }
        self.covers(linux, slots)
    }

    fn bind(
        &mut self,
        mount: &Mount,
        target: PathBuf,
        options: &MountOptions,
        field: &str,
        slots: &mut Slots,
    ) -> Result<(), CompileError> {
        let path = mount.source().clone().ok_or(CompileError::Missing { field: "mounts[].source" })?;
        if let Some((key, _)) = options.data.first() {
            let key = Path::new(key);
            return Err(invalid(&format!("{field}.options"), key, "does not apply to a bind mount"));
        }
        let source = match self.options.confine.get(mount.destination()) {
            None => Source { path, beneath: None },
            Some(base) => match path.strip_prefix(base) {
                Ok(rest) => Source { path: rest.to_owned(), beneath: Some(base.clone()) },
                Err(_) => return Err(invalid(&format!("{field}.source"), &path, "is not below its volume")),
            },
        };
        let slot = slots.next()?;
        let recursive = options.bind == Some(true);
        self.make.push(Step::Bind { slot, source, recursive });
        self.change(slot, options);
        self.attach.push(Step::Attach { slot, target });
        Ok(())
    }

    fn filesystem(
        &mut self,
        mount: &Mount,
        target: PathBuf,
        options: &MountOptions,
        devices: &[Device],
        field: &str,
        slots: &mut Slots,
    ) -> Result<(), CompileError> {
        let kind = mount.typ().clone().filter(|kind| !kind.is_empty()).ok_or_else(|| {
            invalid(&format!("{field}.type"), mount.destination(), "has neither a type nor bind")
        })?;
        let source = mount.source().as_ref().map_or_else(|| kind.clone(), |s| s.display().to_string());
        let slot = slots.next()?;
        // A /dev that is to be read-only becomes so once its devices are in it.
        let attributes =
            if devices.is_empty() { options.attributes.set } else { options.attributes.set & !RDONLY };
        self.make.push(Step::Filesystem { slot, kind, source, options: options.data.clone(), attributes });
        if !devices.is_empty() {
            self.make.extend(devices.iter().cloned().map(|device| Step::MakeDevice { slot, device }));
            self.make.extend(links(slot));
            let directories = ["pts", "shm", "mqueue"];
            self.make.extend(directories.map(|name| Step::MakeDirectory {
                slot,
                name: name.to_owned(),
                mode: 0o755,
            }));
            if options.attributes.set & RDONLY != 0 {
                let attributes = Attributes { set: RDONLY, clear: 0 };
                self.make.push(Step::SetAttributes { slot, attributes, propagation: None, recursive: false });
            }
        }
        let rest = MountOptions { attributes: Default::default(), ..options.clone() };
        self.change(slot, &rest);
        self.attach.push(Step::Attach { slot, target });
        Ok(())
    }

    /// The container's own cgroup at `/sys/fs/cgroup`, in the shape of the host's hierarchies.
    fn cgroup(
        &mut self,
        target: PathBuf,
        options: &MountOptions,
        field: &str,
        slots: &mut Slots,
    ) -> Result<(), CompileError> {
        if !self.new_cgroup_namespace {
            let reason = " without a cgroup namespace of its own: it would show the host's";
            return Err(unsupported(format!("{field}.type: cgroup"), reason));
        }
        let attributes = options.attributes.set;
        let new = |slot, kind: &str, data, attributes| Step::Filesystem {
            slot,
            kind: kind.to_owned(),
            source: "cgroup".to_owned(),
            options: data,
            attributes,
        };
        let controllers = match &self.options.cgroup_view {
            CgroupView::Unified => {
                let slot = slots.next()?;
                self.make.push(new(slot, "cgroup2", vec![], attributes));
                self.attach.push(Step::Attach { slot, target });
                return Ok(());
            }
            CgroupView::Legacy(controllers) => controllers,
        };
        let base = slots.next()?;
        let data = vec![("mode".to_owned(), Some("755".to_owned()))];
        self.make.push(new(base, "tmpfs", data, attributes & !RDONLY));
        self.attach.push(Step::Attach { slot: base, target: target.clone() });
        for name in controllers {
            let slot = slots.next()?;
            let data = name.split(',').map(|controller| (controller.to_owned(), None)).collect();
            self.make.push(new(slot, "cgroup", data, attributes));
            self.make.push(Step::MakeDirectory { slot: base, name: name.clone(), mode: 0o755 });
            self.attach.push(Step::Attach { slot, target: target.join(name) });
        }
        if attributes & RDONLY != 0 {
            let attributes = Attributes { set: RDONLY, clear: 0 };
            self.make.push(Step::SetAttributes {
                slot: base,
                attributes,
                propagation: None,
                recursive: false,
            });
        }
        Ok(())
    }

    fn change(&mut self, slot: Slot, options: &MountOptions) {
        let mut change = |attributes: Attributes, propagation: Option<Propagation>, recursive| {
            if attributes != Default::default() || propagation.is_some() {
                self.make.push(Step::SetAttributes { slot, attributes, propagation, recursive });
            }
        };
        change(options.attributes, None, false);
        change(options.recursive_attributes, None, true);
        if let Some((propagation, recursive)) = options.propagation {
            change(Default::default(), Some(propagation), recursive);
        }
    }

    fn covers(&mut self, linux: &Linux, slots: &mut Slots) -> Result<(), CompileError> {
        let paths = |listed: &Option<Vec<String>>| -> Vec<PathBuf> {
            listed.iter().flatten().map(|path| clean(Path::new(path))).collect()
        };
        let masked = paths(linux.masked_paths());
        if !masked.is_empty() {
            let (null, empty) = (slots.next()?, slots.next()?);
            self.make.push(Step::OpenNull { slot: null });
            self.make.push(Step::Filesystem {
                slot: empty,
                kind: "tmpfs".to_owned(),
                source: "tmpfs".to_owned(),
                options: vec![
                    ("size".to_owned(), Some("0".to_owned())),
                    ("nr_inodes".to_owned(), Some("2".to_owned())),
                ],
                attributes: RDONLY | NOSUID | NODEV | NOEXEC,
            });
            self.cover.push(Step::Mask { paths: masked, null, empty });
        }
        let read_only = paths(linux.readonly_paths());
        if !read_only.is_empty() {
            self.cover.push(Step::ReadOnly { paths: read_only });
        }
        Ok(())
    }
}

fn links(slot: Slot) -> impl Iterator<Item = Step> {
    LINKS.iter().map(move |(name, target)| Step::MakeLink {
        slot,
        name: (*name).to_owned(),
        target: (*target).to_owned(),
    })
}

/// The default devices, then the spec's; one of the spec replaces a default of its name.
fn devices(linux: &Linux) -> Result<Vec<Device>, CompileError> {
    let default = |(name, major, minor): &(&str, u32, u32)| Device {
        name: (*name).to_owned(),
        kind: DeviceKind::Character,
        major: *major,
        minor: *minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    let mut devices: Vec<Device> = DEVICES.iter().map(default).collect();
    for listed in linux.devices().iter().flatten() {
        let path = clean(listed.path());
        let field = "linux.devices[].path";
        let name = path
            .strip_prefix("/dev")
            .ok()
            .and_then(|name| name.to_str())
            .filter(|name| !name.is_empty())
            .ok_or_else(|| invalid(field, listed.path(), "is not below /dev"))?;
        let kind = match listed.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
            LinuxDeviceType::B => DeviceKind::Block,
            LinuxDeviceType::P => DeviceKind::Fifo,
            LinuxDeviceType::A => return Err(invalid("linux.devices[].type", listed.path(), "cannot be a")),
        };
        let number = |value: i64| {
            u32::try_from(value).map_err(|_| invalid("linux.devices[].major", listed.path(), "is no number"))
        };
        let device = Device {
            name: name.to_owned(),
            kind,
            major: number(listed.major())?,
            minor: number(listed.minor())?,
            mode: listed.file_mode().unwrap_or(0o666) & 0o7777,
            uid: listed.uid().unwrap_or(0),
            gid: listed.gid().unwrap_or(0),
        };
        devices.retain(|known| known.name != device.name);
        devices.push(device);
    }
    Ok(devices)
}

/// An absolute path without `.` and `..`, as text: what links there are is decided inside the root later.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

fn invalid(field: &str, value: &Path, problem: &'static str) -> CompileError {
    CompileError::Invalid { field: field.to_owned(), value: value.display().to_string(), problem }
}

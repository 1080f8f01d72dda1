//! The mounts of a container, its devices, and what is covered in them.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Mount, Spec};

use crate::plan::{Attributes, Device, DeviceKind, Mappings, Namespace, Propagation, Slot, Source, Step};

use super::mount_options::{self, MountOptions, NODEV, NOEXEC, NOSUID, RDONLY};
use super::namespaces::{self, Namespaces};
use super::{CgroupView, CompileError, Options, Slots, unsupported};

/// Steps for a container's mounts, by when they are carried out.
pub(super) struct Mounts<'a> {
    options: &'a Options,
    namespaces: &'a Namespaces,
    /// Files of the host are reached by the caller, not by the root of a user namespace.
    by_caller: bool,
    /// By the caller.
    pub(super) outside: Vec<Step>,
    /// While the host's files can be seen.
    pub(super) make: Vec<Step>,
    /// When the root has been placed.
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
    pub(super) fn new(options: &'a Options, namespaces: &'a Namespaces, by_caller: bool) -> Mounts<'a> {
        Mounts {
            options,
            namespaces,
            by_caller,
            outside: vec![],
            make: vec![],
            attach: vec![],
            cover: vec![],
        }
    }

    pub(super) fn make(&mut self, spec: &Spec, linux: &Linux, slots: &mut Slots) -> Result<(), CompileError> {
        let (devices, elsewhere) = devices(linux)?;
        let mut devices_pending = true;
        for (index, mount) in spec.mounts().iter().flatten().enumerate() {
            let field = format!("mounts[{index}]");
            let target = clean(mount.destination());
            if target == Path::new("/") {
                return Err(invalid(&field, mount.destination(), "is the root itself"));
            }
            let parsed = mount_options::parse(mount.options().as_deref().unwrap_or_default(), &field)?;
            let is_dev = target == Path::new("/dev");
            if parsed.remount {
                self.remount(target, &parsed);
            } else if parsed.bind.is_some() || mount.typ().as_deref() == Some("bind") {
                // Whoever binds a whole /dev wants that one as it is.
                devices_pending &= !is_dev;
                self.bind(mount, linux, target, &parsed, &field, slots)?;
            } else if mount.uid_mappings().is_some() || parsed.idmap.is_some() {
                return Err(unsupported(format!("{field}.uidMappings"), ": only for bind mounts"));
            } else if matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")) {
                self.cgroup(target, &parsed, &field, slots)?;
            } else {
                self.filesystem(mount, linux, target.clone(), &parsed, is_dev, &field, slots)?;
                if is_dev {
                    devices_pending = false;
                    self.devices_of_tmpfs(&devices, &parsed, slots)?;
                }
            }
        }
        if devices_pending {
            let slot = slots.next()?;
            self.attach.push(Step::OpenDirectory { slot, path: PathBuf::from("/dev") });
            self.devices_in(slot, Path::new("/dev"), &devices, slots)?;
            self.attach.extend(links(slot));
        }
        if !elsewhere.is_empty() {
            let slot = slots.next()?;
            self.attach.push(Step::OpenDirectory { slot, path: PathBuf::from("/") });
            self.devices_in(slot, Path::new("/"), &elsewhere, slots)?;
        }
        self.covers(linux, slots)
    }

    /// Devices in a directory of the placed root: made, or the host's where a user namespace may make none.
    fn devices_in(
        &mut self,
        directory: Slot,
        path: &Path,
        devices: &[Device],
        slots: &mut Slots,
    ) -> Result<(), CompileError> {
        for device in devices {
            if self.namespaces.users() && device.kind != DeviceKind::Fifo {
                let slot = slots.next()?;
                self.host_step(Step::BindDevice { slot, device: device.clone() });
                self.attach.push(Step::Attach { slot, target: path.join(&device.name) });
            } else {
                self.attach.push(Step::MakeDevice { slot: directory, device: device.clone() });
            }
        }
        Ok(())
    }

    /// What the /dev that was just made gets, and then, if it is to be read-only, that.
    fn devices_of_tmpfs(
        &mut self,
        devices: &[Device],
        options: &MountOptions,
        slots: &mut Slots,
    ) -> Result<(), CompileError> {
        let Some(Step::Attach { slot, target }) = self.attach.pop() else { return Ok(()) };
        let read_only = options.attributes.set & RDONLY != 0;
        if read_only {
            // Once /dev/console is in it, too.
            let attributes = Attributes { set: RDONLY, clear: 0 };
            self.cover.push(Step::Remount { target: target.clone(), attributes, recursive: false });
        }
        if self.namespaces.users() {
            // Mounts can be put on it only where it is attached.
            self.attach.push(Step::Attach { slot, target: target.clone() });
            self.devices_in(slot, &target, devices, slots)?;
            self.make.extend(links(slot));
            self.make.extend(directories(slot));
        } else {
            self.make.extend(devices.iter().cloned().map(|device| Step::MakeDevice { slot, device }));
            self.make.extend(links(slot));
            self.make.extend(directories(slot));
            self.attach.push(Step::Attach { slot, target });
        }
        Ok(())
    }

    /// A step on files of the host.
    fn host_step(&mut self, step: Step) {
        if self.by_caller { self.outside.push(step) } else { self.make.push(step) }
    }

    /// New attributes for what is already mounted at a path.
    fn remount(&mut self, target: PathBuf, options: &MountOptions) {
        let change = |attributes: Attributes, recursive| {
            (attributes != Attributes::default()).then(|| Step::Remount {
                target: target.clone(),
                attributes,
                recursive,
            })
        };
        self.attach.extend(change(options.attributes, false));
        self.attach.extend(change(options.recursive_attributes, true));
    }

    fn bind(
        &mut self,
        mount: &Mount,
        linux: &Linux,
        target: PathBuf,
        options: &MountOptions,
        field: &str,
        slots: &mut Slots,
    ) -> Result<(), CompileError> {
        let path = mount.source().clone().ok_or(CompileError::Missing { field: "mounts[].source" })?;
        let source = match self.options.confine.get(mount.destination()) {
            None => Source { path, beneath: None },
            Some(base) => match path.strip_prefix(base) {
                Ok(rest) => Source { path: rest.to_owned(), beneath: Some(base.clone()) },
                Err(_) => return Err(invalid(&format!("{field}.source"), &path, "is not below its volume")),
            },
        };
        let slot = slots.next()?;
        let recursive = options.bind == Some(true);
        let mappings = mappings_of(mount, linux, options, field)?;
        let bind = Step::Bind { slot, source, recursive };
        if self.by_caller || mappings.is_some() {
            self.outside.push(bind);
            if let Some(mappings) = mappings {
                let recursive = options.idmap == Some(true);
                self.outside.push(Step::MapIds { slot, mappings, recursive });
            }
            // As IsolateMounts does for what is copied inside: nothing that is mounted below goes to the host.
            self.outside.push(Step::SetAttributes {
                slot,
                attributes: Default::default(),
                propagation: Some(Propagation::Slave),
                recursive: true,
            });
            self.outside.extend(changes(slot, options));
        } else {
            self.make.push(bind);
            self.make.extend(changes(slot, options));
        }
        self.attach.push(Step::Attach { slot, target });
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "each is one part of the mount")]
    fn filesystem(
        &mut self,
        mount: &Mount,
        linux: &Linux,
        target: PathBuf,
        options: &MountOptions,
        is_dev: bool,
        field: &str,
        slots: &mut Slots,
    ) -> Result<(), CompileError> {
        let kind = mount.typ().clone().filter(|kind| !kind.is_empty()).ok_or_else(|| {
            invalid(&format!("{field}.type"), mount.destination(), "has neither a type nor bind")
        })?;
        let source = mount.source().as_ref().map_or_else(|| kind.clone(), |s| s.display().to_string());
        let slot = slots.next()?;
        // A /dev that is to be read-only becomes so once its devices are in it, a copy once it is made.
        let later = is_dev || options.copy_up;
        let attributes = options.attributes.set & if later { !RDONLY } else { !0 };
        if options.copy_up {
            if kind != "tmpfs" {
                return Err(unsupported(format!("{field}.options: tmpcopyup"), ": only for tmpfs"));
            }
            self.attach.push(Step::CopyUp { slot, path: target.clone() });
            if options.attributes.set & RDONLY != 0 {
                self.attach.push(Step::SetAttributes {
                    slot,
                    attributes: Attributes { set: RDONLY, clear: 0 },
                    propagation: None,
                    recursive: false,
                });
            }
        }
        let mut data = options.data.clone();
        if kind == "tmpfs" && !options.copy_up && data.iter().all(|(key, _)| key != "mode") {
            self.attach.push(Step::CopyMode { slot, path: target.clone() });
        }
        let label = linux.mount_label().clone().filter(|label| !label.is_empty());
        if let Some(label) = label.filter(|_| !["proc", "sysfs"].contains(&kind.as_str())) {
            data.push(("context".to_owned(), Some(label)));
        }
        if ["proc", "sysfs"].contains(&kind.as_str()) {
            self.attach.push(Step::NoLink { path: target.clone() });
        }
        self.make.push(Step::Filesystem { slot, kind, source, options: data, attributes });
        let rest = MountOptions { attributes: Default::default(), ..options.clone() };
        self.make.extend(changes(slot, &rest));
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
        if !self.namespaces.has(Namespace::Cgroup) {
            return self.cgroup_by_binds(target, options, field, slots);
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

    /// Without a cgroup namespace: the container's own directories in place of the hierarchies.
    fn cgroup_by_binds(
        &mut self,
        target: PathBuf,
        options: &MountOptions,
        field: &str,
        slots: &mut Slots,
    ) -> Result<(), CompileError> {
        let cgroup = &self.options.cgroup;
        let attributes = Attributes { set: options.attributes.set, clear: 0 };
        let mut bind = |mounts: &mut Self, source: &Path, target: PathBuf| -> Result<(), CompileError> {
            let slot = slots.next()?;
            let source = Source { path: source.to_owned(), beneath: None };
            mounts.host_step(Step::Bind { slot, source, recursive: false });
            mounts.host_step(Step::SetAttributes { slot, attributes, propagation: None, recursive: false });
            mounts.attach.push(Step::Attach { slot, target });
            Ok(())
        };
        let names = match &self.options.cgroup_view {
            CgroupView::Unified => {
                let own = cgroup.unified.as_deref().ok_or_else(|| {
                    unsupported(format!("{field}.type: cgroup"), " without a cgroup of its own")
                })?;
                return bind(self, own, target);
            }
            CgroupView::Legacy(names) => names,
        };
        let own = |name: &str| {
            cgroup
                .legacy
                .iter()
                .find(|dir| dir.ancestors().any(|above| above.file_name() == Some(name.as_ref())))
        };
        let dirs: Vec<(&String, &PathBuf)> =
            names.iter().filter_map(|name| own(name).map(|dir| (name, dir))).collect();
        for (name, dir) in &dirs {
            bind(self, dir, target.join(name))?;
        }
        let binds = self.attach.split_off(self.attach.len() - dirs.len());
        let slot = slots.next()?;
        self.make.push(Step::Filesystem {
            slot,
            kind: "tmpfs".to_owned(),
            source: "cgroup".to_owned(),
            options: vec![("mode".to_owned(), Some("755".to_owned()))],
            attributes: options.attributes.set & !RDONLY,
        });
        self.make.extend(dirs.iter().map(|(name, _)| Step::MakeDirectory {
            slot,
            name: (*name).clone(),
            mode: 0o755,
        }));
        self.attach.push(Step::Attach { slot, target: target.clone() });
        self.attach.extend(binds);
        if options.attributes.set & RDONLY != 0 {
            let attributes = Attributes { set: RDONLY, clear: 0 };
            self.attach.push(Step::Remount { target, attributes, recursive: false });
        }
        Ok(())
    }

    fn covers(&mut self, linux: &Linux, slots: &mut Slots) -> Result<(), CompileError> {
        let paths = |field: &str, listed: &Option<Vec<String>>| -> Result<Vec<PathBuf>, CompileError> {
            let paths = listed.iter().flatten().map(Path::new);
            paths
                .map(|path| if path.is_absolute() { Ok(clean(path)) } else { Err(relative(field, path)) })
                .collect()
        };
        let masked = paths("linux.maskedPaths", linux.masked_paths())?;
        if !masked.is_empty() {
            let (null, empty) = (slots.next()?, slots.next()?);
            self.host_step(Step::OpenNull { slot: null });
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
        let read_only = paths("linux.readonlyPaths", linux.readonly_paths())?;
        if !read_only.is_empty() {
            self.cover.push(Step::ReadOnly { paths: read_only });
        }
        Ok(())
    }
}

/// What the kernel passes over, in words: data for a file system, where a bind mount brings one that is mounted.
pub(super) fn passed_over(mounts: &[Mount]) -> Vec<String> {
    let mut words = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let field = format!("mounts[{index}]");
        let options = mount.options().as_deref().unwrap_or_default();
        let Ok(parsed) = mount_options::parse(options, &field) else { continue };
        if parsed.bind.is_some() || mount.typ().as_deref() == Some("bind") {
            words.extend(
                parsed
                    .data
                    .iter()
                    .map(|(key, _)| format!("{field}.options: {key} is nothing to a bind mount")),
            );
        }
    }
    words
}

fn changes(slot: Slot, options: &MountOptions) -> Vec<Step> {
    let change = |attributes: Attributes, propagation: Option<Propagation>, recursive| {
        let changes = attributes != Default::default() || propagation.is_some();
        changes.then_some(Step::SetAttributes { slot, attributes, propagation, recursive })
    };
    let propagation = options
        .propagation
        .and_then(|(propagation, recursive)| change(Default::default(), Some(propagation), recursive));
    [change(options.attributes, None, false), change(options.recursive_attributes, None, true), propagation]
        .into_iter()
        .flatten()
        .collect()
}

/// How a bind mount's owners are shown, where that is not as they are.
fn mappings_of(
    mount: &Mount,
    linux: &Linux,
    options: &MountOptions,
    field: &str,
) -> Result<Option<Mappings>, CompileError> {
    let own = (mount.uid_mappings().as_deref(), mount.gid_mappings().as_deref());
    let container = (linux.uid_mappings().as_deref(), linux.gid_mappings().as_deref());
    let (uids, gids) = match (own, options.idmap) {
        ((None, None), None) => return Ok(None),
        ((None, None), Some(_)) => container,
        (own, _) => own,
    };
    match (uids, gids) {
        (Some(uids), Some(gids)) if !uids.is_empty() && !gids.is_empty() => {
            Ok(Some(Mappings { uids: namespaces::mappings(uids), gids: namespaces::mappings(gids) }))
        }
        _ => Err(unsupported(format!("{field}.uidMappings"), " without mappings for both users and groups")),
    }
}

/// Mount points that are wanted in nearly every /dev.
fn directories(slot: Slot) -> impl Iterator<Item = Step> {
    ["pts", "shm", "mqueue"].into_iter().map(move |name| Step::MakeDirectory {
        slot,
        name: name.to_owned(),
        mode: 0o755,
    })
}

fn links(slot: Slot) -> impl Iterator<Item = Step> {
    LINKS.iter().map(move |(name, target)| Step::MakeLink {
        slot,
        name: (*name).to_owned(),
        target: (*target).to_owned(),
    })
}

/// Those in /dev (the default ones, then the spec's; one of the spec replaces a default of its name), and those
/// elsewhere.
fn devices(linux: &Linux) -> Result<(Vec<Device>, Vec<Device>), CompileError> {
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
    let mut elsewhere: Vec<Device> = Vec::new();
    for listed in linux.devices().iter().flatten() {
        let path = clean(listed.path());
        let (list, below) =
            if path.starts_with("/dev") { (&mut devices, "/dev") } else { (&mut elsewhere, "/") };
        let name = path.strip_prefix(below).ok().and_then(|name| name.to_str());
        let name = name
            .filter(|name| !name.is_empty())
            .ok_or_else(|| invalid("linux.devices[].path", listed.path(), "names no device"))?;
        // Always the link to the container's own devpts (OCI: "default devices").
        if below == "/dev" && name == "ptmx" {
            continue;
        }
        let device = device(listed, name)?;
        list.retain(|known| known.name != device.name);
        list.push(device);
    }
    Ok((devices, elsewhere))
}

fn device(listed: &LinuxDevice, name: &str) -> Result<Device, CompileError> {
    let kind = match listed.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => return Err(invalid("linux.devices[].type", listed.path(), "cannot be a")),
    };
    let number = |value: i64| {
        u32::try_from(value).map_err(|_| invalid("linux.devices[].major", listed.path(), "is no number"))
    };
    Ok(Device {
        name: name.to_owned(),
        kind,
        major: number(listed.major())?,
        minor: number(listed.minor())?,
        mode: listed.file_mode().unwrap_or(0o666) & 0o7777,
        uid: listed.uid().unwrap_or(0),
        gid: listed.gid().unwrap_or(0),
    })
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

fn relative(field: &str, path: &Path) -> CompileError {
    invalid(field, path, "is not absolute")
}

fn invalid(field: &str, value: &Path, problem: &'static str) -> CompileError {
    CompileError::Invalid { field: field.to_owned(), value: value.display().to_string(), problem }
}

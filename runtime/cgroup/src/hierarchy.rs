//! Which cgroup hierarchies this host has, and which of them holds each controller.
//!
//! Invariant: a controller has exactly one place. The kernel binds it either to one v1 hierarchy or to v2,
//! never to both (cgroups(7)); what a v2 tree offers is what its root's `cgroup.controllers` lists.
//!
//! | host | v2 tree | controllers |
//! |---|---|---|
//! | v2 | `/sys/fs/cgroup` | all in v2 |
//! | hybrid | `/sys/fs/cgroup/unified` | v1; those that no v1 mount took (often hugetlb) in v2 |
//! | v1 | none | all in v1 |

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::file;

const MOUNTINFO: &str = "/proc/self/mountinfo";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    V2,
    Hybrid,
    V1,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::V2 => "v2",
            Kind::Hybrid => "hybrid",
            Kind::V1 => "v1",
        })
    }
}

/// The controllers that this crate sets limits with or reads figures from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    Memory,
    Cpu,
    Pids,
    Cpuset,
    Devices,
    Blkio,
    Hugetlb,
    Freezer,
    Cpuacct,
    NetCls,
    NetPrio,
    Rdma,
}

impl Controller {
    pub const ALL: [Controller; 12] = [
        Controller::Memory,
        Controller::Cpu,
        Controller::Pids,
        Controller::Cpuset,
        Controller::Devices,
        Controller::Blkio,
        Controller::Hugetlb,
        Controller::Freezer,
        Controller::Cpuacct,
        Controller::NetCls,
        Controller::NetPrio,
        Controller::Rdma,
    ];

    /// Its name in a v1 mount's options.
    pub fn v1_name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
            Controller::Pids => "pids",
            Controller::Cpuset => "cpuset",
            Controller::Devices => "devices",
            Controller::Blkio => "blkio",
            Controller::Hugetlb => "hugetlb",
            Controller::Freezer => "freezer",
            Controller::Cpuacct => "cpuacct",
            Controller::NetCls => "net_cls",
            Controller::NetPrio => "net_prio",
            Controller::Rdma => "rdma",
        }
    }

    /// Its name in `cgroup.controllers`; `None` for what v2 does without a controller (devices by eBPF,
    /// freezing and cpu accounting in the core) or not at all.
    pub fn v2_name(self) -> Option<&'static str> {
        match self {
            Controller::Memory => Some("memory"),
            Controller::Cpu => Some("cpu"),
            Controller::Pids => Some("pids"),
            Controller::Cpuset => Some("cpuset"),
            Controller::Blkio => Some("io"),
            Controller::Hugetlb => Some("hugetlb"),
            Controller::Rdma => Some("rdma"),
            Controller::Devices
            | Controller::Freezer
            | Controller::Cpuacct
            | Controller::NetCls
            | Controller::NetPrio => None,
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.v1_name())
    }
}

/// Where a controller is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Mount point of its v1 hierarchy; co-mounted controllers (`cpu,cpuacct`) share one.
    V1(PathBuf),
    V2,
}

/// The host's cgroup mounts. Cheap to share (`Arc`), never changes during the life of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    v2: Option<PathBuf>,
    places: BTreeMap<Controller, Place>,
}

impl Hierarchy {
    /// Reads `/proc/self/mountinfo` and the v2 root's `cgroup.controllers`.
    pub fn detect() -> Result<Hierarchy> {
        let mounts = file::read(Path::new(MOUNTINFO))?;
        let mounts = CgroupMounts::parse(&mounts);
        let offered = match &mounts.v2 {
            Some(root) => file::read(&root.join("cgroup.controllers"))?,
            None => String::new(),
        };
        Hierarchy::from_mounts(mounts, &offered)
            .ok_or_else(|| Error::NotMounted { mountinfo: PathBuf::from(MOUNTINFO) })
    }

    fn from_mounts(mounts: CgroupMounts, offered_by_v2: &str) -> Option<Hierarchy> {
        let mut places: BTreeMap<Controller, Place> =
            mounts.v1.into_iter().map(|(controller, root)| (controller, Place::V1(root))).collect();
        for controller in Controller::ALL {
            let offered = controller
                .v2_name()
                .is_some_and(|name| offered_by_v2.split_whitespace().any(|offered| offered == name));
            if offered {
                places.entry(controller).or_insert(Place::V2);
            }
        }
        if mounts.v2.is_none() && places.is_empty() {
            return None;
        }
        Some(Hierarchy { v2: mounts.v2, places })
    }

    pub fn kind(&self) -> Kind {
        let any_v1 = self.places.values().any(|place| matches!(place, Place::V1(_)));
        match (&self.v2, any_v1) {
            (Some(_), false) => Kind::V2,
            (Some(_), true) => Kind::Hybrid,
            (None, _) => Kind::V1,
        }
    }

    /// Mount point of the v2 tree: processes are tracked, killed and frozen there, and eBPF attaches there.
    pub fn v2_root(&self) -> Option<&Path> {
        self.v2.as_deref()
    }

    pub fn place(&self, controller: Controller) -> Option<&Place> {
        self.places.get(&controller)
    }

    /// Mount points of every v1 hierarchy, each once.
    pub fn v1_roots(&self) -> Vec<&Path> {
        let mut roots: Vec<&Path> = self
            .places
            .values()
            .filter_map(|place| match place {
                Place::V1(root) => Some(root.as_path()),
                Place::V2 => None,
            })
            .collect();
        roots.sort_unstable();
        roots.dedup();
        roots
    }

    /// Controllers of v2, as `cgroup.subtree_control` names them.
    pub(crate) fn v2_controllers(&self) -> impl Iterator<Item = &'static str> {
        self.places
            .iter()
            .filter(|(_, place)| matches!(place, Place::V2))
            .filter_map(|(controller, _)| controller.v2_name())
    }
}

/// The cgroup lines of a mountinfo text.
struct CgroupMounts {
    v2: Option<PathBuf>,
    v1: Vec<(Controller, PathBuf)>,
}

impl CgroupMounts {
    /// proc_pid_mountinfo(5): `id parent dev root mountpoint options [optional…] - fstype source superoptions`.
    /// The first mount of a hierarchy wins: later ones are bind mounts of parts of it.
    fn parse(mountinfo: &str) -> CgroupMounts {
        let mut mounts = CgroupMounts { v2: None, v1: Vec::new() };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mountpoint) = left.split(' ').nth(4).map(unescape) else { continue };
            let mut right = right.split(' ');
            let (fstype, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
            match fstype {
                "cgroup2" if mounts.v2.is_none() => mounts.v2 = Some(mountpoint),
                "cgroup" => {
                    for controller in Controller::ALL {
                        let bound = options.split(',').any(|option| option == controller.v1_name());
                        if bound && !mounts.v1.iter().any(|(known, _)| *known == controller) {
                            mounts.v1.push((controller, mountpoint.clone()));
                        }
                    }
                }
                _ => {}
            }
        }
        mounts
    }
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                plain.push(value);
                rest = &tail[3..];
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURE_V2: &str = "\
24 1 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
36 35 0:30 /kubepods /sys/fs/cgroup/again rw - cgroup2 cgroup2 rw
";
    const FIRECRACKER_HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const OLD_SYSTEMD_V1: &str = "\
30 23 0:25 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:26 / /sys/fs/cgroup/systemd rw shared:10 - cgroup cgroup rw,xattr,name=systemd
33 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct
34 30 0:29 / /sys/fs/cgroup/net_cls,net_prio rw shared:12 - cgroup cgroup rw,net_cls,net_prio
";
    const ESCAPED: &str = "35 24 0:30 / /mnt/my\\040cgroups rw - cgroup2 cgroup2 rw\n";

    fn v1(root: &str) -> Option<Place> {
        Some(Place::V1(PathBuf::from(root)))
    }

    #[test]
    fn detect_table() {
        struct Case {
            name: &'static str,
            mountinfo: &'static str,
            offered: &'static str,
            kind: Option<Kind>,
            v2: Option<&'static str>,
            places: Vec<(Controller, Option<Place>)>,
        }
        let cases = [
            Case {
                name: "pure v2",
                mountinfo: PURE_V2,
                offered: "cpuset cpu io memory hugetlb pids rdma misc\n",
                kind: Some(Kind::V2),
                v2: Some("/sys/fs/cgroup"),
                places: vec![
                    (Controller::Memory, Some(Place::V2)),
                    (Controller::Blkio, Some(Place::V2)),
                    (Controller::Devices, None),
                ],
            },
            Case {
                name: "hybrid: what no v1 mount took is in v2",
                mountinfo: FIRECRACKER_HYBRID,
                offered: "hugetlb\n",
                kind: Some(Kind::Hybrid),
                v2: Some("/sys/fs/cgroup/unified"),
                places: vec![
                    (Controller::Cpu, v1("/sys/fs/cgroup/cpu")),
                    (Controller::Cpuset, None),
                    (Controller::Hugetlb, Some(Place::V2)),
                ],
            },
            Case {
                name: "v1 with co-mounted controllers",
                mountinfo: OLD_SYSTEMD_V1,
                offered: "",
                kind: Some(Kind::V1),
                v2: None,
                places: vec![
                    (Controller::Cpu, v1("/sys/fs/cgroup/cpu,cpuacct")),
                    (Controller::Cpuacct, v1("/sys/fs/cgroup/cpu,cpuacct")),
                    (Controller::NetPrio, v1("/sys/fs/cgroup/net_cls,net_prio")),
                ],
            },
            Case {
                name: "a mount point with a space",
                mountinfo: ESCAPED,
                offered: "",
                kind: Some(Kind::V2),
                v2: Some("/mnt/my cgroups"),
                places: vec![],
            },
            Case { name: "nothing", mountinfo: "", offered: "", kind: None, v2: None, places: vec![] },
        ];
        for case in cases {
            let found = Hierarchy::from_mounts(CgroupMounts::parse(case.mountinfo), case.offered);
            assert_eq!(found.as_ref().map(Hierarchy::kind), case.kind, "{}", case.name);
            let Some(found) = found else { continue };
            assert_eq!(found.v2_root(), case.v2.map(Path::new), "{}", case.name);
            for (controller, expect) in case.places {
                assert_eq!(found.place(controller), expect.as_ref(), "{}: {controller}", case.name);
            }
        }
    }

    #[test]
    fn co_mounted_controllers_are_one_root() {
        let found = Hierarchy::from_mounts(CgroupMounts::parse(OLD_SYSTEMD_V1), "").expect("has mounts");
        let roots: Vec<_> = found.v1_roots().into_iter().map(Path::to_path_buf).collect();
        assert_eq!(roots.len(), 2, "{roots:?}");
    }
}

/// Hosts that other tests plan for.
#[cfg(test)]
pub(crate) mod tests_support {
    use super::*;

    pub(crate) fn all_v1() -> Hierarchy {
        let places = Controller::ALL
            .into_iter()
            .map(|c| (c, Place::V1(PathBuf::from("/sys/fs/cgroup").join(c.v1_name()))))
            .collect();
        Hierarchy { v2: None, places }
    }

    pub(crate) fn all_v2() -> Hierarchy {
        let places =
            Controller::ALL.into_iter().filter(|c| c.v2_name().is_some()).map(|c| (c, Place::V2)).collect();
        Hierarchy { v2: Some(PathBuf::from("/sys/fs/cgroup")), places }
    }

    pub(crate) fn hybrid_without(missing: Controller) -> Hierarchy {
        let mut hierarchy = all_v1();
        hierarchy.v2 = Some(PathBuf::from("/sys/fs/cgroup/unified"));
        hierarchy.places.remove(&missing);
        hierarchy
    }
}

//! Whether packets at the uplink meet a program in the driver (XDP) before they meet the classifier there (tcx).
//!
//! ```text
//!  off ─────────────────────────────────────────► tcx
//!  auto ── no physical device ──────────────────► tcx
//!    │
//!  native ─┴─ another's program there, or the driver refuses ──► tcx, and it is said
//!                      └─ else ─────────────────► XDP, then tcx for what XDP leaves
//! ```
//! Never in generic mode: there the kernel has made a socket buffer already, and first makes it writable and linear
//! for the program, which costs more than the classifier saves.

use std::{error::Error, fmt, io, str::FromStr};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
};
use pith_netlink::{Request, Rtnl};

use crate::datapath::DatapathError;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xdp {
    /// In the driver of a physical device; tcx elsewhere.
    #[default]
    Auto,
    /// In the driver, whatever the device is.
    Native,
    Off,
}

impl FromStr for Xdp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "off" => Ok(Self::Off),
            other => Err(format!("{other} is none of auto, native and off")),
        }
    }
}

/// Why packets at the uplink meet tcx alone.
#[derive(Debug)]
pub enum NoXdp {
    Off,
    /// Auto, and the device is not physical.
    Virtual {
        kind: String,
    },
    /// A program of somebody else is attached.
    Taken {
        program: Option<u32>,
    },
    /// The program does not load.
    Load(Box<DatapathError>),
    /// The kernel or the driver does not attach it.
    Refused(io::Error),
}

impl fmt::Display for NoXdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("--xdp off"),
            Self::Virtual { kind } => write!(
                f,
                "{kind}, not a physical device: packets of senders on the same machine come without checksums there. \
                 --xdp native has it all the same"
            ),
            Self::Taken { program } => {
                f.write_str("another XDP program is attached")?;
                program.map_or(Ok(()), |id| write!(f, " (`bpftool prog show id {id}`)"))
            }
            Self::Load(error) => {
                write!(f, "the kernel does not take the program: {error}")?;
                error.source().map_or(Ok(()), |source| write!(f, ": {source}"))
            }
            Self::Refused(error) => match error.raw_os_error() {
                Some(libc::EOPNOTSUPP) => f.write_str("its driver has no XDP"),
                Some(libc::ERANGE | libc::EINVAL) => {
                    write!(f, "its driver refuses: {error}; the MTU or an offload (LRO, GRO-HW) may be why")
                }
                _ => write!(f, "its driver refuses: {error}"),
            },
        }
    }
}

/// Buses of devices that the host of a virtual machine makes up: with XDP their drivers do without merged segments and
/// checksums that the host would spare them, which costs everything else that the machine receives.
const HOSTS_BUSES: [&str; 3] = ["virtio", "vmbus", "xen"];

/// What is known of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// `None` for a physical one.
    pub(crate) kind: Option<String>,
    /// An XDP program is attached, of which the number may be known.
    pub(crate) attached: Option<Option<u32>>,
}

/// Whether to attach; `ours` where the program that is attached was attached by a former process of ours.
pub(crate) fn plan(wanted: Xdp, device: &Device, ours: bool) -> Result<(), NoXdp> {
    match (wanted, &device.kind, device.attached) {
        (Xdp::Off, _, _) => Err(NoXdp::Off),
        (Xdp::Auto, Some(kind), _) => Err(NoXdp::Virtual { kind: kind.clone() }),
        (_, _, Some(program)) if !ours => Err(NoXdp::Taken { program }),
        (Xdp::Auto | Xdp::Native, _, _) => Ok(()),
    }
}

/// Asks the kernel for an interface of this network namespace.
pub(crate) fn device(index: u32) -> io::Result<Device> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let request = Request::set("an interface", RouteNetlinkMessage::GetLink(message));
    let answers = Rtnl::open().and_then(|mut rtnl| rtnl.batch(vec![request])).map_err(io::Error::other)?;
    answers
        .into_iter()
        .find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(read(&link.attributes)),
            _ => None,
        })
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

fn read(attributes: &[LinkAttribute]) -> Device {
    let mut kind = None;
    let mut bus = None;
    let mut attached = None;
    for attribute in attributes {
        match attribute {
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            // Since Linux 5.14: what hangs on a bus.
            LinkAttribute::ParentDevBusName(name) => bus = Some(name.as_str()),
            LinkAttribute::Xdp(xdp) => {
                let any = xdp.iter().any(|part| {
                    matches!(part, LinkXdp::Attached(attached) if !matches!(attached, XdpAttached::None))
                });
                let program = xdp.iter().find_map(|part| match part {
                    LinkXdp::ProgId(id) => Some(*id),
                    _ => None,
                });
                attached = any.then_some(program);
            }
            _ => {}
        }
    }
    let kind = kind.or_else(|| match bus {
        None => Some("on no bus".to_owned()),
        Some(bus) if HOSTS_BUSES.contains(&bus) => Some(bus.to_owned()),
        Some(_) => None,
    });
    Device { kind, attached }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::InfoKind;

    use super::*;

    #[test]
    fn devices_table() {
        let kind = |kind: InfoKind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
        let on = |bus: &str| LinkAttribute::ParentDevBusName(bus.to_owned());
        let bus = || on("pci");
        let none = || LinkAttribute::Xdp(vec![LinkXdp::Attached(XdpAttached::None)]);
        let some = |mode| LinkAttribute::Xdp(vec![LinkXdp::Attached(mode), LinkXdp::ProgId(7)]);
        let cases = [
            ("a network card", vec![bus(), none()], None, None),
            ("with a program", vec![bus(), some(XdpAttached::Driver)], None, Some(Some(7))),
            ("with a generic one", vec![bus(), some(XdpAttached::SocketBuffer)], None, Some(Some(7))),
            (
                "with several",
                vec![LinkAttribute::Xdp(vec![LinkXdp::Attached(XdpAttached::Multiple)]), bus()],
                None,
                Some(None),
            ),
            ("veth", vec![kind(InfoKind::Veth), none()], Some("veth"), None),
            ("a bond of cards", vec![kind(InfoKind::Bond)], Some("bond"), None),
            ("a virtual machine's", vec![on("virtio"), none()], Some("virtio"), None),
            ("loopback", vec![none()], Some("on no bus"), None),
        ];
        for (name, attributes, kind, attached) in cases {
            let expect = Device { kind: kind.map(str::to_owned), attached };
            assert_eq!(read(&attributes), expect, "{name}");
        }
    }

    #[test]
    fn plan_table() {
        let card = Device { kind: None, attached: None };
        let taken = Device { attached: Some(Some(7)), ..card.clone() };
        let veth = Device { kind: Some("veth".to_owned()), attached: None };
        let cases = [
            ("off", Xdp::Off, &card, false, Some("--xdp off")),
            ("auto on a card", Xdp::Auto, &card, false, None),
            ("auto on veth", Xdp::Auto, &veth, false, Some("veth, not a physical device")),
            ("native on veth", Xdp::Native, &veth, false, None),
            (
                "auto where there is one",
                Xdp::Auto,
                &taken,
                false,
                Some("another XDP program is attached (`bpftool"),
            ),
            ("native where there is one", Xdp::Native, &taken, false, Some("another XDP program")),
            ("native where ours is", Xdp::Native, &taken, true, None),
            ("off where ours is", Xdp::Off, &taken, true, Some("--xdp off")),
        ];
        for (name, wanted, device, ours, refused) in cases {
            let plan = plan(wanted, device, ours).map_err(|why| why.to_string());
            match (plan, refused) {
                (Ok(()), None) => {}
                (Err(why), Some(begins)) if why.starts_with(begins) => {}
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}

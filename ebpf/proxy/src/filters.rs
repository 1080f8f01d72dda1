//! Programs at an interface as filters of its clsact queueing discipline (tc-bpf(8)).
//!
//! A pod's link comes and goes with its pod, and making a tcx link costs the kernel two RCU grace periods
//! under the lock of all interfaces, some 10 ms each, in which no other pod gets its interface. A filter
//! costs microseconds.
//!
//! A filter is the interface's: it stays when the process ends, and goes with the interface. Nothing has to
//! be pinned. The next process finds it by priority, handle and name and puts its own program in its place,
//! at once (`cls_bpf_change` in net/sched/cls_bpf.c), so that no packet finds the hook empty.
//!
//! Invariant: what others attached stays. The filter's name says whether the queueing discipline was there
//! before it; then that stays too.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use netlink_packet_core::{NetlinkBuffer, NlasIterator, Parseable};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};
use nix::errno::Errno;
use pith_netlink::{Request, Rtnl, RtnlError};

/// Where in the order of an interface's filters ours stand. Who asks for no place is given one behind.
const PRIORITY: u16 = 112;
/// `pith` in ASCII.
const HANDLE: u32 = 0x7069_7468;
/// How names of our filters begin; the program's follows.
const NAME: &str = "pith ";
/// How they end where the queueing discipline was somebody's already.
const GUEST: &str = ", a guest";

/// Size of `struct tcmsg` (include/uapi/linux/rtnetlink.h).
const HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

/// Why a program could not be attached to an interface or taken away from it.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error(transparent)]
    Kernel(#[from] RtnlError),
    #[error(
        "the place of {program} at interface {index} (priority {PRIORITY}, handle {HANDLE:#x}) is taken by {by}"
    )]
    Taken { program: &'static str, index: u32, by: String },
}

impl FilterError {
    /// Whether the interface went before it was reached.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Kernel(error) if error.errno() == Some(Errno::ENODEV))
    }
}

/// A side of an interface, seen from the namespace it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Ingress,
    Egress,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: TcHandle::CLSACT.major, minor }
    }
}

/// A filter of anyone's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub side: Side,
    /// `bpf`, `u32` …
    pub kind: String,
    /// Only those of eBPF programs have one.
    pub name: Option<String>,
    /// Identifier of its eBPF program.
    pub program: Option<u32>,
    priority: u16,
    handle: u32,
}

impl Filter {
    fn in_our_place(&self, side: Side) -> bool {
        (self.side, self.priority, self.handle) == (side, PRIORITY, HANDLE)
    }

    /// The program's name, where the filter is ours.
    fn our_program(&self) -> Option<&str> {
        let name = self.name.as_deref()?.strip_prefix(NAME)?;
        self.in_our_place(self.side).then_some(name.strip_suffix(GUEST).unwrap_or(name))
    }
}

/// The filters at both sides of an interface of this network namespace, in the order in which they run.
pub fn filters(index: u32) -> Result<Vec<Filter>, FilterError> {
    Filters::open()?.at(index)
}

/// A program and where it belongs.
#[derive(Debug)]
pub(crate) struct Classifier {
    pub(crate) name: &'static str,
    pub(crate) side: Side,
    pub(crate) program: OwnedFd,
}

/// The filters of one network namespace.
#[derive(Debug)]
pub(crate) struct Filters(Rtnl);

impl Filters {
    /// Of the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, FilterError> {
        Ok(Self(Rtnl::open()?))
    }

    /// Attaches programs to an interface, in place of those that a former process of ours attached.
    pub(crate) fn attach(&mut self, index: u32, classifiers: &[Classifier]) -> Result<(), FilterError> {
        let what = format!("add clsact to interface {index}");
        let discipline = RouteNetlinkMessage::NewQueueDiscipline(clsact(index));
        let new = match self.0.batch(vec![Request::create(what, discipline)]) {
            Ok(_) => true,
            Err(error) if error.errno() == Some(Errno::EEXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let there = if new { Vec::new() } else { self.at(index)? };
        for classifier in classifiers {
            let what = format!("attach {} to interface {index}", classifier.name);
            let request = match there.iter().find(|filter| filter.in_our_place(classifier.side)) {
                Some(ours) if ours.our_program() == Some(classifier.name) => {
                    Request::set(what, filter(index, classifier, ours.name.clone().unwrap_or_default()))
                }
                Some(other) => {
                    let by = other.name.as_ref().unwrap_or(&other.kind).clone();
                    return Err(FilterError::Taken { program: classifier.name, index, by });
                }
                None => {
                    let guest = if new { "" } else { GUEST };
                    let name = format!("{NAME}{}{guest}", classifier.name);
                    Request::create(what, filter(index, classifier, name))
                }
            };
            self.0.batch(vec![request])?;
        }
        Ok(())
    }

    /// Takes those of our filters away that run one of these programs, and the queueing discipline where
    /// it came with them and nobody else uses it.
    pub(crate) fn remove(&mut self, index: u32, programs: &[u32]) -> Result<(), FilterError> {
        let there = self.at(index)?;
        let is_ours = |filter: &&Filter| {
            filter.our_program().is_some() && filter.program.is_some_and(|id| programs.contains(&id))
        };
        let (ours, others): (Vec<_>, Vec<_>) = there.iter().partition(is_ours);
        let mut requests: Vec<Request> = ours
            .iter()
            .map(|filter| {
                let message = RouteNetlinkMessage::DelTrafficFilter(message(index, filter.side));
                Request::set(format!("take a program away from interface {index}"), message)
            })
            .collect();
        let came_with_us = |filter: &&Filter| filter.name.as_ref().is_some_and(|name| !name.ends_with(GUEST));
        if others.is_empty() && ours.iter().any(came_with_us) {
            let what = format!("take clsact away from interface {index}");
            requests.push(Request::set(what, RouteNetlinkMessage::DelQueueDiscipline(clsact(index))));
        }
        self.0.batch(requests)?;
        Ok(())
    }

    /// All filters at an interface.
    fn at(&mut self, index: u32) -> Result<Vec<Filter>, FilterError> {
        let mut found = Vec::new();
        for side in Side::BOTH {
            let mut message = TcMessage::with_index(index.cast_signed());
            message.header.parent = side.parent();
            let what = format!("list the filters of interface {index}");
            let listed = self.0.dump_unread(&what, RouteNetlinkMessage::GetTrafficFilter(message))?;
            found.extend(listed.iter().filter_map(|message| parse(side, message)));
        }
        Ok(found)
    }
}

fn clsact(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.header.parent = TcHandle::CLSACT;
    message.attributes = vec![TcAttribute::Kind("clsact".into())];
    message
}

/// What every request about our filter at one side says.
fn message(index: u32, side: Side) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.handle = HANDLE.into();
    message.header.parent = side.parent();
    // For packets of all protocols.
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(protocol);
    message.attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.into())];
    message
}

fn filter(index: u32, classifier: &Classifier, name: String) -> RouteNetlinkMessage {
    let mut message = message(index, classifier.side);
    let program = classifier.program.as_fd().as_raw_fd().cast_unsigned();
    let options = [
        TcFilterBpfOption::ProgFd(program),
        TcFilterBpfOption::ProgName(name),
        // What the program returns is the verdict itself.
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    message.attributes.push(TcAttribute::Options(options.map(TcOption::Bpf).into()));
    RouteNetlinkMessage::NewTrafficFilter(message)
}

/// A filter of a list. Only what is looked at here is parsed, since others' may be of any kind.
fn parse(side: Side, message: &[u8]) -> Option<Filter> {
    let message = NetlinkBuffer::new_checked(message).ok()?;
    let body = message.payload();
    let header = TcHeader::parse(body).ok()?;
    let handle = u32::from(header.handle);
    // The kernel lists each priority itself as well.
    if handle == 0 {
        return None;
    }
    let mut filter = Filter {
        side,
        kind: String::new(),
        name: None,
        program: None,
        priority: (header.info >> 16) as u16,
        handle,
    };
    for attribute in NlasIterator::new(body.get(HEADER..)?).filter_map(Result::ok) {
        match attribute.kind() {
            TCA_KIND => {
                let text = attribute.value().split(|byte| *byte == 0).next().unwrap_or_default();
                filter.kind = String::from_utf8_lossy(text).into_owned();
            }
            // The kind comes before its options (`tcf_fill_node` in net/sched/cls_api.c).
            TCA_OPTIONS if filter.kind == TcFilterBpf::KIND => {
                for option in NlasIterator::new(attribute.value()).filter_map(Result::ok) {
                    match TcFilterBpfOption::parse(&option) {
                        Ok(TcFilterBpfOption::ProgName(name)) => filter.name = Some(name),
                        Ok(TcFilterBpfOption::ProgId(id)) => filter.program = Some(id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(filter)
}

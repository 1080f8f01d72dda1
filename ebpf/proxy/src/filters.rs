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

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NlasIterator, Parseable};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};

use crate::netlink::Requests;

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
    #[error("{action} interface {index}")]
    Kernel {
        action: &'static str,
        index: u32,
        #[source]
        source: io::Error,
    },
    #[error(
        "the place of {program} at interface {index} (priority {PRIORITY}, handle {HANDLE:#x}) is taken by {by}"
    )]
    Taken { program: &'static str, index: u32, by: String },
}

impl FilterError {
    fn kernel(action: &'static str, index: u32) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel { action, index, source }
    }

    /// Whether the interface went before it was reached.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Kernel { source, .. } if source.raw_os_error() == Some(libc::ENODEV))
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
    Filters::open().map_err(FilterError::kernel("ask about", index))?.at(index)
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
pub(crate) struct Filters(Requests);

impl Filters {
    /// Of the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Requests::open().map(Self)
    }

    /// Attaches programs to an interface, in place of those that a former process of ours attached.
    pub(crate) fn attach(&mut self, index: u32, classifiers: &[Classifier]) -> Result<(), FilterError> {
        let new = match self
            .0
            .ask(clsact(index, RouteNetlinkMessage::NewQueueDiscipline), NLM_F_CREATE | NLM_F_EXCL)
        {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => false,
            Err(error) => return Err(FilterError::kernel("add clsact to", index)(error)),
        };
        let there = if new { Vec::new() } else { self.at(index)? };
        for classifier in classifiers {
            let (name, flags) = match there.iter().find(|filter| filter.in_our_place(classifier.side)) {
                Some(ours) if ours.our_program() == Some(classifier.name) => (ours.name.clone(), 0),
                Some(other) => {
                    let by = other.name.as_ref().unwrap_or(&other.kind).clone();
                    return Err(FilterError::Taken { program: classifier.name, index, by });
                }
                None => (None, NLM_F_CREATE | NLM_F_EXCL),
            };
            let guest = if new { "" } else { GUEST };
            let name = name.unwrap_or_else(|| format!("{NAME}{}{guest}", classifier.name));
            self.0
                .ask(filter(index, classifier, name), flags)
                .map_err(FilterError::kernel("attach a program to", index))?;
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
        for filter in &ours {
            let message = message(index, filter.side, TcFilterBpf::KIND);
            self.0
                .ask(RouteNetlinkMessage::DelTrafficFilter(message), 0)
                .map_err(FilterError::kernel("take a program away from", index))?;
        }
        let came_with_us = |filter: &&Filter| filter.name.as_ref().is_some_and(|name| !name.ends_with(GUEST));
        if others.is_empty() && ours.iter().any(came_with_us) {
            self.0
                .ask(clsact(index, RouteNetlinkMessage::DelQueueDiscipline), 0)
                .map_err(FilterError::kernel("take clsact away from", index))?;
        }
        Ok(())
    }

    /// All filters at an interface.
    fn at(&mut self, index: u32) -> Result<Vec<Filter>, FilterError> {
        let mut found = Vec::new();
        for side in Side::BOTH {
            let mut message = TcMessage::with_index(index.cast_signed());
            message.header.parent = side.parent();
            let bodies = self
                .0
                .list(RouteNetlinkMessage::GetTrafficFilter(message))
                .map_err(FilterError::kernel("list the filters of", index))?;
            found.extend(bodies.iter().filter_map(|body| parse(side, body)));
        }
        Ok(found)
    }
}

fn clsact(index: u32, request: impl FnOnce(TcMessage) -> RouteNetlinkMessage) -> RouteNetlinkMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.header.parent = TcHandle::CLSACT;
    message.attributes = vec![TcAttribute::Kind("clsact".into())];
    request(message)
}

/// What every request about our filter at one side says.
fn message(index: u32, side: Side, kind: &str) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.handle = HANDLE.into();
    message.header.parent = side.parent();
    // For packets of all protocols.
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(protocol);
    message.attributes = vec![TcAttribute::Kind(kind.into())];
    message
}

fn filter(index: u32, classifier: &Classifier, name: String) -> RouteNetlinkMessage {
    let mut message = message(index, classifier.side, TcFilterBpf::KIND);
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
fn parse(side: Side, body: &[u8]) -> Option<Filter> {
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

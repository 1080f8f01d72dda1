//! Pods' links: which interfaces are pods', and their programs.
//!
//! ```text
//!  kernel: an interface came, went ──► next() ──► PodLinks, on a thread that may block ──► filters
//! ```
//! Every request about an interface waits for the lock of all interfaces, which somebody may hold for
//! milliseconds, and the verifier takes its time for the programs. So this is a task beside the driver, and
//! Services reach the maps meanwhile.
//!
//! Invariant: an interface in `attached` has this process's programs.

use std::{collections::BTreeSet, convert::Infallible, io, panic::resume_unwind, path::Path};

use aya::{maps::MapInfo, programs::loaded_programs};
use nix::net::if_::if_nameindex;
use pith_abi::map_name;
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::{
    bpffs::Pins,
    datapath::{DatapathError, FROM_POD, FROM_POD_DUAL, TO_POD, TO_POD_DUAL},
    filters::{Classifier, FilterError, Filters, Side},
    links::{LinkChange, LinkChanges},
    loaded::Programs,
};

/// The pods' links of one network namespace.
pub(crate) struct PodLinks {
    prefix: String,
    programs: Programs,
    dual: bool,
    /// Loaded with the first pod's link.
    classifiers: Option<[Classifier; 2]>,
    filters: Filters,
    attached: BTreeSet<u32>,
}

impl PodLinks {
    /// Those of the calling thread's network namespace whose names begin with `prefix`. With `dual` packets of IPv6 are
    /// looked at too.
    pub(crate) fn open(prefix: &str, programs: Programs, dual: bool) -> Result<Self, DatapathError> {
        Ok(Self {
            prefix: prefix.to_owned(),
            programs,
            dual,
            classifiers: None,
            filters: Filters::open()?,
            attached: BTreeSet::new(),
        })
    }

    /// Gives programs to all that are there. Does what can be done and returns what could not.
    pub(crate) fn attach_all(&mut self) -> Result<Vec<FilterError>, DatapathError> {
        self.attached.clear();
        let all = if_nameindex().map_err(|error| interfaces(&self.prefix)(error.into()))?;
        let mut failed = Vec::new();
        for link in &all {
            failed.extend(self.is(link.index(), &link.name().to_string_lossy())?);
        }
        Ok(failed)
    }

    /// An interface is there. Returns what is wrong with that one.
    fn is(&mut self, index: u32, name: &str) -> Result<Option<FilterError>, DatapathError> {
        if !name.starts_with(&self.prefix) || self.attached.contains(&index) {
            return Ok(None);
        }
        let classifiers = match &mut self.classifiers {
            Some(loaded) => loaded,
            none => none.insert(load(&self.programs, self.dual)?),
        };
        match self.filters.attach(index, classifiers) {
            Ok(()) => {
                self.attached.insert(index);
                Ok(None)
            }
            // The kernel says so next.
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Ok(Some(error)),
        }
    }

    fn take(&mut self, changes: Vec<LinkChange>) -> Result<(), DatapathError> {
        let mut failed = Vec::new();
        for change in changes {
            match change {
                LinkChange::Is { index, name } => failed.extend(self.is(index, &name)?),
                LinkChange::Gone { index } => drop(self.attached.remove(&index)),
                LinkChange::Missed => failed.extend(self.attach_all()?),
            }
        }
        for error in failed {
            // Its pod works, without what only raw sockets and pings of Services need; the next change of
            // the interface is the next attempt.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            warn!(%error, cause, "a pod's link is without programs");
        }
        Ok(())
    }
}

fn load(programs: &Programs, dual: bool) -> Result<[Classifier; 2], DatapathError> {
    let (from_pod, to_pod) = if dual { (FROM_POD_DUAL, TO_POD_DUAL) } else { (FROM_POD, TO_POD) };
    let from_pod = programs.classifier(from_pod)?;
    let to_pod = programs.classifier(to_pod)?;
    Ok([
        Classifier { name: FROM_POD, side: Side::Ingress, program: from_pod },
        Classifier { name: TO_POD, side: Side::Egress, program: to_pod },
    ])
}

/// Gives pods' links their programs as they come, for ever.
pub(crate) async fn follow(mut links: PodLinks) -> Result<Infallible, DatapathError> {
    let told = LinkChanges::open().map_err(interfaces(&links.prefix))?;
    // Whatever came before the socket was opened, and what a former process left.
    let mut changes = vec![LinkChange::Missed];
    loop {
        let work = spawn_blocking(move || {
            let outcome = links.take(changes);
            (links, outcome)
        });
        let outcome;
        (links, outcome) = work.await.unwrap_or_else(|error| resume_unwind(error.into_panic()));
        outcome?;
        changes = told.next().await.map_err(interfaces(&links.prefix))?;
    }
}

/// Takes the programs of the datapath that is pinned in a folder away from the interfaces of this network
/// namespace. They are known by the maps that they use.
pub(crate) fn remove(folder: &Path) -> Result<(), DatapathError> {
    let Ok(pins) = Pins::existing(folder) else { return Ok(()) };
    let Ok(map) = MapInfo::from_pin(pins.map(map_name::NODE)) else { return Ok(()) };
    // A program that went meanwhile is at no interface.
    let programs = loaded_programs().filter_map(Result::ok);
    let ours = programs.filter(|program| {
        let known = [FROM_POD, TO_POD, FROM_POD_DUAL, TO_POD_DUAL];
        known.map(Some).contains(&program.name_as_str())
            && matches!(program.map_ids(), Ok(Some(maps)) if maps.contains(&map.id()))
    });
    let ours: Vec<u32> = ours.map(|program| program.id()).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let mut filters = Filters::open()?;
    for link in &if_nameindex().map_err(|error| interfaces("")(error.into()))? {
        match filters.remove(link.index(), &ours) {
            Err(error) if !error.is_gone() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

fn interfaces(prefix: &str) -> impl FnOnce(io::Error) -> DatapathError + use<> {
    let name = format!("{prefix}*");
    move |source| DatapathError::Interface { name, source }
}

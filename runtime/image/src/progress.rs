//! What an import or a pull tells while it runs.

use crate::digest::Digest;

/// Called from several threads at once; must not block for long.
pub trait Progress: Send + Sync {
    fn report(&self, event: &Event<'_>);
}

/// Any closure will do.
impl<F: Fn(&Event<'_>) + Send + Sync> Progress for F {
    fn report(&self, event: &Event<'_>) {
        self(event);
    }
}

/// For those who do not want to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn report(&self, _: &Event<'_>) {}
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The manifest is known: so many layers, together so many bytes as they are transferred.
    Resolved {
        image: &'a str,
        layers: usize,
        bytes: u64,
    },
    Layer {
        diff_id: &'a Digest,
        step: Step,
    },
    /// It can be resolved from now on.
    Stored {
        image: &'a str,
        id: &'a Digest,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Already in the store.
    Present,
    /// `received` of `total` bytes are here.
    Receiving {
        received: u64,
        total: u64,
    },
    /// Again, after the connection broke; goes on where it was.
    Retrying {
        attempt: u32,
    },
    Unpacking,
    /// Complete in the store: so many bytes of files.
    Unpacked {
        bytes: u64,
    },
}

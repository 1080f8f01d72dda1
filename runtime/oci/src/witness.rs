//! Who is told what is being done: the log that engines read, or people who want to see it explained.

use pith_container::plan::Step;
use pith_container::trace::{Carried, timed};

/// Which process carries a step out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The caller's.
    Runtime,
    /// The one that becomes the container's program.
    Container,
}

/// A step that has been carried out.
#[derive(Clone, Debug)]
pub struct Performed {
    pub by: By,
    /// What the kernel was asked.
    pub call: String,
    /// What is different since.
    pub change: String,
    pub carried: Carried,
}

/// Whoever hears about the making and the end of a container.
pub trait Witness {
    /// Something was left out, or went wrong without stopping anything.
    fn warn(&self, message: &str);

    /// Whether steps are to be timed and told.
    fn wants_steps(&self) -> bool;

    fn step(&self, performed: &Performed);
}

/// Tells of a step of a plan.
pub(crate) fn tell_step(witness: &dyn Witness, by: By, step: &Step, carried: Carried) {
    if witness.wants_steps() {
        witness.step(&Performed { by, call: step.call(), change: step.change(), carried });
    }
}

/// Carries something out and tells of it; `words` are the call and the change.
#[track_caller]
pub(crate) fn tell<T>(
    witness: &dyn Witness,
    words: impl FnOnce() -> (String, String),
    act: impl FnOnce() -> T,
) -> T {
    let (done, carried) = timed(act);
    if witness.wants_steps() {
        let (call, change) = words();
        witness.step(&Performed { by: By::Runtime, call, change, carried });
    }
    done
}

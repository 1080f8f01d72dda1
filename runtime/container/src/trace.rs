//! Where in the code something is done, and how long it takes: what `--explain` shows.
//!
//! Whoever talks to the kernel says so by [`here`]; [`timed`] reads the last place that was named while it ran. This
//! costs one store to memory of the thread's own.

use std::cell::Cell;
use std::panic::Location;
use std::time::Instant;

use serde::{Deserialize, Serialize};

thread_local! {
    static PLACE: Cell<Option<&'static Location<'static>>> = const { Cell::new(None) };
}

/// Something that has been carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    pub nanoseconds: u64,
    /// `file:line`, from the top of the repository.
    pub place: String,
}

/// Names the caller as the place where what is being timed is done.
#[track_caller]
pub fn here() {
    PLACE.set(Some(Location::caller()));
}

/// Carries something out. Without a word by [`here`] its place is the caller's.
#[track_caller]
pub fn timed<T>(act: impl FnOnce() -> T) -> (T, Carried) {
    PLACE.set(Some(Location::caller()));
    let start = Instant::now();
    let done = act();
    let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let place = PLACE.get().map(ToString::to_string).unwrap_or_default();
    // Of `file:line:column`, people and editors want the first two.
    let place = place.rsplit_once(':').map_or_else(String::new, |(place, _)| place.to_owned());
    (done, Carried { nanoseconds, place })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() {
        here();
    }

    #[test]
    fn the_place_is_the_last_that_was_named() {
        let ((), unnamed) = timed(|| ());
        let ((), named) = timed(named);
        assert!(unnamed.place.starts_with("runtime/container/src/trace.rs:"), "{unnamed:?}");
        let line =
            |carried: &Carried| carried.place.rsplit_once(':').and_then(|(_, line)| line.parse::<u32>().ok());
        assert!(line(&named) < line(&unnamed), "{named:?} comes before {unnamed:?} in this file");
    }
}

//! What every loop against the API needs, once: a cache fed by a watch, a keyed work queue, and events.
//!
//! ```text
//!   API ──list, watch──▶ watch::follow ──▶ Store ──Change──▶ handlers ──▶ Queue ──▶ worker::work
//!                                            ▲                                        │
//!                                            └───────── own writes at once ───────────┘
//! ```
//!
//! - [`Store`]: every object of a kind, indexed. It *reads its own writes*: what a controller has created or
//!   deleted is in the cache before the watch confirms it, so a loop that looks again at once never acts twice.
//! - [`follow`]: one task a kind; lists, watches, resumes, relists after 410 Gone.
//! - [`Queue`] and [`work`]: each key at most once in hand, repeats folded, failures retried with back-off.
//! - [`Recorder`]: Events as `kubectl describe` shows them; repeats raise a count.
//!
//! Invariant: nothing in here knows any particular kind.

mod events;
mod key;
mod queue;
mod store;
mod watch;
mod worker;

pub use events::{EventType, Recorder};
pub use key::{Key, Revision, Uid, uid_of};
pub use queue::Queue;
pub use store::{Change, Store};
pub use watch::{Feed, Full, Metadata, Sink, follow};
pub use worker::{Outcome, work};

//! Images on a replica's disk: imported or pulled, verified, unpacked, found, removed.
//!
//! | file | owns |
//! |---|---|
//! | `store` | the directory: its layout, locks, index, what resolves to what |
//! | `import` | archives into the store |
//! | `registry` | pulling from a registry |
//! | `layer`, `unpack`, `beneath` | one layer's stream → one directory, and nothing outside of it |
//! | `tar`, `decompress`, `source` | reading archives from strangers |
//! | `layout`, `platform`, `reference`, `digest`, `auth` | the formats and names of the image world |
//! | `gc` | removing |

mod auth;
mod beneath;
mod decompress;
mod digest;
mod error;
mod gc;
mod import;
mod index;
mod layer;
mod layout;
mod platform;
mod progress;
mod reference;
mod registry;
mod source;
mod store;
mod tar;
mod unpack;

pub use auth::Auth;
pub use digest::{BadDigest, Digest};
pub use error::{Error, Result};
pub use gc::{Policy, Removed, Usage};
pub use platform::Platform;
pub use progress::{Event, Progress, Quiet, Step};
pub use reference::Reference;
pub use store::{Image, Options, Store};
pub use unpack::Limits;

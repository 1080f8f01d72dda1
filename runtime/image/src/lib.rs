//! Images on a replica's disk: imported or pulled, verified, unpacked, found, removed.
//!
//! | file | owns |
//! |---|---|
//! | `store` | the directory: its layout, locks, index, what resolves to what |
//! | `import` | archives into the store |
//! | `pull`, `partial` | an image from its registry into the store; a blob that is on its way |
//! | `registry`, `endpoint` | what a registry's hosts are asked, and one of them over HTTP |
//! | `hosts`, `keychain`, `auth` | mirrors, and who one is to each of them |
//! | `layer`, `unpack`, `beneath` | one layer's stream → one directory, and nothing outside of it |
//! | `tar`, `decompress`, `source` | reading archives from strangers |
//! | `layout`, `platform`, `reference`, `digest` | the formats and names of the image world |
//! | `copy` | a container's root where the kernel has no overlayfs |
//! | `gc` | removing |

mod auth;
mod beneath;
mod blocking;
mod copy;
mod decompress;
mod digest;
mod endpoint;
mod error;
mod gc;
mod hosts;
mod import;
mod index;
mod keychain;
mod layer;
mod layout;
mod partial;
mod platform;
mod progress;
mod pull;
mod reference;
mod registry;
mod source;
mod store;
mod tar;
mod unpack;

pub use auth::Auth;
pub use copy::has_overlayfs;
pub use digest::{BadDigest, Digest};
pub use endpoint::Timeouts;
pub use error::{Error, Result};
pub use gc::{Policy, Removed, Usage};
pub use keychain::{DockerConfig, Keychain};
pub use platform::Platform;
pub use progress::{Event, Progress, Quiet, Step};
pub use reference::Reference;
pub use store::{HOSTS_DIR, Image, Options, Store};
pub use unpack::Limits;

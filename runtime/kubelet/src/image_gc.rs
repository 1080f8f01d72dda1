//! Images that no container uses leave when the disk gets full, least recently used first.
//!
//! The disk is looked at often, which costs one system call; upstream looks every five minutes and may find it full.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pith_image::{Removed, Store};
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    events::{Recorder, Subject},
    network::chain,
};

const PERIOD: Duration = Duration::from_secs(20);
/// How often a disk that stays full is told about: upstream's period.
const TELL_EVERY: u32 = 15;

pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut rounds_in_trouble = 0;
    loop {
        let (store, policy) = (context.images.clone(), context.config.image_gc);
        let collected = tokio::task::spawn_blocking(move || collect(&store, policy)).await;
        let collected = collected.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let trouble = trouble(&collected);
        match trouble {
            Some((reason, message)) if rounds_in_trouble % TELL_EVERY == 0 => {
                tell(&context.events, &context.config.node_name, reason, message);
            }
            _ => {}
        }
        rounds_in_trouble = if collected.as_ref().is_ok_and(|removed| removed.short_of == 0) {
            0
        } else {
            rounds_in_trouble + 1
        };
        tokio::select! {
            // Between two rounds nothing is under way.
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Containers hold the images that they run from, whether they run or wait to be started again.
fn collect(store: &Store, policy: pith_image::Policy) -> pith_image::Result<Removed> {
    let removed = store.gc(&BTreeSet::new(), policy)?;
    if !removed.images.is_empty() {
        tracing::info!(
            images = removed.images.len(),
            bytes = removed.bytes,
            "removed images that nothing uses"
        );
    }
    Ok(removed)
}

/// Reason and text of an event, in upstream's words.
fn trouble(collected: &pith_image::Result<Removed>) -> Option<(&'static str, String)> {
    match collected {
        Ok(removed) if removed.short_of == 0 => None,
        Ok(removed) => Some((
            "FreeDiskSpaceFailed",
            format!(
                "Failed to garbage collect required amount of images. Attempted to free {} bytes, but only found \
                 {} bytes eligible to free.",
                removed.bytes.saturating_add(removed.short_of),
                removed.bytes
            ),
        )),
        Err(error) => Some(("ImageGCFailed", chain(error))),
    }
}

fn tell(events: &Recorder, node: &str, reason: &'static str, message: String) {
    tracing::warn!(reason, "{message}");
    events.warning(Subject::node(node), reason, message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_table() {
        let removed = |bytes, short_of| Ok(Removed { bytes, short_of, ..Removed::default() });
        let failed = Err(pith_image::Error::NotFound { reference: "x".to_owned() });
        let cases = [
            (removed(0, 0), None),
            (removed(7, 0), None),
            (
                removed(3, 4),
                Some(("FreeDiskSpaceFailed", "Attempted to free 7 bytes, but only found 3 bytes")),
            ),
            (failed, Some(("ImageGCFailed", "image x not found"))),
        ];
        for (collected, expect) in cases {
            let told = trouble(&collected);
            assert_eq!(told.as_ref().map(|(reason, _)| *reason), expect.map(|(reason, _)| reason));
            if let (Some((_, text)), Some((_, part))) = (told, expect) {
                assert!(text.contains(part), "{text}");
            }
        }
    }
}

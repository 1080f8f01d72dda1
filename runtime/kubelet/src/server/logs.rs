//! `/containerLogs`: a container's log, from wherever and for as long as the client wants it.

use std::{fs::File, io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use rustix::fs::inotify;
use tokio::net::unix::pipe;

use super::{Body, query, text};
use crate::{
    context::{PodCell, blocking},
    logs::{Query, Reader},
    observed::ContainerId,
};

/// A follower looks again after this long even if nothing was announced: a container that ended while it
/// was looking says so only once.
const LOOK: Duration = Duration::from_secs(10);

pub(super) async fn answer(cell: Arc<PodCell>, container: &str, query: Option<&str>) -> Response<Body> {
    let pairs = query::pairs(query);
    let wanted = match parse(&pairs, Timestamp::now()) {
        Ok(wanted) => wanted,
        Err(problem) => return text(StatusCode::BAD_REQUEST, problem),
    };
    let pod = cell.id.name.clone();
    if cell.desired.borrow().unit(container).is_none() {
        let message = format!("container \"{container}\" in pod \"{pod}\" is not available");
        return text(StatusCode::BAD_REQUEST, message);
    }
    let record = cell.record().containers.get(container).cloned();
    let previous = query::is_on(&pairs, "previous");
    let attempt = match (&record, previous) {
        (Some(r), false) => r.attempt,
        (Some(r), true) if r.attempt > 0 => r.attempt - 1,
        (_, true) => {
            let message = format!("previous terminated container \"{container}\" in pod \"{pod}\" not found");
            return text(StatusCode::BAD_REQUEST, message);
        }
        (None, false) => {
            let why = waiting(&cell, container).unwrap_or_else(|| "ContainerCreating".to_owned());
            let message = format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {why}");
            return text(StatusCode::BAD_REQUEST, message);
        }
    };
    let path = cell.log_path(container, attempt);
    let follow = wanted.follow && !previous;
    let id = record.map(|r| r.id);
    let opened = blocking(move || {
        let watch = if follow { Some(watch(&path)?) } else { None };
        Ok::<_, io::Error>((Reader::open(&path, wanted)?, watch))
    });
    match opened.await {
        Ok((reader, watch)) => {
            let follower = Follower { reader: Some(reader), watch, cell, id };
            let frames = futures::stream::unfold(follower, Follower::next);
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("reading the log: {error}")),
    }
}

/// Why a container is not there yet, as its status has it.
fn waiting(cell: &PodCell, container: &str) -> Option<String> {
    let status = cell.status.borrow().clone()?;
    let all =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let found = all.into_iter().find(|c| c.name == container)?;
    found.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

fn parse(pairs: &[(String, String)], now: Timestamp) -> Result<Query, String> {
    let number = |name: &str| match query::first(pairs, name) {
        None | Some("") => Ok(None),
        Some(text) => match text.parse::<usize>() {
            Ok(n) => Ok(Some(n)),
            Err(_) => Err(format!("{name}: {text:?} is not a number that is at least 0")),
        },
    };
    let seconds = number("sinceSeconds")?;
    let since = match (seconds, query::first(pairs, "sinceTime").filter(|t| !t.is_empty())) {
        (Some(s), _) => {
            let ago = SignedDuration::from_secs(i64::try_from(s).unwrap_or(i64::MAX));
            Some(now.checked_sub(ago).unwrap_or(Timestamp::MIN))
        }
        (None, Some(text)) => {
            Some(text.parse().map_err(|_| format!("sinceTime: {text:?} is not a time in RFC 3339"))?)
        }
        (None, None) => None,
    };
    Ok(Query {
        follow: query::is_on(pairs, "follow"),
        tail: number("tailLines")?,
        since,
        timestamps: query::is_on(pairs, "timestamps"),
        limit_bytes: number("limitBytes")?,
    })
}

/// Announces changes in the folder of a log: lines, and its rotation.
fn watch(log: &Path) -> io::Result<File> {
    let dir = log.parent().unwrap_or(Path::new("/"));
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_FROM;
    inotify::add_watch(&fd, dir, flags)?;
    Ok(File::from(fd))
}

struct Follower {
    /// Away while it is read from.
    reader: Option<Reader>,
    watch: Option<File>,
    cell: Arc<PodCell>,
    id: Option<ContainerId>,
}

impl Follower {
    async fn next(mut self) -> Option<(io::Result<Frame<Bytes>>, Self)> {
        loop {
            // Asked before reading: what was written before the end is read after it was noticed.
            let ended = self.has_ended();
            let mut reader = self.reader.take()?;
            let (reader, piece) = blocking(move || {
                let piece = reader.read();
                (reader, piece)
            })
            .await;
            let full = reader.is_full();
            self.reader = Some(reader);
            match piece {
                Ok(Some(piece)) => return Some((Ok(Frame::data(Bytes::from(piece))), self)),
                Ok(None) if self.watch.is_none() || ended || full => return None,
                Ok(None) => self.wait().await,
                Err(error) => {
                    self.reader = None;
                    return Some((Err(error), self));
                }
            }
        }
    }

    fn has_ended(&self) -> bool {
        let record = self.cell.record();
        let current = record.containers.values().find(|c| Some(&c.id) == self.id.as_ref());
        current.is_none_or(|c| c.exit.is_some())
    }

    /// Until something happens in the folder, or to the pod.
    async fn wait(&self) {
        let mut status = self.cell.status.subscribe();
        tokio::select! {
            // None of them takes anything away by being waited for.
            () = announced(self.watch.as_ref()) => {}
            _ = status.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Reads the announcements away; what they are about is looked up.
async fn announced(watch: Option<&File>) {
    let receiver = watch.and_then(|w| pipe::Receiver::from_file_unchecked(w.try_clone().ok()?).ok());
    let Some(receiver) = receiver else { return std::future::pending().await };
    if receiver.readable().await.is_ok() {
        let mut buffer = [0; 4096];
        while receiver.try_read(&mut buffer).is_ok_and(|n| n > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let now = Timestamp::from_second(1000).expect("in range");
        let run = |q: &str| parse(&query::pairs(Some(q)), now);
        let all = run("follow=true&tailLines=5&sinceSeconds=10&timestamps=true&limitBytes=7").expect("fine");
        let since = Timestamp::from_second(990).ok();
        assert_eq!(all, Query { follow: true, tail: Some(5), since, timestamps: true, limit_bytes: Some(7) });
        assert_eq!(
            run("sinceTime=1970-01-01T00:00:05Z").expect("fine").since,
            Timestamp::from_second(5).ok()
        );
        for bad in ["tailLines=-1", "sinceTime=yesterday", "limitBytes=x"] {
            assert!(run(bad).is_err(), "{bad}");
        }
    }
}

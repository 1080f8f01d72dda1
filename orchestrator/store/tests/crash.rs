//! What was acknowledged is there after SIGKILL, and after a power cut that tore the last write.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use bytes::Bytes;
use pith_store::{Collection, Embedded, Error, Expect, Key, ListRequest, Revision, Store};

const CHILD_DIR: &str = "PITH_STORE_CRASH_DIR";
const WRITERS: usize = 16;
const ACKNOWLEDGED_BEFORE_KILL: usize = 400;

fn key(name: &str) -> Key {
    Collection::new("", "configmaps").and_then(|all| all.key(Some("default"), name)).expect("a valid key")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime")
}

/// Not a test of its own: the process that is killed. Prints the name and revision of each write once it is
/// acknowledged.
#[test]
fn child_writes_until_killed() {
    let Some(dir) = env::var_os(CHILD_DIR) else { return };
    let store = Arc::new(Embedded::open(Path::new(&dir)).expect("the store opens"));
    runtime().block_on(async {
        let writers = (0..WRITERS).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in 0.. {
                    let name = format!("w{writer}-{number}");
                    let done =
                        store.put(key(&name), Bytes::from(name.clone().repeat(50)), Expect::Absent).await;
                    let line = format!("acknowledged {name} {}\n", done.expect("a write").revision);
                    // One write call a line: println! through the test harness may be buffered.
                    std::io::stdout().write_all(line.as_bytes()).expect("a reader");
                    std::io::stdout().flush().expect("a reader");
                    if number % 3 == 2 {
                        let gone = format!("w{writer}-{}", number - 1);
                        store.delete(key(&gone), Expect::Any).await.expect("a delete");
                    }
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("a writer runs until the process is killed");
        }
    });
}

#[test]
fn acknowledged_writes_survive_sigkill() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut highest = Revision(0);
    for round in 0..3 {
        let store_dir = dir.path().join("store");
        if round > 0 {
            fs::remove_dir_all(&store_dir).expect("the store of the round before");
            highest = Revision(0);
        }
        let mut child = Command::new(env::current_exe().expect("this test's path"))
            .args(["child_writes_until_killed", "--exact", "--nocapture"])
            .env(CHILD_DIR, &store_dir)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test starts itself");
        let mut names = Vec::new();
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        for line in lines {
            let line = line.expect("a line");
            let Some((_, acknowledged)) = line.split_once("acknowledged ") else { continue };
            let (name, revision) = acknowledged.split_once(' ').expect("name and revision");
            names.push(name.to_owned());
            highest = highest.max(Revision(revision.parse().expect("a revision")));
            if names.len() == ACKNOWLEDGED_BEFORE_KILL {
                child.kill().expect("the child is killed");
            }
        }
        child.wait().expect("the child is reaped");

        let store = Embedded::open(&store_dir).expect("the store opens after SIGKILL");
        runtime().block_on(async {
            assert!(store.revision().await.expect("a revision") >= highest);
            for name in &names {
                let number: usize =
                    name.split_once('-').and_then(|(_, number)| number.parse().ok()).expect("a number");
                let entry = store.get(&key(name)).await.expect("a reading");
                match (entry, number % 3) {
                    (Some(entry), _) => assert_eq!(entry.value, name.repeat(50)),
                    // May have been deleted by the write behind it.
                    (None, 1) => {}
                    (None, _) => panic!("{name} was acknowledged and is gone"),
                }
            }
        });
    }
}

fn filled(dir: &Path) {
    let store = Embedded::open(dir).expect("the store opens");
    runtime().block_on(async {
        for number in 0..20 {
            let value = Bytes::from(vec![b'x'; 10_000]);
            store.put(key(&format!("n{number:02}")), value, Expect::Absent).await.expect("a write");
        }
    });
}

fn journal(dir: &Path) -> std::path::PathBuf {
    let files = fs::read_dir(dir).expect("the folder").map(|file| file.expect("an entry").path());
    files.filter(|path| path.extension().is_some_and(|ext| ext == "jnl")).max().expect("a journal")
}

fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let store = Embedded::open(dir)?;
    let prefix = Collection::new("", "configmaps")?.prefix(None)?;
    let listing = runtime().block_on(store.list(ListRequest::all(prefix)))?;
    Ok(listing.entries.iter().map(|entry| entry.key.name().to_owned()).collect())
}

/// The end of what was written: the last byte that is not of the preallocated rest.
fn written(journal: &[u8]) -> usize {
    journal.iter().rposition(|byte| *byte != 0).expect("something was written") + 1
}

#[test]
fn a_torn_last_write_is_dropped_and_the_rest_kept() {
    type Tear = fn(&mut Vec<u8>);
    let tears: [(&str, Tear, usize); 5] = [
        ("cut in the middle", |bytes| bytes.truncate(written(bytes) - 60), 19),
        (
            "zeros in the middle, end present",
            |bytes| {
                let end = written(bytes);
                bytes[end - 80..end - 30].fill(0);
            },
            19,
        ),
        (
            "zeros at the end",
            |bytes| {
                let end = written(bytes);
                bytes[end - 70..].fill(0);
            },
            19,
        ),
        (
            "garbage behind the end",
            |bytes| {
                let end = written(bytes);
                bytes.truncate(end);
                bytes.extend_from_slice(&[1, 0xff, 0xff, 3, 9, 9, 9]);
            },
            20,
        ),
        ("nothing torn", |_| {}, 20),
    ];
    for (name, tear, left) in tears {
        let dir = tempfile::tempdir().expect("a temporary folder");
        filled(dir.path());
        let path = journal(dir.path());
        let mut bytes = fs::read(&path).expect("the journal");
        tear(&mut bytes);
        fs::write(&path, bytes).expect("the journal");
        let got = names(dir.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(got.len(), left, "{name}");
        // And it still works, twice.
        let store = Embedded::open(dir.path()).expect("the store opens");
        runtime()
            .block_on(store.put(key("after"), Bytes::from_static(b"y"), Expect::Absent))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        drop(store);
        assert_eq!(names(dir.path()).expect("the store opens").len(), left + 1, "{name}");
    }
}

#[test]
fn damage_before_acknowledged_writes_is_not_hidden() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    filled(dir.path());
    let path = journal(dir.path());
    let mut bytes = fs::read(&path).expect("the journal");
    let middle = written(&bytes) / 2;
    bytes[middle] ^= 0xff;
    fs::write(&path, bytes).expect("the journal");
    let error = names(dir.path()).expect_err("acknowledged writes are lost");
    assert!(matches!(error, Error::Journal { .. }), "{error:?}");
}

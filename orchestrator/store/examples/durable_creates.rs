//! How many durable creates a second: `durable_creates [DIR] [CLIENTS] [SECONDS]`.

use std::{
    env,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use pith_store::{Collection, Embedded, Expect, Store};

#[tokio::main]
async fn main() {
    let mut args = env::args().skip(1);
    let dir = args.next().map_or_else(|| env::temp_dir().join("pith-durable-creates"), PathBuf::from);
    let number = |text: Option<String>, default| text.map_or(default, |text| text.parse().expect("a number"));
    let clients = number(args.next(), 64);
    let seconds = number(args.next(), 5);
    let store = Arc::new(Embedded::open(&dir).expect("the store opens"));
    let all = Collection::new("", "configmaps").expect("a valid collection");
    let run = std::process::id();
    let until = Instant::now() + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (store, all) = (store.clone(), all.clone());
            tokio::spawn(async move {
                let mut times = Histogram::<u64>::new(3).expect("three digits");
                for count in 0.. {
                    let start = Instant::now();
                    if start >= until {
                        break;
                    }
                    let key =
                        all.key(Some("bench"), &format!("r{run}-c{client}-{count}")).expect("a valid key");
                    let value = Bytes::from(vec![b'v'; 1500]);
                    store.put(key, value, Expect::Absent).await.expect("a durable write");
                    times.record(start.elapsed().as_micros() as u64).expect("a duration in range");
                }
                times
            })
        })
        .collect();
    let mut times = Histogram::<u64>::new(3).expect("three digits");
    for task in tasks {
        times.add(task.await.expect("a client")).expect("histograms of one kind");
    }
    println!(
        "{} creates/s at {clients} clients; p50 {} µs, p99 {} µs, max {} µs",
        times.len() / seconds,
        times.value_at_quantile(0.5),
        times.value_at_quantile(0.99),
        times.max()
    );
}

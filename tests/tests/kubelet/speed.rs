//! How long a pod takes from its creation through the API until the API says Running. Measured, not judged:
//! `cargo test -p pith-tests --test kubelet speed -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::node::isolated;

const ONE_BY_ONE: usize = 30;
const AT_ONCE: usize = 100;

#[test]
#[ignore = "a measurement"]
fn speed_of_pods() {
    isolated("speed", async |mut node| {
        node.start().await;
        let spec = || json!({"containers": [{"name": "a", "args": ["sleep", "3600"]}]});
        let mut times = vec![];
        for i in 0..ONE_BY_ONE {
            let name = format!("single-{i}");
            let began = Instant::now();
            node.create(&name, spec()).await;
            node.until_phase(&name, "Running").await;
            times.push(began.elapsed());
        }
        times.sort();
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        println!(
            "one by one: p50 {:.1} ms, max {:.1} ms",
            ms(times[ONE_BY_ONE / 2]),
            ms(times[ONE_BY_ONE - 1])
        );
        for i in 0..ONE_BY_ONE {
            node.delete(&format!("single-{i}"), Some(0)).await;
        }
        for i in 0..ONE_BY_ONE {
            node.until_gone(&format!("single-{i}")).await;
        }
        let began = Instant::now();
        let create = async |i: usize| node.create(&format!("many-{i}"), spec()).await;
        futures::future::join_all((0..AT_ONCE).map(create)).await;
        let created = began.elapsed();
        for i in 0..AT_ONCE {
            node.until_phase(&format!("many-{i}"), "Running").await;
        }
        println!(
            "{AT_ONCE} at once: created in {:.0} ms, all running after {:.0} ms",
            ms(created),
            ms(began.elapsed())
        );
        for i in 0..AT_ONCE {
            node.delete(&format!("many-{i}"), Some(0)).await;
        }
        for i in 0..AT_ONCE {
            node.until_gone(&format!("many-{i}")).await;
        }
    });
}

//! From a pod to a ClusterIP, with 1 to 30,000 Services beside it.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::cluster::{Service, services};
use crate::contender::{Contender, Contestant};
use crate::ground::BACKENDS;
use crate::load::{self, Bounds, Sample};
use crate::plan::Plan;
use crate::report::{Better, Figure};
use crate::rounds::{Figures, Subject, Values, order};
use crate::statistics::percentile;
use crate::tools::Ended;
use crate::{frames, interrupt, progress};

/// Services that clients connect to in turn, spread over all of them.
const TARGETS: usize = 16;
const ROUND_TIME: Duration = Duration::from_millis(400);
/// One write of a large and of a small stream.
const LARGE: usize = 64 * 1024;
const SMALL: usize = 64;

const fn subject(
    id: &'static str,
    title: &'static str,
    unit: &'static str,
    better: Better,
    how: &'static str,
) -> Subject {
    Subject { id, title, unit, better, how }
}

const CONNECT: &str = "connect(2) to a Service that was not connected to for a while, from call to return: \
    the first packet there and the answer to it. 16 Services in turn, spread over all of them.";
const ROUND_TRIP: &str = "One byte there and back over a connection that stands.";
const SHORT: &str = "connect, one byte there, one byte back, close; one after the other.";
const REQUEST: &str = "connect, a short HTTP request, its answer, close; one after the other.";

const SUBJECTS: [Subject; 15] = [
    subject("connect-p50", "First packet of a connection, p50", "µs", Better::Lower, CONNECT),
    subject("connect-p99", "First packet of a connection, p99", "µs", Better::Lower, CONNECT),
    subject(
        "round-trip-p50",
        "Round trip on an established connection, p50",
        "µs",
        Better::Lower,
        ROUND_TRIP,
    ),
    subject(
        "round-trip-p99",
        "Round trip on an established connection, p99",
        "µs",
        Better::Lower,
        ROUND_TRIP,
    ),
    subject("connections", "Connections a second", "/s", Better::Higher, SHORT),
    subject("short-p50", "Short connection, p50", "µs", Better::Lower, SHORT),
    subject("short-p99", "Short connection, p99", "µs", Better::Lower, SHORT),
    subject("http-p50", "HTTP request on a new connection, p50", "µs", Better::Lower, REQUEST),
    subject("http-p99", "HTTP request on a new connection, p99", "µs", Better::Lower, REQUEST),
    subject("http-p999", "HTTP request on a new connection, p99.9", "µs", Better::Lower, REQUEST),
    subject(
        "throughput",
        "Throughput of one connection, 64 KiB writes",
        "Gbit/s",
        Better::Higher,
        "One TCP stream in one direction.",
    ),
    subject(
        "throughput-small",
        "Throughput of one connection, 64-byte writes",
        "Gbit/s",
        Better::Higher,
        "One TCP stream, Nagle off: every write may leave as a packet of its own.",
    ),
    subject(
        "packets",
        "Packets a second over connections that stand",
        "/s",
        Better::Higher,
        "Frames of four connections, sent by a packet socket from one processor, which also forwards them and has the \
         backend receive them. Every one is counted at the backend's link.",
    ),
    subject(
        "cpu-short",
        "Processor time of a short connection",
        "µs",
        Better::Lower,
        "Time of the client's thread, with the forwarding of its packets, which the kernel does where they are sent.",
    ),
    subject(
        "cpu-round-trip",
        "Processor time of a round trip",
        "µs",
        Better::Lower,
        "As above, on an established connection.",
    ),
];

/// Where clients stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// In a pod; they connect to ClusterIPs.
    Pod,
    /// Outside of the cluster; they connect to the node port of the first Service.
    Outside,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Pod => "services",
            Self::Outside => "forward",
        }
    }

    fn figures(self, run: &str) -> Figures {
        match self {
            Self::Pod => Figures::over(run, self.name(), "Services"),
            Self::Outside => {
                Figures::over(run, self.name(), "Services").about("node-port-", ", through a node port")
            }
        }
    }
}

/// Measures every contender at every count, from each of the sides.
pub(crate) fn run(
    sides: &[Side],
    run: &str,
    plan: &Plan,
    contestants: &mut Vec<Contestant>,
    left_out: &mut Vec<String>,
) -> Result<Vec<Figure>> {
    let mut figures: Vec<Figures> = sides.iter().map(|side| side.figures(run)).collect();
    for &count in plan.counts {
        let all = services(count, &BACKENDS);
        load_all(plan, &all, contestants, left_out)?;
        for (side, figures) in sides.iter().zip(&mut figures) {
            let values = rounds(*side, plan, &all, contestants)?;
            for subject in &SUBJECTS {
                figures.add(subject, values.points(subject.id, f64::from(count)));
            }
        }
    }
    Ok(figures.into_iter().flat_map(Figures::into_figures).collect())
}

/// All contenders in turn, round by round.
fn rounds(side: Side, plan: &Plan, all: &[Service], contestants: &[Contestant]) -> Result<Values> {
    let mut values = Values::default();
    for round in 0..=plan.rounds {
        for place in order(contestants.len(), round) {
            interrupt::check()?;
            let contestant = &contestants[place];
            let ((addresses, port), worker) = match side {
                Side::Pod => (contestant.inside(all, TARGETS), &contestant.client),
                Side::Outside => (contestant.outside_places(), &contestant.outside),
            };
            let (targets, operations) = (load::at(&addresses, port), plan.operations);
            let places = targets.clone();
            let samples = worker.run(move || Samples::take(&targets, operations))?;
            let (sent, delivered) = contestant
                .ground
                .count_delivered(|| worker.run(move || frames::repeat(&places, ROUND_TIME / 8)))?;
            if delivered < sent.packets {
                bail!("{}: only {delivered} of {} packets came", contestant.contender.label(), sent.packets);
            }
            // The first round warms neighbours, caches and the servers up.
            if round > 0 {
                samples.note(contestant.contender, &mut values);
                values.add("packets", contestant.contender, Some(sent.rate()));
            }
        }
        progress::rounds(&format!("{}: {} Services", side.name(), all.len()), round, plan.rounds);
    }
    Ok(values)
}

/// Gives every contender these Services. One that is not done in time takes part no longer.
pub(crate) fn load_all(
    plan: &Plan,
    all: &[Service],
    contestants: &mut Vec<Contestant>,
    left_out: &mut Vec<String>,
) -> Result<()> {
    let (count, mut late) = (all.len(), Vec::new());
    for contestant in contestants.iter_mut() {
        interrupt::check()?;
        let (contender, label) = (contestant.contender, contestant.contender.label());
        match contestant.load(all, plan.load_deadline)? {
            Ended::After(_) if contender == Contender::Straight => {}
            Ended::After(took) => {
                progress::step(&format!("{count} Services into {label}: {:.2} s", took.as_secs_f64()));
            }
            Ended::TooLate => {
                let seconds = plan.load_deadline.as_secs();
                left_out.push(format!(
                    "{label} with {count} Services: its rules were not loaded after {seconds} s"
                ));
                late.push(contender);
            }
        }
    }
    contestants.retain(|contestant| !late.contains(&contestant.contender));
    Ok(())
}

/// One round of one contender.
struct Samples {
    round_trips: Sample,
    connections: Sample,
    requests: Sample,
    large: Sample,
    small: Sample,
}

impl Samples {
    fn take(targets: &[std::net::SocketAddrV4], operations: usize) -> Result<Self> {
        let bounds = |operations| Bounds { operations, time: ROUND_TIME };
        Ok(Self {
            round_trips: load::round_trips(targets, bounds(operations))?,
            connections: load::connections(targets, bounds(operations / 2))?,
            requests: load::requests(targets, bounds(operations / 4))?,
            large: load::stream(targets[0], ROUND_TIME / 8, LARGE)?,
            small: load::stream(targets[0], ROUND_TIME / 16, SMALL)?,
        })
    }

    fn note(&self, contender: Contender, values: &mut Values) {
        let Self { round_trips, connections, requests, large, small } = self;
        values.add("connect-p50", contender, percentile(&connections.connect_micros, 0.5));
        values.add("connect-p99", contender, percentile(&connections.connect_micros, 0.99));
        values.add("round-trip-p50", contender, round_trips.at(0.5));
        values.add("round-trip-p99", contender, round_trips.at(0.99));
        values.add("connections", contender, Some(connections.rate()));
        values.add("short-p50", contender, connections.at(0.5));
        values.add("short-p99", contender, connections.at(0.99));
        values.add("http-p50", contender, requests.at(0.5));
        values.add("http-p99", contender, requests.at(0.99));
        values.add("http-p999", contender, requests.at(0.999));
        values.add("throughput", contender, Some(large.gigabits()));
        values.add("throughput-small", contender, Some(small.gigabits()));
        values.add("cpu-short", contender, Some(connections.cpu_micros()));
        values.add("cpu-round-trip", contender, Some(round_trips.cpu_micros()));
    }
}

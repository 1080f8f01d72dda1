//! How long it takes until a change of Services is in force, and what is lost meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cluster::{Service, services};
use crate::contender::{Contender, Contestant, Tools};
use crate::ground::BACKENDS;
use crate::load;
use crate::plan::Plan;
use crate::report::{Better, Figure, Point};
use crate::rounds::{Figures, Subject, Values, order};
use crate::statistics::Estimate;
use crate::tools::Ended;
use crate::{interrupt, progress};

const CHANGE: Subject = Subject {
    id: "change",
    title: "One endpoint changed, until new connections follow",
    unit: "ms",
    better: Better::Lower,
    how: "One of two endpoints of one Service goes, or comes back; all other Services stay. From the parsed event \
          until the maps or rules are in the kernel: pith's proxy writes maps, kube-proxy runs iptables-restore \
          --noflush or nft with what a partial synchronisation of its would write.",
};

const COLD: Subject = Subject {
    id: "cold",
    title: "From nothing until everything is in force",
    unit: "s",
    better: Better::Lower,
    how: "From parsed objects until all maps or rules are in the kernel of an empty namespace; once. A contender \
          that is not done in time is stopped, and shown with the time it was given.",
};

const CHANGES: Subject = Subject {
    id: "churn-changes",
    title: "Changes of one Service in force a second, under load",
    unit: "/s",
    better: Better::Higher,
    how: "Endpoints come and go one after the other, as fast as each change is in force, while a client makes new \
          connections to that Service without a pause.",
};

const LOST: Subject = Subject {
    id: "churn-lost",
    title: "Connections lost meanwhile",
    unit: "of 10,000",
    better: Better::Lower,
    how: "Of the client's connections in the same rounds. All endpoints answer all the time: a loss is the \
          datapath's own.",
};

/// How long each contender churns in a round.
const CHURN: Duration = Duration::from_millis(150);
/// Services beside the one that churns.
const CHURN_SERVICES: u32 = 1_000;

pub(crate) fn run(
    run: &str,
    plan: &Plan,
    contestants: &mut Vec<Contestant>,
    tools: &Tools,
    left_out: &mut Vec<String>,
) -> Result<Vec<Figure>> {
    contestants.retain(|contestant| contestant.contender != Contender::Straight);
    let mut figures = Figures::over(run, "programming", "Services");
    for &count in plan.counts {
        let mut all = services(count, &BACKENDS);
        crate::services::load_all(plan, &all, contestants, left_out)?;
        figures.add(&CHANGE, changes(plan, &mut all, contestants)?.points(CHANGE.id, f64::from(count)));
        if count == CHURN_SERVICES {
            let values = churn(plan, &mut all, contestants)?;
            for subject in [&CHANGES, &LOST] {
                figures.add(subject, values.points(subject.id, f64::from(count)));
            }
        }
    }
    let mut found = figures.into_figures();
    found.extend(cold(run, plan, tools)?);
    Ok(found)
}

/// Takes an endpoint of the middle Service away in even rounds and gives it back in odd ones.
fn changes(plan: &Plan, all: &mut [Service], contestants: &mut [Contestant]) -> Result<Values> {
    let mut values = Values::default();
    for round in 0..plan.rounds {
        let removed = flip(all, round);
        for place in order(contestants.len(), round) {
            interrupt::check()?;
            let contestant = &mut contestants[place];
            let contender = contestant.contender;
            let ended = contestant.change(all, &all[all.len() / 2], removed, plan.load_deadline)?;
            values.add(CHANGE.id, contender, Some(seconds(ended, plan.load_deadline) * 1e3));
        }
        progress::rounds(&format!("programming: {} Services", all.len()), round + 1, plan.rounds);
    }
    Ok(values)
}

/// Gives the middle Service the endpoints of a round; returns those that went.
fn flip(all: &mut [Service], round: usize) -> &'static [std::net::Ipv4Addr] {
    let middle = all.len() / 2;
    let kept = if round.is_multiple_of(2) { 1 } else { BACKENDS.len() };
    all[middle].endpoints = BACKENDS[..kept].to_vec();
    &BACKENDS[kept..]
}

fn churn(plan: &Plan, all: &mut [Service], contestants: &mut [Contestant]) -> Result<Values> {
    let mut values = Values::default();
    let target = load::at(&[all[all.len() / 2].address], crate::cluster::PORT);
    for round in 0..plan.rounds {
        for place in order(contestants.len(), round) {
            interrupt::check()?;
            let contestant = &mut contestants[place];
            let (contender, target) = (contestant.contender, target[0]);
            let client = contestant.client.start(move || Ok(load::hammer(target, CHURN)))?;
            let (begin, mut done) = (Instant::now(), 0_u32);
            while begin.elapsed() < CHURN {
                let removed = flip(all, done as usize);
                contestant.change(all, &all[all.len() / 2], removed, plan.load_deadline)?;
                done += 1;
            }
            let rate = f64::from(done) / begin.elapsed().as_secs_f64();
            // Both endpoints again, so that the next round begins where this one began.
            flip(all, 1);
            contestant.change(all, &all[all.len() / 2], &[], plan.load_deadline)?;
            let hammered = client.recv().context("a client has ended")??;
            values.add(CHANGES.id, contender, Some(rate));
            values.add(LOST.id, contender, Some(hammered.lost_of_10_000()));
        }
        progress::rounds("programming: churn", round + 1, plan.rounds);
    }
    Ok(values)
}

/// Everything at once into empty kernels, one contender after the other.
fn cold(run: &str, plan: &Plan, tools: &Tools) -> Result<Vec<Figure>> {
    let names =
        plan.cold.iter().map(|(services, endpoints)| format!("{services} Services × {endpoints} endpoints"));
    let mut figures = Figures::named(run, "programming", names.collect());
    for (place, (count, endpoints)) in plan.cold.iter().enumerate() {
        let endpoints: Vec<_> =
            (0..*endpoints).map(|last| std::net::Ipv4Addr::new(10, 244, 3, last)).collect();
        let all = services(*count, &endpoints);
        for contender in [Contender::Pith, Contender::Nftables, Contender::Iptables] {
            interrupt::check()?;
            let Some(mut contestant) = Contestant::new(contender, tools)? else { continue };
            let ended = contestant.load(&all, plan.cold_deadline)?;
            let value = seconds(ended, plan.cold_deadline);
            progress::step(&format!(
                "{count} × {} cold into {}: {value:.2} s",
                endpoints.len(),
                contender.label()
            ));
            let place = u32::try_from(place).expect("a handful of sizes");
            let point = Point {
                contender,
                x: f64::from(place),
                estimate: Estimate { median: value, low: value, high: value, rounds: 1 },
                to_straight: None,
                beyond: ended == Ended::TooLate,
            };
            figures.add(&COLD, vec![point]);
        }
    }
    Ok(figures.into_figures())
}

fn seconds(ended: Ended, deadline: Duration) -> f64 {
    match ended {
        Ended::After(took) => took.as_secs_f64(),
        Ended::TooLate => deadline.as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_goes_and_comes_back() {
        let mut all = services(3, &BACKENDS);
        assert_eq!(flip(&mut all, 0), &BACKENDS[1..]);
        assert_eq!(all[1].endpoints, BACKENDS[..1]);
        assert_eq!(flip(&mut all, 1), &BACKENDS[2..]);
        assert_eq!(all, services(3, &BACKENDS));
    }
}

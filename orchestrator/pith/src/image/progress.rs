//! How far an import or a pull is: a bar a layer on a terminal, otherwise a line for what has happened.

use std::collections::HashMap;
use std::io::{IsTerminal, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use pith_image::{Digest, Event, Progress, Step};

/// Without a terminal, how often a layer that takes its time says so.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Standard error, shared by all stores that are filled at once.
pub(super) struct Display {
    bars: Option<MultiProgress>,
}

impl Display {
    pub(super) fn new() -> Self {
        Self { bars: stderr().is_terminal().then(MultiProgress::new) }
    }

    /// For one store; `of` is whose it is where there are several.
    pub(super) fn reporter(&self, of: Option<String>) -> Reporter {
        let prefix = of.map_or_else(String::new, |of| format!("{of}: "));
        Reporter { bars: self.bars.clone(), prefix, layers: Mutex::default() }
    }
}

pub(super) struct Reporter {
    bars: Option<MultiProgress>,
    prefix: String,
    layers: Mutex<HashMap<Digest, Layer>>,
}

struct Layer {
    bar: Option<ProgressBar>,
    /// When its last line was printed.
    said: Instant,
    received: u64,
}

impl Progress for Reporter {
    fn report(&self, event: &Event<'_>) {
        match event {
            Event::Resolved { image, layers, bytes } => {
                self.say(&format!("{image}: {layers} layers, {}", HumanBytes(*bytes)));
            }
            Event::Layer { diff_id, step } => {
                let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
                let layer = layers.entry((*diff_id).clone()).or_insert_with(|| self.begin(diff_id));
                match &layer.bar {
                    Some(bar) => draw(bar, *step),
                    None => {
                        if let Some(line) = line(layer, *step, Instant::now()) {
                            self.say(&format!("layer {}: {line}", diff_id.short()));
                        }
                    }
                }
            }
            Event::Stored { image, .. } => {
                self.say(&format!("{image}: stored"));
            }
        }
    }
}

impl Reporter {
    fn say(&self, line: &str) {
        match &self.bars {
            // Above the bars; a terminal that is gone has nobody who reads.
            Some(bars) => drop(bars.println(format!("{}{line}", self.prefix))),
            None => eprintln!("{}{line}", self.prefix),
        }
    }

    fn begin(&self, diff_id: &Digest) -> Layer {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(0).with_style(style("{prefix} {msg}")));
            bar.set_prefix(format!("{}{}", self.prefix, diff_id.short()));
            bar
        });
        Layer { bar, said: Instant::now(), received: 0 }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn draw(bar: &ProgressBar, step: Step) {
    match step {
        Step::Present => bar.finish_with_message("already here"),
        Step::Receiving { received, total } => {
            if bar.length() != Some(total) {
                bar.set_style(style("{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}"));
                bar.set_length(total);
                // What was here already was not received at this speed.
                bar.reset_eta();
            }
            bar.set_position(received);
        }
        Step::Retrying { attempt } => {
            bar.set_message(format!("the connection broke, attempt {}", attempt + 1))
        }
        Step::Unpacking => {
            bar.set_style(style("{prefix} {spinner} {msg}"));
            bar.set_message("unpacking");
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Step::Unpacked { bytes } => bar.finish_with_message(format!("unpacked, {}", HumanBytes(bytes))),
    }
}

/// What is worth a line where every line stays.
fn line(layer: &mut Layer, step: Step, now: Instant) -> Option<String> {
    match step {
        Step::Present => Some("already here".to_owned()),
        Step::Receiving { received, total } => {
            layer.received = received;
            let due = now.duration_since(layer.said) >= LINE_EVERY;
            due.then(|| {
                layer.said = now;
                format!("{} of {}", HumanBytes(received), HumanBytes(total))
            })
        }
        Step::Retrying { attempt } => Some(format!("the connection broke, attempt {}", attempt + 1)),
        Step::Unpacking => None,
        Step::Unpacked { bytes } if layer.received > 0 => {
            Some(format!("received {}, unpacked {}", HumanBytes(layer.received), HumanBytes(bytes)))
        }
        Step::Unpacked { bytes } => Some(format!("unpacked {}", HumanBytes(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_table() {
        let now = Instant::now();
        let mut layer = Layer { bar: None, said: now, received: 0 };
        let later = now + LINE_EVERY;
        for (step, at, expect) in [
            (Step::Present, now, Some("already here")),
            (Step::Receiving { received: 1024, total: 4096 }, now, None),
            (Step::Receiving { received: 2048, total: 4096 }, later, Some("2.00 KiB of 4.00 KiB")),
            (Step::Receiving { received: 3072, total: 4096 }, later, None),
            (Step::Retrying { attempt: 1 }, later, Some("the connection broke, attempt 2")),
            (Step::Unpacking, later, None),
            (Step::Unpacked { bytes: 8192 }, later, Some("received 3.00 KiB, unpacked 8.00 KiB")),
        ] {
            assert_eq!(line(&mut layer, step, at).as_deref(), expect, "{step:?}");
        }
    }
}

//! What `--explain` prints: each step when it has been carried out. Without it only warnings are heard.

use std::fmt::Write as _;

use pith_oci::witness::{By, Performed, Witness};
use serde_json::json;

use crate::cli::Output;

pub(super) struct Explain(Option<Output>);

impl Explain {
    pub(super) fn new(output: Option<Output>) -> Explain {
        Explain(output)
    }
}

impl Witness for Explain {
    fn warn(&self, message: &str) {
        eprintln!("pith: {message}");
    }

    fn wants_steps(&self) -> bool {
        self.0.is_some()
    }

    fn step(&self, performed: &Performed) {
        match self.0 {
            None => {}
            Some(Output::Json) => eprintln!("{}", object(performed)),
            Some(Output::Text) => eprint!("{}", lines(performed)),
        }
    }
}

fn name(by: By) -> &'static str {
    match by {
        By::Runtime => "pith",
        By::Container => "container",
    }
}

/// Time, process and call; below them what changes, and where it is done.
fn lines(Performed { by, call, change, carried }: &Performed) -> String {
    let microseconds = carried.nanoseconds as f64 / 1e3;
    let mut text = format!("{microseconds:>10.1} µs  {:<9}  {call}\n", name(*by));
    writeln!(text, "{:>26}{change}  [{}]", "", carried.place).expect("a String takes any text");
    text
}

fn object(Performed { by, call, change, carried }: &Performed) -> serde_json::Value {
    json!({
        "by": name(*by),
        "call": call,
        "change": change,
        "nanoseconds": carried.nanoseconds,
        "place": carried.place,
    })
}

#[cfg(test)]
mod tests {
    use pith_container::trace::Carried;

    use super::*;

    #[test]
    fn a_step_as_it_is_printed() {
        let performed = Performed {
            by: By::Container,
            call: "setsid".to_owned(),
            change: "away from the caller's terminal".to_owned(),
            carried: Carried { nanoseconds: 12_345, place: "a/b.rs:6".to_owned() },
        };
        assert_eq!(
            lines(&performed),
            "      12.3 µs  container  setsid\n                          away from the caller's terminal  [a/b.rs:6]\n"
        );
        assert_eq!(object(&performed)["nanoseconds"], 12_345);
        assert_eq!(object(&performed)["by"], "container");
    }
}

//! Flags and arguments, as engines pass them to runc: `-flag`, `--flag`, `--flag=value`, `--flag value`, before, between
//! and behind the arguments; where a command of somebody else's follows, the first argument ends them.

use crate::error::{Error, Result};

/// A flag: its names, and whether it takes a value.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub names: &'static [&'static str],
    pub value: bool,
}

/// A flag without a value.
pub const fn switch(names: &'static [&'static str]) -> Flag {
    Flag { names, value: false }
}

/// A flag with a value.
pub const fn value(names: &'static [&'static str]) -> Flag {
    Flag { names, value: true }
}

/// What was given, by each flag's first name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    flags: Vec<(&'static str, String)>,
    pub rest: Vec<String>,
}

impl Parsed {
    /// Reads flags up to the first argument. What is known comes in groups, which commands share.
    pub fn read(known: &[&[Flag]], words: impl IntoIterator<Item = String>) -> Result<Parsed> {
        Parsed::read_until(known, words, true)
    }

    /// Reads flags wherever they stand, up to a `--`.
    pub fn read_all(known: &[&[Flag]], words: impl IntoIterator<Item = String>) -> Result<Parsed> {
        Parsed::read_until(known, words, false)
    }

    fn read_until(
        known: &[&[Flag]],
        words: impl IntoIterator<Item = String>,
        first_argument: bool,
    ) -> Result<Parsed> {
        let mut words = words.into_iter();
        let mut parsed = Parsed::default();
        while let Some(word) = words.next() {
            if word == "--" {
                break;
            }
            let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
            let Some(flag) = flag.filter(|flag| !flag.is_empty()) else {
                parsed.rest.push(word);
                if first_argument {
                    break;
                }
                continue;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let found = known
                .iter()
                .flat_map(|group| group.iter())
                .find(|flag| flag.names.contains(&name))
                .ok_or_else(|| Error::Usage(format!("flag provided but not defined: -{name}")))?;
            let value = match (found.value, inline) {
                (true, Some(value)) => value,
                (true, None) => {
                    words.next().ok_or_else(|| Error::Usage(format!("flag needs an argument: -{name}")))?
                }
                (false, inline) => inline.unwrap_or_else(|| "true".to_owned()),
            };
            parsed.flags.push((found.names[0], value));
        }
        parsed.rest.extend(words);
        Ok(parsed)
    }

    /// The value that was given last.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    /// Every value in order; one may hold several, with commas between them.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.flags.iter().filter(move |(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    #[must_use]
    pub fn is_set(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value, "false" | "0" | "f" | "F" | "FALSE"))
    }

    /// A number, 0 where none is given.
    pub fn number<N: std::str::FromStr + Default>(&self, name: &str) -> Result<N> {
        self.get(name).map_or_else(
            || Ok(N::default()),
            |text| text.parse().map_err(|_| Error::Usage(format!("invalid value {text:?} for flag -{name}"))),
        )
    }

    /// The arguments, of which there must be so many.
    pub fn exactly<const N: usize>(&self, command: &str) -> Result<&[String; N]> {
        self.rest
            .as_slice()
            .try_into()
            .map_err(|_| Error::Usage(format!("pith-oci: \"{command}\" requires exactly {N} argument(s)")))
    }

    /// The first argument and the others.
    pub fn at_least_one(&self, command: &str) -> Result<(&String, &[String])> {
        self.rest.split_first().ok_or_else(|| {
            Error::Usage(format!("pith-oci: \"{command}\" requires a minimum of 1 argument(s)"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Flag] = &[switch(&["tty", "t"]), value(&["env", "e"]), switch(&["detach", "d"])];

    #[test]
    fn words_table() {
        type Expect = std::result::Result<
            (&'static [(&'static str, &'static str)], &'static [&'static str]),
            &'static str,
        >;
        let cases: &[(&str, Expect)] = &[
            ("", Ok((&[], &[]))),
            ("-t c ls -t", Ok((&[("tty", "true")], &["c", "ls", "-t"]))),
            ("--env A=1 -e=B=2 c", Ok((&[("env", "A=1"), ("env", "B=2")], &["c"]))),
            ("-- -t", Ok((&[], &["-t"]))),
            ("--tty=false c", Ok((&[("tty", "false")], &["c"]))),
            ("--nope c", Err("flag provided but not defined: -nope")),
            ("--env", Err("flag needs an argument: -env")),
        ];
        for (words, expect) in cases {
            let got = Parsed::read(&[KNOWN], words.split_whitespace().map(str::to_owned));
            let got = got.map_err(|error| error.to_string());
            let expect = expect.map_err(str::to_owned).map(|(flags, rest)| Parsed {
                flags: flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
                rest: rest.iter().map(|word| (*word).to_owned()).collect(),
            });
            assert_eq!(got, expect, "{words:?}");
        }
        let words = ["c", "-t", "x", "--env", "A=1", "--", "-t"].map(str::to_owned);
        let got = Parsed::read_all(&[KNOWN], words).expect("known flags");
        assert_eq!((got.get("env"), got.is_set("tty")), (Some("A=1"), true));
        assert_eq!(got.rest, ["c", "x", "-t"]);
    }
}

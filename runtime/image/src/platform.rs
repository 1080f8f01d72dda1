//! Which of an image's variants runs on this machine.

use std::fmt;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, MediaType};

use crate::error::{Error, Result};

/// An operating system and an architecture, in the words of the image specification (GOOS and GOARCH).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

impl Platform {
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            same => same,
        };
        Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    fn of_descriptor(descriptor: &Descriptor) -> Option<Platform> {
        let platform = descriptor.platform().as_ref()?;
        Some(Platform {
            os: platform.os().to_string(),
            architecture: platform.architecture().to_string(),
            variant: platform.variant().clone(),
        })
    }

    fn of_config(config: &ImageConfiguration) -> Platform {
        Platform {
            os: config.os().to_string(),
            architecture: config.architecture().to_string(),
            variant: config.variant().clone(),
        }
    }

    /// Variants are levels within an architecture (arm64 v8, amd64 v3): without a wish any will do.
    fn accepts(&self, offered: &Platform) -> bool {
        self.os == offered.os
            && self.architecture == offered.architecture
            && (self.variant.is_none() || self.variant == offered.variant)
    }

    /// A configuration that says nothing about its platform (built by hand, from scratch) is taken.
    pub(crate) fn check_config(&self, image: &str, config: &ImageConfiguration) -> Result<()> {
        let offered = Platform::of_config(config);
        let silent = offered.architecture.is_empty() && offered.os.is_empty();
        if silent || self.accepts(&offered) {
            return Ok(());
        }
        Err(Error::WrongPlatform {
            image: image.to_owned(),
            wanted: self.to_string(),
            has: vec![offered.to_string()],
        })
    }

    /// The manifest of an index that is for this platform. Variants that ask for newer processors than the
    /// baseline (`amd64/v3`) come last, whatever the order in the index.
    pub(crate) fn choose<'i>(&self, image: &str, index: &'i ImageIndex) -> Result<&'i Descriptor> {
        let baseline = |variant: Option<&str>| matches!(variant, None | Some("" | "v1" | "v8"));
        let candidates: Vec<(Platform, &Descriptor)> = index
            .manifests()
            .iter()
            .filter_map(|descriptor| Some((Platform::of_descriptor(descriptor)?, descriptor)))
            .filter(|(platform, _)| self.accepts(platform))
            .collect();
        let chosen = candidates
            .iter()
            .find(|(platform, _)| baseline(platform.variant.as_deref()))
            .or(candidates.first())
            .map(|(_, descriptor)| *descriptor);
        // An index with a single manifest of an unnamed platform: its configuration will tell.
        let only = match index.manifests().as_slice() {
            [only] if only.platform().is_none() => Some(only),
            _ => None,
        };
        chosen.or(only).ok_or_else(|| Error::WrongPlatform {
            image: image.to_owned(),
            wanted: self.to_string(),
            has: offered(index),
        })
    }
}

/// Attestations are stored beside images under the platform unknown/unknown.
fn offered(index: &ImageIndex) -> Vec<String> {
    let mut has: Vec<String> = index
        .manifests()
        .iter()
        .map(|descriptor| match Platform::of_descriptor(descriptor) {
            Some(platform) => platform.to_string(),
            None => "an unnamed platform".to_owned(),
        })
        .filter(|platform| platform != "unknown/unknown")
        .collect();
    has.dedup();
    if has.is_empty() {
        has.push("no platform at all".to_owned());
    }
    has
}

pub(crate) fn is_index(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageIndex => true,
        other => other.to_string() == "application/vnd.docker.distribution.manifest.list.v2+json",
    }
}

impl std::str::FromStr for Platform {
    type Err = String;

    /// `os/architecture[/variant]`, as Docker's `--platform` takes it.
    fn from_str(text: &str) -> std::result::Result<Platform, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let word =
            |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        match parts.as_slice() {
            [os, architecture, rest @ ..] if rest.len() <= 1 && parts.iter().all(word) => Ok(Platform {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: rest.first().map(|variant| (*variant).to_owned()),
            }),
            _ => {
                Err("a platform is os/architecture or os/architecture/variant, such as linux/arm64"
                    .to_owned())
            }
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{variant}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn index(platforms: &[(&str, &str, Option<&str>)]) -> ImageIndex {
        let manifests: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(n, (os, architecture, variant))| {
                let mut platform = json!({"os": os, "architecture": architecture});
                if let Some(variant) = variant {
                    platform["variant"] = json!(variant);
                }
                json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
                    "digest": format!("sha256:{n:064}"), "platform": platform})
            })
            .collect();
        serde_json::from_value(json!({"schemaVersion": 2, "manifests": manifests})).expect("an index")
    }

    #[test]
    fn choose_table() {
        let amd64 = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let cases: [(&str, ImageIndex, Option<usize>); 5] = [
            (
                "among many",
                index(&[
                    ("linux", "arm64", Some("v8")),
                    ("linux", "amd64", None),
                    ("unknown", "unknown", None),
                ]),
                Some(1),
            ),
            ("baseline first", index(&[("linux", "amd64", Some("v3")), ("linux", "amd64", None)]), Some(1)),
            ("only a newer variant", index(&[("linux", "amd64", Some("v3"))]), Some(0)),
            ("another system", index(&[("windows", "amd64", None)]), None),
            ("nothing", index(&[]), None),
        ];
        for (name, index, expect) in cases {
            let chosen = amd64.choose("x", &index).ok();
            let expect = expect.map(|n| &index.manifests()[n]);
            assert_eq!(chosen, expect, "{name}");
        }
    }

    #[test]
    fn parse_table() {
        for (text, good) in [
            ("linux/amd64", true),
            ("linux/arm/v7", true),
            ("linux", false),
            ("linux/", false),
            ("linux/arm/v7/x", false),
            ("", false),
        ] {
            let parsed = text.parse::<Platform>();
            assert_eq!(
                parsed.as_ref().map(ToString::to_string).ok(),
                good.then(|| text.to_owned()),
                "{text:?}"
            );
        }
    }

    #[test]
    fn says_what_there_is() {
        let amd64 = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let index = index(&[("linux", "arm", Some("v7")), ("unknown", "unknown", None)]);
        let error = amd64.choose("nginx", &index).expect_err("no amd64");
        assert_eq!(error.to_string(), "nginx is for linux/arm/v7, this machine needs linux/amd64");
    }
}

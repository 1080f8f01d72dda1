//! Which hosts are asked for the images of a registry: its mirrors in order, then the registry itself.
//!
//! Configured as containerd's users know it, one folder a registry: `<dir>/<registry>/hosts.toml`, or
//! `<dir>/_default/hosts.toml` for all the others; without a `hosts.toml` its `*.crt` files are trusted for the registry.
//!
//! ```toml
//! server = "https://registry-1.docker.io"
//!
//! [host."http://mirror.local:5000"]
//! capabilities = ["pull", "resolve"]   # resolve: may say which digest a tag has
//! ca = "ca.crt"                        # beside this file
//! client = [["client.crt", "client.key"]]
//! skip_verify = false
//! override_path = false                # the URL is complete: no /v2 is added
//! dial_timeout = "5s"                  # for a connection to be made
//! header = { x-team = "a" }            # said in each request; a redirect takes it along, as with containerd
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::error::{At, Error, Result};
use crate::reference::Reference;

const FILE: &str = "hosts.toml";
const DEFAULT_DIR: &str = "_default";

/// One host that may have the image.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// Without a slash at its end; `/<repository>/manifests/…` follows.
    pub(crate) base: Url,
    /// Whether it may be asked for the digest of a tag.
    pub(crate) resolve: bool,
    /// Whether it may be asked for manifests by digest and for blobs.
    pub(crate) pull: bool,
    /// The registry that the reference names, and no mirror.
    pub(crate) is_own: bool,
    pub(crate) tls: Tls,
    /// For a connection to be made.
    pub(crate) connect: Option<Duration>,
    pub(crate) headers: HeaderMap,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tls {
    /// PEM, trusted beside the machine's own.
    pub(crate) authorities: Vec<Vec<u8>>,
    /// Certificate and key, PEM.
    pub(crate) identity: Option<Vec<u8>>,
    pub(crate) skip_verify: bool,
}

impl Host {
    /// As credentials are kept: name and port.
    pub(crate) fn key(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        self.base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    own: Settings,
}

/// Of one host; at the top of the file those of `server`.
#[derive(Clone, Default, Deserialize)]
struct Settings {
    capabilities: Option<Vec<Capability>>,
    #[serde(default)]
    ca: OneOrMany<PathBuf>,
    #[serde(default)]
    client: OneOrMany<Client>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany<String>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Capability {
    Pull,
    Resolve,
    /// Of no interest here.
    Push,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        OneOrMany::Many(Vec::new())
    }
}

impl<T> OneOrMany<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        }
    }
}

/// A file with both, or certificate and key.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Client {
    Both(PathBuf),
    Pair(PathBuf, PathBuf),
}

/// The hosts to ask for `reference`, the registry itself last. Blocks for a few small files.
pub(crate) fn hosts(dir: Option<&Path>, reference: &Reference) -> Result<Vec<Host>> {
    let own_url = own_url(reference);
    if let Some(dir) = dir {
        for name in [reference.registry_key(), DEFAULT_DIR] {
            let dir = dir.join(name);
            let file = dir.join(FILE);
            match fs::read_to_string(&file) {
                Ok(text) => return read(&dir, &file, &text, &own_url),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("read", &file, e)),
            }
            if dir.is_dir() {
                let settings = Settings { ca: OneOrMany::Many(certificates(&dir)?), ..Settings::default() };
                return Ok(vec![host(&dir, &dir, &own_url, &settings, true)?]);
            }
        }
    }
    Ok(vec![host(Path::new(""), Path::new("built in"), &own_url, &Settings::default(), true)?])
}

/// Registries on this machine speak plain HTTP, as Docker assumes too.
fn own_url(reference: &Reference) -> String {
    match reference.registry_key() {
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        local if reference.is_local_registry() => format!("http://{local}"),
        other => format!("https://{other}"),
    }
}

fn read(dir: &Path, path: &Path, text: &str, own_url: &str) -> Result<Vec<Host>> {
    let bad = |reason: String| Error::BadConfiguration { path: path.to_path_buf(), reason };
    let file: File = toml::from_str(text).map_err(|e| bad(explain(text, &e)))?;
    let mut hosts = Vec::new();
    for (url, settings) in file.host {
        const KNOWN: [&str; 7] =
            ["capabilities", "ca", "client", "skip_verify", "override_path", "dial_timeout", "header"];
        let table = settings.as_table().ok_or_else(|| bad(format!("host {url:?} is no table")))?;
        if let Some(unknown) = table.keys().find(|key| !KNOWN.contains(&key.as_str())) {
            return Err(bad(format!("host {url:?}: {unknown} is not supported")));
        }
        let settings: Settings =
            settings.try_into().map_err(|e| bad(format!("host {url:?}: {}", e.message())))?;
        hosts.push(host(dir, path, &url, &settings, url == own_url)?);
    }
    let server = file.server.as_deref().unwrap_or(own_url);
    // Named among the hosts already: asked in that order.
    let last = host(dir, path, server, &file.own, true)?;
    if !hosts.iter().any(|host| host.base == last.base) {
        hosts.push(last);
    }
    Ok(hosts)
}

fn explain(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1));
    line.map_or_else(|| error.message().to_owned(), |line| format!("line {line}: {}", error.message()))
}

fn host(dir: &Path, path: &Path, url: &str, settings: &Settings, is_own: bool) -> Result<Host> {
    let bad = |reason: String| Error::BadConfiguration { path: path.to_path_buf(), reason };
    let whole = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let mut base: Url = whole.parse().map_err(|e| bad(format!("{url:?} is no URL: {e}")))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err(bad(format!("{url:?} is no address of a web server")));
    }
    let given = base.path().trim_end_matches('/').to_owned();
    let complete = settings.override_path || given.ends_with("/v2");
    base.set_path(&if complete { given } else { format!("{given}/v2") });
    base.set_query(None);
    let all = [Capability::Pull, Capability::Resolve];
    let capabilities = settings.capabilities.as_deref().unwrap_or(&all);
    let read = |file: &Path| {
        let file = dir.join(file);
        fs::read(&file).at("read", &file)
    };
    let identity = match settings.client.as_slice().first() {
        None => None,
        Some(Client::Both(both)) => Some(read(both)?),
        Some(Client::Pair(certificate, key)) => {
            Some([read(certificate)?, b"\n".to_vec(), read(key)?].concat())
        }
    };
    let connect = match settings.dial_timeout.as_deref() {
        None => None,
        Some(text) => Some(duration(text).ok_or_else(|| bad(format!("dial_timeout {text:?} is no time")))?),
    };
    let mut headers = HeaderMap::new();
    for (name, values) in &settings.header {
        for value in values.as_slice() {
            let name: HeaderName =
                name.parse().map_err(|_| bad(format!("header {name:?} is no name of one")))?;
            let value: HeaderValue =
                value.parse().map_err(|_| bad(format!("header {name}: it cannot have that value")))?;
            headers.append(name, value);
        }
    }
    Ok(Host {
        base,
        connect,
        headers,
        resolve: capabilities.contains(&Capability::Resolve),
        pull: capabilities.contains(&Capability::Pull),
        is_own,
        tls: Tls {
            authorities: settings.ca.as_slice().iter().map(|ca| read(ca)).collect::<Result<_>>()?,
            identity,
            skip_verify: settings.skip_verify,
        },
    })
}

/// A whole number and its unit, as people write it.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}

fn certificates(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        let path = entry.at("list", dir)?.path();
        if path.extension().is_some_and(|extension| extension == "crt") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(hosts: &[Host]) -> Vec<String> {
        let word = |yes: bool, word: &'static str| if yes { word } else { "" };
        hosts
            .iter()
            .map(|h| {
                let words = [word(h.resolve, " resolve"), word(h.pull, " pull"), word(h.is_own, " own")];
                format!("{}{}", h.base, words.concat())
            })
            .collect()
    }

    #[test]
    fn without_configuration() {
        for (image, expect) in [
            ("nginx", "https://registry-1.docker.io/v2 resolve pull own"),
            ("quay.io/a/b", "https://quay.io/v2 resolve pull own"),
            ("127.0.0.1:5000/a", "http://127.0.0.1:5000/v2 resolve pull own"),
        ] {
            let image = Reference::parse(image).expect(image);
            assert_eq!(shown(&hosts(None, &image).expect("built in")), [expect]);
            assert_eq!(shown(&hosts(Some(Path::new("/nonexistent")), &image).expect("built in")), [expect]);
        }
    }

    #[test]
    fn files_table() {
        let cases: [(&str, &str, &str, &[&str]); 6] = [
            (
                "mirrors in the order of the file",
                "docker.io",
                "[host.\"http://z:5000\"]\n[host.\"https://a/cache/\"]\ncapabilities = [\"pull\"]\n",
                &[
                    "http://z:5000/v2 resolve pull",
                    "https://a/cache/v2 pull",
                    "https://registry-1.docker.io/v2 resolve pull own",
                ],
            ),
            (
                "another server, a complete path",
                "docker.io",
                "server = \"https://proxy/hub\"\noverride_path = true\n",
                &["https://proxy/hub resolve pull own"],
            ),
            (
                "the server among the hosts",
                "docker.io",
                "server = \"https://a\"\n[host.\"https://a\"]\n[host.\"https://b\"]\n",
                &["https://a/v2 resolve pull", "https://b/v2 resolve pull"],
            ),
            ("a host alone", "docker.io", "server = \"a:5000\"\n", &["https://a:5000/v2 resolve pull own"]),
            (
                "the default",
                "_default",
                "[host.\"http://m\"]\n",
                &["http://m/v2 resolve pull", "https://registry-1.docker.io/v2 resolve pull own"],
            ),
            (
                "of another registry",
                "quay.io",
                "server = \"https://a\"\n",
                &["https://registry-1.docker.io/v2 resolve pull own"],
            ),
        ];
        for (name, folder, text, expect) in cases {
            let dir = tempfile::tempdir().expect("a folder");
            fs::create_dir(dir.path().join(folder)).expect("make");
            fs::write(dir.path().join(folder).join(FILE), text).expect("write");
            let image = Reference::parse("nginx").expect("a name");
            assert_eq!(shown(&hosts(Some(dir.path()), &image).expect(name)), expect, "{name}");
        }
    }

    #[test]
    fn bad_files_say_where() {
        for (text, expect) in [
            ("server = 7\n", "invalid type"),
            ("host = [\n", "line 1"),
            ("servr = \"https://a\"\n", "servr"),
            ("[host.\"https://a\"]\nproxy = {}\n", "proxy is not supported"),
            ("[host.\"https://a\"]\nheader = { \"a b\" = \"c\" }\n", "\"a b\" is no name"),
            ("[host.\"https://a\"]\ndial_timeout = \"soon\"\n", "\"soon\" is no time"),
            ("[host.\"https://a\"]\ncapabilities = [\"eat\"]\n", "unknown variant `eat`"),
            ("[host.\"ftp://a\"]\n", "no address of a web server"),
            ("[host.\"https://a\"]\nca = \"missing.crt\"\n", "missing.crt"),
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            fs::create_dir(dir.path().join("quay.io")).expect("make");
            fs::write(dir.path().join("quay.io").join(FILE), text).expect("write");
            let image = Reference::parse("quay.io/a").expect("a name");
            let error = hosts(Some(dir.path()), &image).expect_err(text).to_string();
            assert!(error.contains(expect) && error.contains("quay.io"), "{text}: {error}");
        }
    }

    #[test]
    fn headers_and_times() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("quay.io")).expect("make");
        let text = "[host.\"https://a\"]\ndial_timeout = \"250ms\"\n[host.\"https://a\".header]\nx-a = \"b\"\nx-c = [\"d\", \"e\"]\n";
        fs::write(dir.path().join("quay.io").join(FILE), text).expect("write");
        let image = Reference::parse("quay.io/a").expect("a name");
        let hosts = hosts(Some(dir.path()), &image).expect("read");
        assert_eq!(hosts[0].connect, Some(Duration::from_millis(250)));
        let said: Vec<_> =
            hosts[0].headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(said, [("x-a", &b"b"[..]), ("x-c", b"d"), ("x-c", b"e")]);
        assert!(hosts[1].headers.is_empty() && hosts[1].connect.is_none());
    }

    #[test]
    fn certificates_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("quay.io")).expect("make");
        fs::write(dir.path().join("quay.io/ca.crt"), "pem").expect("write");
        let image = Reference::parse("quay.io/a").expect("a name");
        let hosts = hosts(Some(dir.path()), &image).expect("read");
        assert_eq!(hosts[0].tls.authorities, [b"pem".to_vec()]);
    }
}

//! Which credentials there are for a registry: given for one pull, from Kubernetes' pull secrets, or from the
//! configuration that `docker login`, `podman login` and credential helpers keep.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::auth::Auth;
use crate::error::{Error, Result};
use crate::reference::Reference;

/// A helper that asks a cloud's metadata service takes a second; one that waits for a person never ends.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
const HELPER_POLL: Duration = Duration::from_millis(10);
const HUB: &str = "docker.io";
/// Docker Hub's key for historical reasons.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// All the credentials that a pull may use.
#[derive(Clone, Debug, Default)]
pub struct Keychain {
    /// For the registry that the reference names, whichever it is.
    given: Vec<Auth>,
    configs: Vec<DockerConfig>,
}

impl Keychain {
    pub fn anonymous() -> Keychain {
        Keychain::default()
    }

    /// Credentials for the registry of the image that is pulled, and for no mirror of it.
    pub fn of(auth: Auth) -> Keychain {
        Keychain { given: vec![auth], configs: Vec::new() }
    }

    /// Those of the user: `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, and
    /// podman's `$XDG_RUNTIME_DIR/containers/auth.json`.
    pub fn of_user() -> Result<Keychain> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let mut keychain = Keychain::default();
        for path in user_files(variable) {
            keychain.add_file(&path)?;
        }
        Ok(keychain)
    }

    /// Docker's own of the user that this process is.
    pub fn file_of_user() -> Option<PathBuf> {
        docker_file(&|name: &str| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// Asked after those that were added before.
    pub fn add(&mut self, config: DockerConfig) {
        self.configs.push(config);
    }

    /// The same from a file of this machine, whose credential helpers are asked too. A file that does not exist
    /// adds nothing.
    pub fn add_file(&mut self, path: &Path) -> Result<()> {
        match fs::read(path) {
            Ok(bytes) => {
                let mut config = DockerConfig::parse(&path.display().to_string(), &bytes)?;
                config.may_run_helpers = true;
                self.configs.push(config);
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("read", path, e)),
        }
    }

    /// What to try for a host, best first; empty for nobody in particular. `own` when the host is the registry
    /// that the reference names. Blocks while a credential helper runs.
    pub(crate) fn lookup(&self, host: &str, repository: &str, own: bool) -> Result<Vec<Auth>> {
        let mut found: Vec<Auth> = if own { self.given.clone() } else { Vec::new() };
        for config in &self.configs {
            found.extend(config.lookup(host, repository)?);
        }
        found.retain(|auth| *auth != Auth::Anonymous);
        let mut unique = Vec::new();
        for auth in found {
            if !unique.contains(&auth) {
                unique.push(auth);
            }
        }
        Ok(unique)
    }
}

fn user_files(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let docker = docker_file(&variable);
    let podman =
        variable("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("containers").join("auth.json"));
    let named = variable("REGISTRY_AUTH_FILE").map(PathBuf::from);
    named.into_iter().chain(docker).chain(podman).collect()
}

fn docker_file(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let dir = variable("DOCKER_CONFIG").map(PathBuf::from);
    let dir = dir.or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".docker")));
    dir.map(|dir| dir.join("config.json"))
}

/// A docker `config.json`, a secret's `.dockerconfigjson`, or the older `.dockercfg` (the entries alone).
#[derive(Clone, Default)]
pub struct DockerConfig {
    name: String,
    auths: Map<String, Value>,
    helpers: Map<String, Value>,
    store: Option<String>,
    /// A secret of the cluster must not start programs on the node.
    may_run_helpers: bool,
}

/// Secrets do not appear in logs.
impl std::fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerConfig")
            .field("name", &self.name)
            .field("registries", &self.auths.keys())
            .finish()
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: Map<String, Value>,
    #[serde(default, rename = "credHelpers")]
    helpers: Map<String, Value>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl DockerConfig {
    /// `name` is what errors call it.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<DockerConfig> {
        let bad = |reason: String| Error::BadCredentials { origin: name.to_owned(), reason };
        let value: Map<String, Value> = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        let is_new = ["auths", "credHelpers", "credsStore"].iter().any(|key| value.contains_key(*key));
        // A configuration without credentials has other settings, none of which is an object with a password.
        let looks_old = !value.is_empty() && value.values().all(Value::is_object);
        let file = if is_new || !looks_old {
            serde_json::from_value(Value::Object(value)).map_err(|e| bad(e.to_string()))?
        } else {
            File { auths: value, helpers: Map::new(), store: None }
        };
        let store = file.store.filter(|store| !store.is_empty());
        let File { auths, helpers, .. } = file;
        Ok(DockerConfig { name: name.to_owned(), auths, helpers, store, may_run_helpers: false })
    }

    fn lookup(&self, host: &str, repository: &str) -> Result<Vec<Auth>> {
        if self.may_run_helpers
            && let Some(helper) = self.helpers.get(host).and_then(Value::as_str)
        {
            return Ok(self.ask(helper, host)?.into_iter().collect());
        }
        let mut matching: Vec<(usize, &Value)> = self
            .auths
            .iter()
            .filter_map(|(key, value)| Some((specificity(key, host, repository)?, value)))
            .collect();
        matching.sort_by_key(|(specificity, _)| std::cmp::Reverse(*specificity));
        let mut found = Vec::new();
        for (_, value) in matching {
            // `docker login` with a store leaves empty entries here.
            found.extend(self.entry(value)?.filter(|auth| *auth != Auth::Anonymous));
        }
        if found.is_empty()
            && self.may_run_helpers
            && let Some(store) = &self.store
        {
            found.extend(self.ask(store, host)?);
        }
        Ok(found)
    }

    fn bad(&self, reason: impl ToString) -> Error {
        Error::BadCredentials { origin: self.name.clone(), reason: reason.to_string() }
    }

    fn entry(&self, value: &Value) -> Result<Option<Auth>> {
        let entry: Entry = serde_json::from_value(value.clone()).map_err(|e| self.bad(e))?;
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(token) = given(entry.registrytoken) {
            return Ok(Some(Auth::Bearer(token)));
        }
        if let Some(token) = given(entry.identitytoken) {
            return Ok(Some(Auth::Identity(token)));
        }
        if let (Some(username), Some(password)) = (given(entry.username), given(entry.password)) {
            return Ok(Some(Auth::Basic { username, password }));
        }
        let Some(encoded) = given(entry.auth) else { return Ok(None) };
        let decoded = STANDARD.decode(encoded.trim()).map_err(|e| self.bad(format!("auth: {e}")))?;
        let decoded = String::from_utf8(decoded).map_err(|e| self.bad(format!("auth: {e}")))?;
        let (username, password) =
            decoded.split_once(':').ok_or_else(|| self.bad("auth: it has no colon in it"))?;
        // Docker pads passwords with zero bytes.
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Auth::Basic { username: username.to_owned(), password }))
    }

    /// What `docker-credential-<helper>` knows about a host.
    fn ask(&self, helper: &str, host: &str) -> Result<Option<Auth>> {
        let program = format!("docker-credential-{helper}");
        if helper.is_empty() || helper.contains('/') {
            return Err(self.bad(format!("{helper:?} is not the name of a credential helper")));
        }
        let server = if host == HUB { HUB_KEY } else { host };
        let output = run(&program, server).map_err(|e| self.bad(format!("{program}: {e}")))?;
        self.answer(&program, &output)
    }

    fn answer(&self, program: &str, output: &Output) -> Result<Option<Auth>> {
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            if said.contains("credentials not found") {
                return Ok(None);
            }
            return Err(self.bad(format!("{program}: {}", said.lines().next().unwrap_or("it failed"))));
        }
        let answer: Answer = serde_json::from_slice(&output.stdout)
            .map_err(|_| self.bad(format!("{program}: its answer is not what helpers answer")))?;
        Ok(Some(match answer.username.as_str() {
            "<token>" => Auth::Identity(answer.secret),
            _ => Auth::Basic { username: answer.username, password: answer.secret },
        }))
    }
}

/// Of a credential helper.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

fn run(program: &str, server: &str) -> std::io::Result<Output> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read has its reasons, and an exit code.
        let _ = stdin.write_all(server.as_bytes());
    }
    let deadline = Instant::now() + HELPER_TIMEOUT;
    // Its answer is far smaller than a pipe: it does not wait for a reader.
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut));
        }
        std::thread::sleep(HELPER_POLL);
    }
    child.wait_with_output()
}

impl Reference {
    /// How configurations call its registry.
    pub(crate) fn registry_key(&self) -> &str {
        match self.registry() {
            "index.docker.io" | "registry-1.docker.io" => HUB,
            other => other,
        }
    }
}

/// How many bytes of host and path the key fixes; `None` when it is about something else. Keys may carry a scheme, a
/// path and `*` in their host.
fn specificity(key: &str, host: &str, repository: &str) -> Option<usize> {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (key_host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = match path.split_once('/').unwrap_or((path, "")) {
        ("v1" | "v2", rest) => rest,
        _ => path,
    };
    let key_host =
        if matches!(key_host, "index.docker.io" | "registry-1.docker.io") { HUB } else { key_host };
    let same_path = path.is_empty()
        || repository == path
        || repository.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    (same_path && host_matches(key_host, host)).then_some(key_host.len() + path.len())
}

/// `*` stands for one label, as Kubernetes has it.
fn host_matches(pattern: &str, host: &str) -> bool {
    let (pattern, host): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    pattern.len() == host.len() && pattern.iter().zip(&host).all(|(p, h)| *p == "*" || p == h)
}

#[cfg(test)]
#[path = "keychain_tests.rs"]
mod tests;

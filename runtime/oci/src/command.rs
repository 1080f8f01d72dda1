//! The commands: which flags each has, and who carries it out.

use std::path::PathBuf;
use std::time::Duration;

use crate::args::{Flag, Parsed, switch, value};
use crate::bundle::Bundle;
use crate::console::Inherited;
use crate::create::{Extras, Request, create};
use crate::error::{Error, Result};
use crate::log::Log;
use crate::state::Folder;
use crate::{delete, exec, features, run, signal, start, template, update, watch};

/// Flags before the command.
pub const GLOBAL: &[Flag] = &[
    value(&["root"]),
    value(&["log"]),
    value(&["log-format"]),
    switch(&["debug"]),
    switch(&["systemd-cgroup"]),
    value(&["rootless"]),
    value(&["criu"]),
    // crun's word for it.
    value(&["cgroup-manager"]),
    switch(&["help", "h"]),
    switch(&["version", "v"]),
];

const CREATE: &[Flag] = &[
    value(&["bundle", "b"]),
    value(&["config", "f"]),
    value(&["console-socket"]),
    value(&["pidfd-socket"]),
    value(&["pid-file"]),
    switch(&["no-pivot"]),
    switch(&["no-new-keyring"]),
    value(&["preserve-fds"]),
];

/// What `run` has beside those of `create`.
const FOREGROUND: &[Flag] = &[switch(&["detach", "d"]), switch(&["keep"]), switch(&["no-subreaper"])];

const EXEC: &[Flag] = &[
    value(&["console-socket"]),
    value(&["pidfd-socket"]),
    value(&["cwd"]),
    value(&["env", "e"]),
    switch(&["tty", "t"]),
    value(&["user", "u"]),
    value(&["additional-gids", "g"]),
    value(&["process", "p"]),
    switch(&["detach", "d"]),
    value(&["pid-file"]),
    value(&["process-label"]),
    value(&["apparmor"]),
    switch(&["no-new-privs"]),
    value(&["cap", "c"]),
    value(&["preserve-fds"]),
    value(&["cgroup"]),
    switch(&["ignore-paused"]),
    switch(&["no-subreaper"]),
];

/// Name, groups of flags, and a line about it.
const COMMANDS: &[(&str, &[&[Flag]], &str)] = &[
    ("checkpoint", &[], "refused: this runtime makes no checkpoints"),
    ("create", &[CREATE], "create a container"),
    ("delete", &[&[switch(&["force", "f"])]], "delete any resources held by the container"),
    ("events", &[&[switch(&["stats"]), value(&["interval"])]], "display container events and statistics"),
    ("exec", &[EXEC], "execute new process inside the container"),
    ("features", &[], "show the enabled features"),
    (
        "kill",
        &[&[switch(&["all", "a"])]],
        "kill sends the specified signal (default: SIGTERM) to the container",
    ),
    ("list", &[&[value(&["format", "f"]), switch(&["quiet", "q"])]], "lists containers with the given root"),
    ("pause", &[], "pause suspends all processes inside the container"),
    ("ps", &[&[value(&["format", "f"])]], "ps displays the processes running inside a container"),
    ("restore", &[], "refused: this runtime makes no checkpoints"),
    ("resume", &[], "resumes all processes that have been previously paused"),
    ("run", &[CREATE, FOREGROUND], "create and run a container"),
    ("spec", &[&[value(&["bundle", "b"]), switch(&["rootless"])]], "create a new specification file"),
    ("start", &[], "executes the user defined process in a created container"),
    ("state", &[], "output the state of a container"),
    ("update", &[update::FLAGS], "update container resource constraints"),
];

/// A command line, read but not yet carried out.
#[derive(Debug)]
pub struct Invocation {
    global: Parsed,
    root: PathBuf,
    command: &'static str,
    flags: Parsed,
    inherited: Inherited,
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Asked {
    Command(Box<Invocation>),
    /// A text, and nothing else.
    Text(String),
}

/// Reads a command line. Opens nothing: descriptors to preserve are taken here, before ours can get their numbers.
pub fn read(words: impl IntoIterator<Item = String>) -> Result<Asked> {
    let global = Parsed::read(&[GLOBAL], words)?;
    if global.is_set("version") {
        let version = env!("CARGO_PKG_VERSION");
        return Ok(Asked::Text(format!("pith-oci version {version}\nspec: {}\n", crate::SPEC_VERSION)));
    }
    let Some((name, words)) = global.rest.split_first() else { return Ok(Asked::Text(help())) };
    if global.is_set("help") || matches!(name.as_str(), "help" | "h") {
        return Ok(Asked::Text(help()));
    }
    let found = COMMANDS.iter().find(|(command, ..)| command == name);
    let (command, known, about) = found.ok_or_else(|| Error::UnknownCommand(name.clone()))?;
    let refused = ["checkpoint", "restore"].contains(command);
    let words = words.iter().cloned();
    let asks_for_help = |word: &String| ["-h", "--h", "-help", "--help"].contains(&word.as_str());
    let flags = match *command {
        _ if words.clone().next().is_some_and(|word| asks_for_help(&word)) => {
            return Ok(Asked::Text(help_on(command, known, about)));
        }
        _ if refused => Parsed::default(),
        // A command to execute, and ps's options, come behind the id.
        "exec" | "ps" => Parsed::read(known, words)?,
        _ => Parsed::read_all(known, words)?,
    };
    let launches = ["create", "run", "exec"].contains(command);
    let inherited =
        if launches { Inherited::take(flags.number("preserve-fds")?)? } else { Inherited::default() };
    let root = root(&global);
    Ok(Asked::Command(Box::new(Invocation { global: global.clone(), root, command, flags, inherited })))
}

/// Where the containers' folders are.
fn root(global: &Parsed) -> PathBuf {
    if let Some(root) = global.get("root").filter(|root| !root.is_empty()) {
        return std::path::absolute(root).unwrap_or_else(|_| root.into());
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !rustix::process::geteuid().is_root());
    own.map_or_else(|| "/run/pith-oci".into(), |dir| PathBuf::from(dir).join("pith-oci"))
}

fn help() -> String {
    let mut text = "NAME:\n   pith-oci - an OCI runtime\n\nUSAGE:\n   \
        pith-oci [global options] command [command options] [arguments...]\n\nCOMMANDS:\n"
        .to_owned();
    for (name, _, about) in COMMANDS {
        text.push_str(&format!("   {name:<12}{about}\n"));
    }
    text.push_str(&format!("\nGLOBAL OPTIONS:\n{}", help_on_flags(GLOBAL)));
    text
}

fn help_on(command: &str, known: &[&[Flag]], about: &str) -> String {
    let mut text = format!(
        "NAME:\n   pith-oci {command} - {about}\n\nUSAGE:\n   pith-oci {command} [command options] [arguments...]\n"
    );
    if !known.is_empty() {
        text.push_str("\nOPTIONS:\n");
        text.extend(known.iter().map(|flags| help_on_flags(flags)));
    }
    text
}

fn help_on_flags(flags: &[Flag]) -> String {
    let line = |flag: &Flag| {
        let names = flag
            .names
            .iter()
            .map(|name| if name.len() > 1 { format!("--{name}") } else { format!("-{name}") });
        let value = if flag.value { " value" } else { "" };
        format!("   {}{value}\n", names.collect::<Vec<String>>().join(", "))
    };
    flags.iter().map(line).collect()
}

impl Invocation {
    pub fn log(&self) -> Result<Log> {
        Log::open(self.global.get("log"), self.global.get("log-format"), self.global.is_set("debug"))
    }

    fn folder(&self) -> Result<Folder> {
        let [id] = self.flags.exactly(self.command)?;
        Folder::open(&self.root, id)
    }

    /// Carries the command out; the exit code.
    pub fn run(&self, log: &Log) -> Result<i32> {
        log.debug(&format!("{} {:?}", self.command, self.flags.rest));
        if ["create", "run"].contains(&self.command) {
            match self.global.get("cgroup-manager") {
                Some("systemd") => return Err(Error::NoSystemd),
                None | Some("" | "cgroupfs") if self.global.is_set("systemd-cgroup") => {
                    return Err(Error::NoSystemd);
                }
                None | Some("" | "cgroupfs") => {}
                Some(other) => {
                    return Err(Error::Usage(format!("cgroup manager {other:?} is not supported")));
                }
            }
        }
        match self.command {
            "create" => self.create(log).map(|()| 0),
            "run" => {
                let detach = self.flags.is_set("detach");
                run::run(self.request(log, !detach)?, detach, self.flags.is_set("keep"))
            }
            "exec" => {
                let (id, words) = self.flags.at_least_one(self.command)?;
                Folder::open(&self.root, id)
                    .and_then(|folder| exec::exec(&folder, &self.flags, words, &self.inherited, log))
                    .map_err(|error| Error::Exec(Box::new(error)))
            }
            "kill" => {
                let (id, words) = self.flags.at_least_one(self.command)?;
                let folder = Folder::open(&self.root, id)?;
                let signal = words.first().map(String::as_str);
                signal::kill(&folder, signal, self.flags.is_set("all")).map(|()| 0)
            }
            "ps" => {
                let (id, words) = self.flags.at_least_one(self.command)?;
                let format = self.flags.get("format").unwrap_or("table");
                watch::processes(&Folder::open(&self.root, id)?, format, words).map(|()| 0)
            }
            _ => self.run_simple(log).map(|()| 0),
        }
    }

    fn run_simple(&self, log: &Log) -> Result<()> {
        match self.command {
            "start" => start::start(&self.folder()?, log),
            "state" => self.state(),
            "delete" => self.delete(log),
            "pause" => signal::pause(&self.folder()?),
            "resume" => signal::resume(&self.folder()?),
            "update" => update::update(&self.folder()?, &self.flags),
            "list" => {
                let format = self.flags.get("format").unwrap_or("table");
                watch::list(&self.root, format, self.flags.is_set("quiet"))
            }
            "events" => {
                let interval = self.flags.get("interval").unwrap_or("5s");
                let interval: Duration = watch::duration(interval)
                    .ok_or_else(|| Error::Usage(format!("invalid interval {interval:?}")))?;
                watch::events(&self.folder()?, self.flags.is_set("stats"), interval)
            }
            "features" => {
                println!("{}", pretty(&features::features()));
                Ok(())
            }
            "spec" => {
                let dir = PathBuf::from(self.flags.get("bundle").unwrap_or("."));
                template::write(&dir, self.flags.is_set("rootless"))
            }
            other => Err(Error::NoCheckpoint(if other == "restore" { "restore" } else { "checkpoint" })),
        }
    }

    fn request<'a>(&'a self, log: &'a Log, attached: bool) -> Result<Request<'a>> {
        let [id] = self.flags.exactly(self.command)?;
        if self.flags.get("pidfd-socket").is_some() {
            return Err(Error::Usage("pidfd-socket is not supported".to_owned()));
        }
        // Named from where this was called; the bundle is the working directory from here on.
        let pid_file = self.flags.get("pid-file").filter(|path| !path.is_empty());
        let pid_file =
            pid_file.map(std::path::absolute).transpose().map_err(Error::io("name", "the pid file"))?;
        Ok(Request {
            root: &self.root,
            id,
            bundle: Bundle::open(
                self.flags.get("bundle"),
                self.flags.get("config").unwrap_or("config.json"),
                log,
            )?,
            extras: Extras::default(),
            console_socket: self.flags.get("console-socket").filter(|path| !path.is_empty()),
            pid_file,
            inherited: &self.inherited,
            no_pivot: self.flags.is_set("no-pivot"),
            no_new_keyring: self.flags.is_set("no-new-keyring"),
            attached,
            tied: false,
            witness: log,
        })
    }

    fn create(&self, log: &Log) -> Result<()> {
        create(&mut self.request(log, false)?).map(drop)
    }

    fn state(&self) -> Result<()> {
        let folder = self.folder()?;
        let state = folder.load()?;
        let report = state.report(state.status(&folder));
        println!("{}", pretty(&serde_json::to_value(report).expect("text and numbers are valid JSON")));
        Ok(())
    }

    fn delete(&self, log: &Log) -> Result<()> {
        let [id] = self.flags.exactly(self.command)?;
        if self.flags.is_set("force") {
            return delete::remove_container(&self.root, id, log);
        }
        delete::delete(&Folder::open(&self.root, id)?, false, log)
    }
}

fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).expect("a JSON value is valid JSON")
}

//! One container from create over the exit of its program to delete: pith-oci, crun and runc in turns.
//!
//! Each runtime is called by a shell of its own that stays, so that all pay the same for being called. crun's shell has
//! a mount namespace without the version 2 cgroups: Debian's crun refuses hosts that have both versions.

mod program;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::memory::{self, KernelMemory, Memory};
use program::{Does, smallest};

const ROUNDS: usize = 40;
/// Containers that are there in the second half.
const CROWD: usize = 500;
const UNIFIED: &str = "/sys/fs/cgroup/unified";

pub(crate) fn run(pith: &Path) -> Result<()> {
    let bench = Bench::new(&pith.with_file_name("pith-oci"))?;
    let mut runtimes = bench.runtimes()?;
    println!("One container, create → exit of `true` → delete, {ROUNDS} rounds in turns, milliseconds:");
    bench.compare(&mut runtimes)?;
    println!(
        "Another process in a running container (exec of `true`), {ROUNDS} rounds in turns, milliseconds:"
    );
    bench.executions(&mut runtimes)?;
    let before = KernelMemory::now()?;
    let crowd = Crowd::gather(&bench)?;
    let (process, kernel) = (crowd.process()?, KernelMemory::now()?.since(before) / CROWD as u64);
    println!(
        "Memory of a running container: {kernel} KiB of the kernel's, to hold 1024; no process of the runtime's"
    );
    println!("  (its own process, the smallest there is: {} KiB PSS)", process.pss_kib);
    println!("Create, exit and delete with {CROWD} containers present:");
    bench.compare(&mut runtimes)?;
    drop(crowd);
    bench.split()
}

/// A bundle, and where the runtimes keep their state.
struct Bench {
    dir: PathBuf,
    oci: PathBuf,
}

impl Bench {
    fn new(oci: &Path) -> Result<Bench> {
        ensure!(oci.exists(), "{} has not been built", oci.display());
        let dir = PathBuf::from(format!("/tmp/pith-bench-container-{}", std::process::id()));
        for below in ["bin", "proc", "dev", "sys"] {
            fs::create_dir_all(dir.join("rootfs").join(below))?;
        }
        let bench = Bench { dir, oci: oci.to_owned() };
        for (name, does) in [("true", Does::End), ("wait", Does::Wait)] {
            let path = bench.dir.join("rootfs/bin").join(name);
            fs::write(&path, smallest(does))?;
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        crate::run(Command::new(oci).arg("spec").arg("--bundle").arg(&bench.dir))?;
        let path = bench.dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["ociVersion"] = "1.0.2".into();
        config["process"]["terminal"] = false.into();
        for (dir, program) in [(bench.dir.clone(), "/bin/true"), (bench.waiting(), "/bin/wait")] {
            config["process"]["args"] = json!([program]);
            config["root"]["path"] = bench.dir.join("rootfs").display().to_string().into();
            fs::create_dir_all(&dir)?;
            fs::write(dir.join("config.json"), config.to_string())?;
        }
        Ok(bench)
    }

    /// The bundle whose program waits.
    fn waiting(&self) -> PathBuf {
        self.dir.join("waiting")
    }

    fn runtimes(&self) -> Result<Vec<Runtime>> {
        let found = |name: &str| {
            let output = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().ok()?;
            let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            (!path.is_empty()).then_some(path)
        };
        let mut runtimes = vec![Runtime::new(self, "pith-oci", &self.oci.display().to_string(), false)?];
        for name in ["crun", "runc"] {
            match found(name) {
                Some(path) => {
                    let hide = name == "crun" && Path::new(UNIFIED).exists();
                    runtimes.push(Runtime::new(self, name, &path, hide)?);
                }
                None => println!("  {name} is not installed (apt-get install {name}): left out"),
            }
        }
        Ok(runtimes)
    }

    fn compare(&self, runtimes: &mut [Runtime]) -> Result<()> {
        let mut floor = Vec::new();
        for _ in 0..ROUNDS {
            for runtime in runtimes.iter_mut() {
                runtime.round()?;
            }
            let first = runtimes.first_mut().context("there is a first runtime")?;
            floor.push(first.shell.time("unshare -mpfuin -C true")?);
        }
        let crun = runtimes.iter().find(|runtime| runtime.name == "crun").map(|r| median(&r.whole));
        for runtime in runtimes.iter_mut() {
            let (p50, p90) = (median(&runtime.whole), percentile(&runtime.whole, 90));
            let share = crun.map_or_else(String::new, |crun| format!("  {:.2} of crun", p50 / crun));
            let cold = runtime.whole.first().map_or(0.0, |first| milliseconds(*first));
            println!("  {:<10} p50 {p50:6.2}  p90 {p90:6.2}  first {cold:6.2}{share}", runtime.name);
            let [create, start, delete] = [0, 1, 2].map(|part| median(&runtime.parts[part]));
            println!("  {:<10} create {create:.2}, start {start:.2}, delete {delete:.2}", "");
            runtime.whole.clear();
            runtime.parts.iter_mut().for_each(Vec::clear);
        }
        println!(
            "  {:<10} p50 {:6.2}  (unshare(1): every namespace, fork, exec of `true`)",
            "floor",
            median(&floor)
        );
        Ok(())
    }

    fn executions(&self, runtimes: &mut [Runtime]) -> Result<()> {
        for runtime in runtimes.iter_mut() {
            runtime.wait(&self.waiting())?;
        }
        let mut times: Vec<Vec<Duration>> = vec![Vec::new(); runtimes.len()];
        for _ in 0..ROUNDS {
            for (runtime, times) in runtimes.iter_mut().zip(&mut times) {
                times.push(runtime.execute()?);
            }
        }
        let crun = runtimes.iter().zip(&times).find(|(runtime, _)| runtime.name == "crun");
        let crun = crun.map(|(_, times)| median(times));
        for (runtime, times) in runtimes.iter_mut().zip(&times) {
            let p50 = median(times);
            let share = crun.map_or_else(String::new, |crun| format!("  {:.2} of crun", p50 / crun));
            println!("  {:<10} p50 {p50:6.2}  p90 {:6.2}{share}", runtime.name, percentile(times, 90));
            runtime.end()?;
        }
        Ok(())
    }

    /// What one creation spends its time on, step by step.
    fn split(&self) -> Result<()> {
        let log = self.dir.join("steps");
        let mut command = Command::new(&self.oci);
        command.arg("--root").arg(self.dir.join("split")).arg("--log").arg(&log).arg("--debug");
        crate::run(command.args(["run", "pith-bench-split"]).current_dir(&self.dir))?;
        let text = fs::read_to_string(log)?;
        let mut steps: Vec<(f64, &str)> = text
            .lines()
            .filter_map(|line| line.split_once("msg=\"")?.1.strip_suffix('"')?.split_once(" us  "))
            .filter_map(|(time, step)| Some((time.trim().parse().ok()?, step)))
            .collect();
        let total: f64 = steps.iter().map(|(time, _)| time).sum();
        steps.sort_by(|a, b| b.0.total_cmp(&a.0));
        println!("Where pith-oci spends {:.2} ms that it knows of, the longest steps:", total / 1e3);
        for (time, step) in steps.iter().take(15) {
            println!("  {time:8.1} µs  {step}");
        }
        Ok(())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A shell that stays and runs one command after the other.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn new(dir: &Path, hide_unified: bool) -> Result<Shell> {
        let mut command = if hide_unified {
            let mut command = Command::new("unshare");
            let script = format!("umount {UNIFIED} && exec sh");
            command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
            command
        } else {
            Command::new("sh")
        };
        let mut child = command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("it was piped")?;
        let output = BufReader::new(child.stdout.take().context("it was piped")?);
        Ok(Shell { child, input, output })
    }

    fn time(&mut self, command: &str) -> Result<Duration> {
        let start = Instant::now();
        writeln!(self.input, "{command} </dev/null >out 2>&1; echo $?")?;
        let mut code = String::new();
        self.output.read_line(&mut code)?;
        let took = start.elapsed();
        ensure!(code.trim() == "0", "{command}: exit code {}", code.trim());
        Ok(took)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = writeln!(self.input, "exit");
        let _ = self.child.wait();
    }
}

struct Runtime {
    name: &'static str,
    program: String,
    shell: Shell,
    whole: Vec<Duration>,
    /// create, start, delete.
    parts: [Vec<Duration>; 3],
}

impl Runtime {
    fn new(bench: &Bench, name: &'static str, path: &str, hide_unified: bool) -> Result<Runtime> {
        let program = format!("{path} --root {}", bench.dir.join(name).display());
        let shell = Shell::new(&bench.dir, hide_unified)?;
        Ok(Runtime { name, program, shell, whole: Vec::new(), parts: Default::default() })
    }

    /// Starts a container that waits.
    fn wait(&mut self, bundle: &Path) -> Result<()> {
        let id = self.waiting_id();
        self.shell.time(&format!("{} run --detach --bundle {} {id}", self.program, bundle.display()))?;
        Ok(())
    }

    fn execute(&mut self) -> Result<Duration> {
        let id = self.waiting_id();
        self.shell.time(&format!("{} exec {id} /bin/true", self.program))
    }

    fn end(&mut self) -> Result<()> {
        let id = self.waiting_id();
        self.shell.time(&format!("{} delete --force {id}", self.program))?;
        Ok(())
    }

    fn waiting_id(&self) -> String {
        format!("pith-bench-{}-waiting", self.name)
    }

    fn round(&mut self) -> Result<()> {
        let id = format!("pith-bench-{}", self.name);
        let whole = self.shell.time(&format!("{} run {id}", self.program))?;
        self.whole.push(whole);
        for (part, words) in ["create", "start", "delete --force"].into_iter().enumerate() {
            let took = self.shell.time(&format!("{} {words} {id}", self.program))?;
            self.parts[part].push(took);
        }
        Ok(())
    }
}

/// Containers that run and wait, until it is dropped.
struct Crowd<'a>(&'a Bench);

impl Crowd<'_> {
    fn gather(bench: &Bench) -> Result<Crowd<'_>> {
        let crowd = Crowd(bench);
        for number in 0..CROWD {
            let bundle = bench.waiting().display().to_string();
            let status = crowd.call(&format!("run --detach --bundle {bundle}"), number).status()?;
            ensure!(status.success(), "container {number} of the crowd: {status}");
        }
        Ok(crowd)
    }

    /// What the process of one of them takes.
    fn process(&self) -> Result<Memory> {
        let output = self.call("state", 0).stdout(Stdio::piped()).output()?;
        let state: Value =
            serde_json::from_slice(&output.stdout).context("read the state of the crowd's first")?;
        memory::of(state["pid"].as_i64().context("it runs")?)
    }

    fn call(&self, words: &str, number: usize) -> Command {
        let mut command = Command::new(&self.0.oci);
        command.arg("--root").arg(self.0.dir.join("crowd")).args(words.split(' '));
        command.arg(format!("pith-bench-crowd-{number}")).current_dir(&self.0.dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        for number in 0..CROWD {
            let _ = self.call("delete --force", number).status();
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(times: &[Duration]) -> f64 {
    percentile(times, 50)
}

fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() * percent / 100).copied().map_or(f64::NAN, milliseconds)
}

//! Each step in words: the system call with its flags by name, and what it changes.

mod call;
mod change;

use std::fmt;

use crate::plan::{Mapping, Mappings, Namespace, Plan, Step};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.outside.iter().try_for_each(|step| writeln!(f, "before: {step}"))?;
        for (namespace, path) in &self.born_in {
            writeln!(f, "setns {}: be born in that {namespace} namespace", path.display())?;
        }
        writeln!(f, "{}: {}", self.birth_call(), self.birth_change())?;
        self.steps.iter().chain(&self.last).try_for_each(|step| writeln!(f, "{step}"))?;
        write!(f, "{}", self.exec_call())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call(), self.change())
    }
}

/// The flag of clone3(2) that makes a namespace new.
fn clone_flag(namespace: Namespace) -> &'static str {
    match namespace {
        Namespace::User => "CLONE_NEWUSER",
        Namespace::Mount => "CLONE_NEWNS",
        Namespace::Pid => "CLONE_NEWPID",
        Namespace::Network => "CLONE_NEWNET",
        Namespace::Ipc => "CLONE_NEWIPC",
        Namespace::Uts => "CLONE_NEWUTS",
        Namespace::Cgroup => "CLONE_NEWCGROUP",
        Namespace::Time => "CLONE_NEWTIME",
    }
}

impl Plan {
    /// The system call by which the process comes to be.
    #[must_use]
    pub fn birth_call(&self) -> String {
        let mut words = vec!["clone3", "CLONE_PIDFD"];
        words.extend(self.namespaces.iter().map(|namespace| clone_flag(*namespace)));
        words.extend(self.cgroup.as_ref().map(|_| "CLONE_INTO_CGROUP"));
        words.join(" ")
    }

    /// What that makes.
    #[must_use]
    pub fn birth_change(&self) -> String {
        let names: Vec<String> = self.namespaces.iter().map(ToString::to_string).collect();
        let mut text = match names.as_slice() {
            [] => "a process without a new namespace".to_owned(),
            names => format!("a process in new namespaces: {}", names.join(", ")),
        };
        if let Some(cgroup) = &self.cgroup {
            text.push_str(&format!(", born in cgroup {}", cgroup.display()));
        }
        text
    }

    /// The last system call of all.
    #[must_use]
    pub fn exec_call(&self) -> String {
        format!("execve {}", self.exec.args.join(" "))
    }
}

impl Mappings {
    /// How they are given to a process.
    #[must_use]
    pub fn call(&self, pid: i32) -> String {
        let ranges = |mappings: &[Mapping]| -> String {
            mappings.iter().map(|m| format!(" {} {} {}", m.inside, m.outside, m.size)).collect()
        };
        format!(
            "write to /proc/{pid}/uid_map{}; write to /proc/{pid}/gid_map{}",
            ranges(&self.uids),
            ranges(&self.gids)
        )
    }

    /// What that means.
    #[must_use]
    pub fn change(&self) -> String {
        "uids and gids inside (first), as which they count outside (second), how many".to_owned()
    }
}

//! Which function carries a step out, and the slots by which steps hand descriptors to each other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pith_sys::process::namespaces;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::plan::{Slot, Step};
use crate::trace::here;

use super::{Executor, Placed, Report, StepResult, birth, gate, mounts, process};

impl Executor {
    /// One arm a step.
    pub(super) fn step(&mut self, step: &Step) -> StepResult {
        here();
        match step {
            Step::JoinCgroup { dir } => process::join_cgroup(dir),
            Step::JoinNamespace { namespace, path } => process::join_namespace(*namespace, path),
            Step::JoinTarget { namespaces } => self.join_target(namespaces),
            Step::NewCgroupNamespace => Ok(pith_sys::process::unshare(namespaces::CGROUP)?),
            Step::AwaitMappings => {
                self.report(&Report::Mappings, &[]);
                self.wait_for_word();
                Ok(())
            }
            Step::Loopback => Ok(pith_sys::network::loopback_up()?),
            Step::NamespaceRoot => self.namespace_root(),
            Step::SessionKeyring { name } => self.session_keyring(name),
            Step::AwaitHooks { stage } => {
                self.report(&Report::Hooks(*stage), &[]);
                self.wait_for_word();
                Ok(())
            }
            Step::RunHooks { stage, hooks } => {
                self.report(&Report::Hooks(*stage), &[]);
                let state = self.wait_for_word();
                gate::run_hooks(*stage, hooks, &state)
            }
            Step::Undumpable => {
                Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
            }
            Step::DieWithParent => self.die_with_parent(),
            Step::OomScore { value } => self.oom_score(*value),
            Step::IsolateMounts => mounts::isolate(),
            Step::Filesystem { slot, kind, source, options, attributes } => {
                self.put(*slot, mounts::filesystem(kind, source, options, *attributes)?)
            }
            Step::Overlay { slot, lower, upper, work, at, user_attributes } => {
                let upper = upper.as_deref().zip(work.as_deref());
                self.put(*slot, mounts::overlay(lower, upper, at, *user_attributes)?)
            }
            Step::Bind { slot, source, recursive } => self.put(*slot, mounts::bind(source, *recursive)?),
            Step::BindDevice { slot, device } => self.put(*slot, mounts::host_device(device)?),
            Step::MapIds { slot, mappings, recursive } => {
                birth::map_ids(self.get(*slot)?.as_fd(), mappings, *recursive)
            }
            Step::SetAttributes { slot, attributes, propagation, recursive } => {
                mounts::set_attributes(self.get(*slot)?.as_fd(), *attributes, *propagation, *recursive)
            }
            Step::OpenNull { slot } => self.put(*slot, mounts::null()?),
            Step::OpenDirectory { slot, path } => {
                let directory = mounts::make_path(self.root()?, path, true)?;
                self.put(*slot, directory)
            }
            Step::MakeDirectory { slot, name, mode } => {
                mounts::make_directory(self.get(*slot)?.as_fd(), name, *mode)
            }
            Step::MakeDevice { slot, device } => mounts::make_device(self.get(*slot)?.as_fd(), device),
            Step::MakeLink { slot, name, target } => {
                mounts::make_link(self.get(*slot)?.as_fd(), name, target)
            }
            Step::PlaceRoot { slot, at } => self.place_root(*slot, at),
            Step::EnterRoot { how } => {
                self.root = Some(mounts::enter_root(self.root()?, *how)?);
                Ok(())
            }
            Step::ChangeRoot { at } => {
                self.root = Some(mounts::change_root(at)?);
                Ok(())
            }
            Step::CopyUp { slot, path } => self.copy_up(*slot, path),
            Step::NoLink { path } => mounts::no_link(self.root()?, path),
            Step::CopyMode { slot, path } => self.copy_mode(*slot, path),
            Step::Remount { target, attributes, recursive } => {
                mounts::remount(self.root()?, target, *attributes, *recursive)
            }
            Step::Attach { slot, target } => self.attach(*slot, target),
            Step::Mask { paths, null, empty } => self.mask(paths, *null, *empty),
            Step::ReadOnly { paths } => mounts::read_only(self.root()?, paths),
            Step::Sysctl { key, value } => mounts::sysctl(self.root()?, key, value),
            Step::ReadOnlyRoot => mounts::read_only_root(self.root()?),
            Step::RootPropagation { propagation, recursive } => {
                mounts::set_attributes(self.root()?, Default::default(), Some(*propagation), *recursive)
            }
            Step::Hostname { name } => Ok(rustix::system::sethostname(name.as_bytes())?),
            Step::Domainname { name } => Ok(rustix::system::setdomainname(name.as_bytes())?),
            Step::NewSession => Ok(rustix::process::setsid().map(|_| ())?),
            Step::Terminal { size, console } => self.terminal(*size, *console),
            Step::ResourceLimit { resource, soft, hard } => self.resource_limit(resource, *soft, *hard),
            Step::Personality { persona } => Ok(pith_sys::attributes::set_personality(*persona)?),
            Step::Scheduler { scheduling } => process::schedule(*scheduling),
            Step::IoPriority { class, level } => Ok(pith_sys::attributes::set_io_priority(*class, *level)?),
            Step::CpuAffinity { cpus } => process::cpu_affinity(cpus),
            Step::MemoryPolicy { mode, nodes } => Ok(pith_sys::attributes::set_memory_policy(*mode, nodes)?),
            Step::Label { file, value } => process::label(self.root()?, file, value),
            Step::WorkingDirectory { path } => process::working_directory(self.root()?, path),
            Step::Umask { mask } => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
                Ok(())
            }
            Step::Become { identity, capabilities, filters } => {
                self.become_user(identity, *capabilities, *filters)
            }
            Step::NoNewPrivileges => Ok(rustix::thread::set_no_new_privs(true)?),
            Step::Seccomp { program, flags, listener: false } => {
                Ok(pith_sys::seccomp::load(program, *flags)?)
            }
            Step::Seccomp { program, flags, listener: true } => {
                let listener = pith_sys::seccomp::load_with_listener(program, *flags)?;
                self.report(&Report::Listener, &[listener.as_fd()]);
                Ok(())
            }
            Step::GiveUpFilterRight => self.give_up_filter_right(),
        }
    }

    pub(super) fn put(&mut self, slot: Slot, fd: OwnedFd) -> StepResult {
        let index = usize::from(slot.0);
        if index >= usize::from(crate::plan::MAX_SLOTS) {
            return Err(Errno::MFILE.into());
        }
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(Placed { fd, attached: false });
        Ok(())
    }

    pub(super) fn get(&self, slot: Slot) -> StepResult<&OwnedFd> {
        let placed = self.slots.get(usize::from(slot.0)).and_then(Option::as_ref);
        placed.map(|placed| &placed.fd).ok_or_else(|| Errno::BADF.into())
    }

    /// The container's `/`; for a process that joined one, the root of the namespace it is in.
    pub(super) fn root(&mut self) -> StepResult<BorrowedFd<'_>> {
        if self.root.is_none() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            self.root = Some(rustix::fs::open("/", flags, Mode::empty())?);
        }
        Ok(self.root.as_ref().expect("set above").as_fd())
    }
}

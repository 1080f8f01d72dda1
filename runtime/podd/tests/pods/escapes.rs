//! Ways out of a container that worked somewhere, tried here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use pith_container::plan::WindowSize;

use crate::Test;
use crate::pod::{Pod, add_mount, bind};

pub(crate) const TESTS: &[Test] = &[
    ("kernel_files_are_covered", kernel_files_are_covered),
    ("a_working_directory_through_descriptors", a_working_directory_through_descriptors),
    ("mount_targets_that_are_links", mount_targets_that_are_links),
    ("a_dev_that_is_a_link", a_dev_that_is_a_link),
    ("a_volume_path_that_is_a_link", a_volume_path_that_is_a_link),
    ("the_supervisors_executable", the_supervisors_executable),
    ("a_false_terminal", a_false_terminal),
    ("a_passwd_file_that_never_ends", a_passwd_file_that_never_ends),
    ("a_read_only_root", a_read_only_root),
    ("dev_null_of_the_image", dev_null_of_the_image),
];

fn attempt(pod: &mut Pod, what: &str) -> String {
    let (code, output) = pod.exec("c", &["try", what]);
    assert_eq!(code, 0, "{what}: {output}");
    output.trim().to_owned()
}

fn kernel_files_are_covered() {
    let mut pod = Pod::start("covered");
    pod.run("c", &["wait"]);
    let refused = |errno: i32| format!("refused: {errno}");
    let cases = [
        ("write sysctl", refused(libc::EROFS)),
        ("read masked", "0 bytes".to_owned()),
        ("list firmware", "0 names".to_owned()),
        ("mount tmpfs", refused(libc::EPERM)),
        ("unshare", refused(libc::EPERM)),
        ("write parent exe", refused(libc::ETXTBSY)),
    ];
    for (what, expect) in cases {
        assert_eq!(attempt(&mut pod, what), expect, "{what}");
    }
}

/// CVE-2024-21626: a descriptor of the host that is open while the working directory is entered.
fn a_working_directory_through_descriptors() {
    let mut pod = Pod::start("cwd");
    for number in 0..24 {
        for below in ["", "/..", "/../../../../etc"] {
            let id = format!("c{number}-{}", below.len());
            let path = format!("/proc/self/fd/{number}{below}");
            let outcome = pod.run_with(&id, &["wait"], |spec, _, _| {
                spec.process_mut().as_mut().expect("given").set_cwd(path.clone().into());
            });
            assert!(outcome.is_err(), "{path}");
        }
        let id = format!("p{number}");
        let outcome = pod.run_with(&id, &[], |spec, _, _| {
            let program = format!("/proc/self/fd/{number}/../../../../../../../bin/true");
            spec.process_mut().as_mut().expect("given").set_args(Some(vec![program]));
        });
        assert!(outcome.is_err(), "a program by descriptor {number}");
    }
}

/// CVE-2021-30465, CVE-2019-19921: a mount that lands where a link of the image points to.
fn mount_targets_that_are_links() {
    let mut pod = Pod::start("links");
    let outside = pod.path("outside");
    let volume = pod.path("volume");
    fs::create_dir_all(&outside).expect("mkdir");
    fs::create_dir_all(&volume).expect("mkdir");
    fs::write(volume.join("secret"), "in the volume").expect("write");
    let image = pod.path("image");
    symlink(&outside, image.join("absolute")).expect("symlink");
    symlink("../../../../../../../../../../../..", image.join("up")).expect("symlink");
    symlink("/mnt", image.join("inside")).expect("symlink");
    // As in a Debian image; what it points to is missing.
    symlink("../run/resolv.conf", image.join("etc/resolv.conf")).expect("symlink");
    let up = format!("/up{}/made", outside.display());
    pod.run_with("c", &["wait"], |spec, _, _| {
        for target in ["/absolute/made", up.as_str(), "/inside", "/etc/resolv.conf"] {
            add_mount(spec, bind(&volume, target, &["ro"]));
        }
    })
    .expect("run");
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 0, "nothing was made outside");
    assert_eq!(attempt(&mut pod, "read etc-host"), "in the volume", "links inside the root work");
}

/// CVE-2026-41579, CVE-2026-47766: device nodes made wherever the image's /dev leads.
fn a_dev_that_is_a_link() {
    let mut pod = Pod::start("devlink");
    let outside = pod.path("outside");
    fs::create_dir_all(&outside).expect("mkdir");
    let image = pod.path("image");
    fs::remove_dir(image.join("dev")).expect("rmdir");
    symlink(&outside, image.join("dev")).expect("symlink");
    // With a /dev of its own, and with the image's.
    let own = pod.run_with("own", &["wait"], |_, _, _| {});
    let images = pod.run_with("images", &["wait"], |spec, _, _| {
        let mounts = spec.mounts_mut().as_mut().expect("given");
        mounts.retain(|mount| !mount.destination().starts_with("/dev"));
    });
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 0, "{own:?} {images:?}");
}

/// A volume's `subPath` that a container has replaced by a link to the host.
fn a_volume_path_that_is_a_link() {
    let mut pod = Pod::start("subpath");
    let volume = pod.path("volume");
    fs::create_dir_all(volume.join("plain")).expect("mkdir");
    symlink("/etc", volume.join("evil")).expect("symlink");
    symlink("plain", volume.join("harmless")).expect("symlink");
    for (id, sub, allowed) in [
        ("plain", "plain", true),
        ("evil", "evil", false),
        ("below", "evil/ssl", false),
        ("up", "plain/../../../etc", false),
        ("link", "harmless", false),
    ] {
        let outcome = pod.run_with(id, &["wait"], |spec, options, _| {
            add_mount(spec, bind(&volume.join(sub), "/data", &[]));
            options.confine.insert("/data".into(), volume.clone());
        });
        assert_eq!(outcome.is_ok(), allowed, "{sub}: {outcome:?}");
    }
}

/// CVE-2019-5736: the file behind `/proc/<supervisor>/exe`, written to once nobody executes it any more.
fn the_supervisors_executable() {
    let mut pod = Pod::start("exe");
    // Its own image as the container's program: the supervisor's executable, in the container.
    let record = pod.run_out_with("c", &[], |spec, _, _| {
        let process = spec.process_mut().as_mut().expect("given");
        process.set_args(Some(vec!["/proc/self/exe".to_owned()]));
    });
    assert_eq!(record.exit.map(|exit| exit.code), Some(2), "it runs and finds nothing to do");
    let exe = format!("/proc/{}/exe", pod.supervisor().pid());
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let held = rustix::fs::open(exe, flags, rustix::fs::Mode::empty()).expect("open");
    pod.supervisor().stop().expect("stop");
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    let error = fs::OpenOptions::new().write(true).open(again).expect_err("it is read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

/// CVE-2025-52565: something else at /dev/pts/ptmx when a terminal is opened.
fn a_false_terminal() {
    let mut pod = Pod::start("ptmx");
    let fake = pod.path("fake");
    fs::create_dir_all(&fake).expect("mkdir");
    fs::write(fake.join("ptmx"), "").expect("write");
    pod.run_with("c", &["wait"], |spec, _, _| {
        spec.mounts_mut().as_mut().expect("given").retain(|m| m.destination() != Path::new("/dev/pts"));
        add_mount(spec, bind(&fake, "/dev/pts", &[]));
    })
    .expect("run");
    let size = WindowSize { rows: 1, columns: 1 };
    let open = |pod: &mut Pod| {
        let plan = pod.exec_plan("c", &["exit", "0"], |process| {
            process.set_terminal(Some(true));
        });
        pod.supervisor().exec_terminal("c", plan, size).map(|_| ()).expect_err("refused").to_string()
    };
    let error = open(&mut pod);
    assert!(error.contains("/dev/pts/ptmx is not a terminal multiplexer"), "{error}");
    fs::remove_file(fake.join("ptmx")).expect("rm");
    symlink("/dev/null", fake.join("ptmx")).expect("symlink");
    let error = open(&mut pod);
    assert!(error.contains("/dev/pts/ptmx"), "{error}");
}

fn a_passwd_file_that_never_ends() {
    let mut pod = Pod::start("fifo");
    let passwd = pod.path("image/etc/passwd");
    fs::remove_file(&passwd).expect("rm");
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, &passwd, rustix::fs::FileType::Fifo, mode, 0).expect("mkfifo");
    let outcome = pod.run_with("c", &["wait"], |_, options, _| options.user = Some("web".to_owned()));
    let error = outcome.expect_err("nobody is listed").to_string();
    assert_eq!(error, "unable to find user web: no matching entries in passwd file");
}

fn a_read_only_root() {
    let mut pod = Pod::start("readonly");
    pod.run_with("c", &["wait"], |spec, _, _| {
        spec.root_mut().as_mut().expect("given").set_readonly(Some(true));
    })
    .expect("run");
    assert_eq!(attempt(&mut pod, "write root"), format!("refused: {}", libc::EROFS));
}

/// CVE-2025-31133: a /dev/null of the image with which a file would be masked.
fn dev_null_of_the_image() {
    let mut pod = Pod::start("devnull");
    let dev = pod.path("image/dev");
    symlink("/etc/passwd", dev.join("null")).expect("symlink");
    let outcome = pod.run_with("c", &["wait"], |spec, _, _| {
        let mounts = spec.mounts_mut().as_mut().expect("given");
        mounts.retain(|mount| !mount.destination().starts_with("/dev"));
    });
    let error = outcome.expect_err("what is there is something else").to_string();
    assert!(error.contains("null exists and is something else"), "{error}");
    fs::remove_file(dev.join("null")).expect("rm");
    pod.run_with("d", &["wait"], |spec, _, _| {
        let mounts = spec.mounts_mut().as_mut().expect("given");
        mounts.retain(|mount| !mount.destination().starts_with("/dev"));
    })
    .expect("with devices made in the image's /dev");
    let (_, output) = pod.exec("d", &["try", "read masked"]);
    assert_eq!(output.trim(), "0 bytes");
}

//! The mount tree of a process (proc_pid_mountinfo(5)).

use serde::Serialize;

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Mount {
    /// How many mounts it stands on.
    pub(super) depth: usize,
    pub(super) target: String,
    pub(super) kind: String,
    pub(super) source: String,
    /// The folder of the file system that is shown, where it is not all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) part: Option<String>,
    /// Of this mount, then those of the file system that differ.
    pub(super) options: Vec<String>,
    /// `shared:1`, `master:2`, …: how mounts travel; empty is private.
    pub(super) propagation: Vec<String>,
}

struct Line {
    id: u32,
    parent: u32,
    mount: Mount,
}

/// From the text of `/proc/<pid>/mountinfo`: each mount before those that stand on it.
pub(super) fn parse(text: &str) -> Vec<Mount> {
    let mut lines: Vec<Line> = text.lines().filter_map(line).collect();
    let ids: Vec<u32> = lines.iter().map(|line| line.id).collect();
    let mut tree = Vec::new();
    // The root's parent is in no list: it lies outside.
    let roots: Vec<u32> =
        lines.iter().filter(|line| !ids.contains(&line.parent)).map(|line| line.id).collect();
    let mut ahead: Vec<(u32, usize)> = roots.into_iter().rev().map(|id| (id, 0)).collect();
    while let Some((id, depth)) = ahead.pop() {
        let Some(index) = lines.iter().position(|line| line.id == id) else { continue };
        let Line { mut mount, .. } = lines.remove(index);
        mount.depth = depth;
        tree.push(mount);
        let children = lines.iter().filter(|line| line.parent == id).map(|line| (line.id, depth + 1));
        let children: Vec<(u32, usize)> = children.collect();
        ahead.extend(children.into_iter().rev());
    }
    tree
}

fn line(text: &str) -> Option<Line> {
    let (mount, system) = text.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let (_device, part, target, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let propagation = fields.map(str::to_owned).collect();
    let mut system = system.splitn(3, ' ');
    let (kind, source, own) = (system.next()?, system.next()?, system.next()?);
    let mut options: Vec<String> = options.split(',').map(str::to_owned).collect();
    for option in own.split(',').filter(|option| !["rw", "ro"].contains(option)) {
        if !options.iter().any(|known| known == option) {
            options.push(option.to_owned());
        }
    }
    Some(Line {
        id,
        parent,
        mount: Mount {
            depth: 0,
            target: plain(target),
            kind: kind.to_owned(),
            source: plain(source),
            part: (part != "/").then(|| plain(part)),
            options,
            propagation,
        },
    })
}

/// Spaces, tabs, line breaks and backslashes are written as octal numbers.
fn plain(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.into_iter().fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_read() {
        let text = "30 20 0:5 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/a\n\
                    32 31 0:8 / /dev/pts rw,nosuid - devpts devpts rw,mode=620\n\
                    31 30 0:7 / /dev rw,nosuid - tmpfs tmpfs rw,size=64k\n\
                    33 30 0:9 /sub /my\\040data ro - ext4 /dev/vda rw\n\
                    broken\n";
        let tree = parse(text);
        let shown: Vec<(usize, &str)> =
            tree.iter().map(|mount| (mount.depth, mount.target.as_str())).collect();
        assert_eq!(shown, [(0, "/"), (1, "/dev"), (2, "/dev/pts"), (1, "/my data")]);
        assert_eq!(tree[0].options, ["rw", "relatime", "lowerdir=/a"]);
        assert_eq!(tree[0].propagation, ["master:1"]);
        assert_eq!(tree[3].part.as_deref(), Some("/sub"));
    }
}

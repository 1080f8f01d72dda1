//! What becomes of an object, given the state of its owners. Pure.

use kube::api::PropagationPolicy;
use pith_informer::Uid;

use super::graph::Looked;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    There,
    Gone,
    /// It is there, but is being deleted and waits for its dependents to go first.
    Waiting,
    /// Nobody can say: its kind is not served.
    Unknown,
}

#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    Keep,
    /// It has an owner left; references to these others have no meaning any more.
    DropReferences(Vec<Uid>),
    Delete(PropagationPolicy),
}

pub(super) fn judge(owners: &[(Uid, Owner)], looked: &Looked) -> Verdict {
    let of = |state: Owner| owners.iter().filter(move |(_, other)| *other == state);
    let (gone, waiting) = (of(Owner::Gone).count(), of(Owner::Waiting).count());
    if gone + waiting == 0 || of(Owner::Unknown).count() > 0 {
        return Verdict::Keep;
    }
    if of(Owner::There).count() > 0 {
        let drop = of(Owner::Gone).chain(of(Owner::Waiting));
        return Verdict::DropReferences(drop.map(|(uid, _)| uid.clone()).collect());
    }
    Verdict::Delete(if waiting > 0 && looked.has_dependents {
        // The owner waits for everything below it, not only for its own dependents.
        PropagationPolicy::Foreground
    } else if looked.orphan {
        PropagationPolicy::Orphan
    } else if looked.foreground {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    })
}

#[cfg(test)]
mod tests {
    use pith_informer::Key;

    use super::super::graph::KindId;
    use super::*;

    #[test]
    fn verdict_table() {
        use Owner::*;
        let looked = |has_dependents, orphan| Looked {
            kind: KindId(0),
            key: Key::new("d", "o"),
            deleting: false,
            foreground: false,
            orphan,
            has_dependents,
        };
        let uid = |index: usize| Uid(index.to_string());
        let cases = [
            ("no owners", vec![], looked(false, false), Verdict::Keep),
            ("owner there", vec![There], looked(false, false), Verdict::Keep),
            ("owner gone", vec![Gone], looked(false, false), Verdict::Delete(PropagationPolicy::Background)),
            (
                "one of two gone",
                vec![There, Gone],
                looked(false, false),
                Verdict::DropReferences(vec![uid(1)]),
            ),
            (
                "one of two waiting",
                vec![Waiting, There],
                looked(false, false),
                Verdict::DropReferences(vec![uid(0)]),
            ),
            (
                "waiting, leaf",
                vec![Waiting],
                looked(false, false),
                Verdict::Delete(PropagationPolicy::Background),
            ),
            (
                "waiting, more below",
                vec![Waiting],
                looked(true, false),
                Verdict::Delete(PropagationPolicy::Foreground),
            ),
            ("asked to orphan", vec![Gone], looked(true, true), Verdict::Delete(PropagationPolicy::Orphan)),
            ("kind not served", vec![Unknown], looked(false, false), Verdict::Keep),
            ("gone, but another unknown", vec![Gone, Unknown], looked(false, false), Verdict::Keep),
        ];
        for (name, states, looked, expect) in cases {
            let owners: Vec<_> =
                states.into_iter().enumerate().map(|(index, state)| (uid(index), state)).collect();
            assert_eq!(judge(&owners, &looked), expect, "{name}");
        }
    }
}

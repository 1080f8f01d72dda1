//! Which texts are names: DNS labels and subdomains, qualified label keys, label values, environment variables.
//! Each check returns upstream's words for what is wrong, or nothing.

const LABEL_FORM: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_FORM: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035_FORM: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_FORM: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_FORM: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY_FORM: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_FORM: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

pub(crate) const LABEL_MAX: usize = 63;
pub(crate) const SUBDOMAIN_MAX: usize = 253;

type Problems = Vec<String>;

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn check(text: &str, max: usize, well_formed: bool, form: &str) -> Problems {
    let mut problems = Problems::new();
    if text.len() > max {
        problems.push(too_long(max));
    }
    if !well_formed {
        problems.push(form.to_owned());
    }
    problems
}

/// Starts and ends with a letter or digit, and has only letters, digits and `inner` between.
fn bounded(text: &str, letters: fn(u8) -> bool, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    letters(*first) && letters(*last) && bytes.iter().all(|b| letters(*b) || inner.contains(b))
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn any_case(b: u8) -> bool {
    b.is_ascii_alphanumeric()
}

fn is_label(text: &str) -> bool {
    bounded(text, lower, b"-")
}

/// RFC 1123 label: pod hostnames, namespaces, container names.
pub(crate) fn label(text: &str) -> Problems {
    check(text, LABEL_MAX, is_label(text), LABEL_FORM)
}

/// RFC 1123 subdomain: most object names.
pub(crate) fn subdomain(text: &str) -> Problems {
    check(text, SUBDOMAIN_MAX, text.split('.').all(is_label), SUBDOMAIN_FORM)
}

/// RFC 1035 label: names of Services before they may start with a digit.
pub(crate) fn label_1035(text: &str) -> Problems {
    let formed = is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase());
    check(text, LABEL_MAX, formed, LABEL_1035_FORM)
}

/// Label keys, annotation keys, resource names: `name` or `example.com/name`.
pub(crate) fn qualified(text: &str) -> Problems {
    let mut problems = Problems::new();
    let name = match text.split_once('/') {
        Some((_, rest)) if rest.contains('/') => {
            problems.push(format!(
                "a qualified name {QUALIFIED_FORM} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ));
            return problems;
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".into());
            } else {
                problems.extend(subdomain(prefix).into_iter().map(|p| format!("prefix part {p}")));
            }
            name
        }
        None => text,
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        problems.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !bounded(name, any_case, b"-_.") {
        problems.push(format!("name part {QUALIFIED_FORM}"));
    }
    problems
}

pub(crate) fn label_value(text: &str) -> Problems {
    check(text, LABEL_MAX, text.is_empty() || bounded(text, any_case, b"-_."), LABEL_VALUE_FORM)
}

/// Keys of ConfigMaps and Secrets: they become file names.
pub(crate) fn config_key(text: &str) -> Problems {
    let formed = !text.is_empty() && text.bytes().all(|b| any_case(b) || b"-_.".contains(&b));
    let mut problems = check(text, SUBDOMAIN_MAX, formed, CONFIG_KEY_FORM);
    match text {
        "." => problems.push("must not be '.'".into()),
        ".." => problems.push("must not be '..'".into()),
        _ if text.starts_with("..") => problems.push("must not start with '..'".into()),
        _ => {}
    }
    problems
}

/// Names of environment variables, as relaxed since 1.34.
pub(crate) fn env_var(text: &str) -> Problems {
    if text.is_empty() {
        return vec!["environment variable name must not be empty".into()];
    }
    let formed = text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=');
    check(text, usize::MAX, formed, ENV_FORM)
}

/// Names of ports (IANA service names).
pub(crate) fn port_name(text: &str) -> Problems {
    let mut problems = Problems::new();
    if text.len() > 15 {
        problems.push("must be no more than 15 bytes".into());
    }
    if !text.bytes().all(|b| lower(b) || b == b'-') || text.is_empty() {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        problems.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        problems.push("must not begin or end with a hyphen".into());
    }
    problems
}

/// A segment of a path: names of RBAC objects.
pub(crate) fn path_segment(text: &str) -> Problems {
    match text {
        "." | ".." => vec![format!("may not be '{text}'")],
        _ => ['/', '%']
            .iter()
            .filter(|c| text.contains(**c))
            .map(|c| format!("may not contain '{c}'"))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_texts_that_are_none() {
        let long = "a".repeat(64);
        for (rule, good, bad) in [
            (
                label as fn(&str) -> Problems,
                &["a", "0-9", "my-name"][..],
                &["", "A", "-a", "a-", "a.b", &long][..],
            ),
            (subdomain, &["a.b", "example.com"], &["", "a..b", ".a", "a_b"]),
            (label_1035, &["a1"], &["1a"]),
            (qualified, &["a", "A_b.c", "example.com/x"], &["", "/a", "a/", "a/b/c", "Ex.com/a", "-a"]),
            (label_value, &["", "a_B.1"], &["-a", "a b", &long]),
            (config_key, &["a.txt", "_A-"], &["", "a/b", ".", "..", "..a"]),
            (env_var, &["A", "a.b-c", "1"], &["", "A=B", "ü"]),
            (port_name, &["http", "h2"], &["", "80", "a--b", "-a", "much-too-long-name"]),
            (path_segment, &["system:node"], &["a/b", "..", "50%"]),
        ] {
            for name in good {
                assert_eq!(rule(name), Problems::new(), "{name:?}");
            }
            for name in bad {
                assert_ne!(rule(name), Problems::new(), "{name:?}");
            }
        }
    }
}

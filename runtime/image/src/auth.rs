//! What one says to a registry about who one is.

use std::fmt;

#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    #[default]
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    /// A token that the registry takes as it is.
    Bearer(String),
    /// A token that the registry's token server exchanges for such a one (`docker login` to Azure and others).
    Identity(String),
}

/// Secrets do not appear in logs.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Auth::Anonymous => f.write_str("Anonymous"),
            Auth::Basic { username, .. } => write!(f, "Basic({username:?}, …)"),
            Auth::Bearer(_) => f.write_str("Bearer(…)"),
            Auth::Identity(_) => f.write_str("Identity(…)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_secret() {
        let basic = Auth::Basic { username: "me".into(), password: "hunter2".into() };
        for auth in [basic, Auth::Bearer("hunter2".into()), Auth::Identity("hunter2".into())] {
            assert!(!format!("{auth:?}").contains("hunter2"));
        }
    }
}

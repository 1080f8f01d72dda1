//! Who is asking.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::pki::{MASTERS, request::NODE_PREFIX, request::NODES};

pub(crate) const AUTHENTICATED: &str = "system:authenticated";
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
pub(crate) const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
pub(crate) const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// A user with groups, as authentication found them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A user who proved who it is.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
        groups.push(AUTHENTICATED.to_owned());
        Self { name: name.into(), uid: String::new(), groups, extra: BTreeMap::new() }
    }

    /// The cluster's administrator.
    pub fn admin() -> Self {
        Self::new("kubernetes-admin", &[MASTERS])
    }

    /// The controllers that run inside the primary.
    pub fn controllers() -> Self {
        Self::new("system:kube-controller-manager", &[])
    }

    /// The scheduler that runs inside the primary.
    pub fn scheduler() -> Self {
        Self::new("system:kube-scheduler", &[])
    }

    pub(crate) fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            uid: String::new(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            extra: BTreeMap::new(),
        }
    }

    pub(crate) fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let group = format!("{SERVICE_ACCOUNTS}:{namespace}");
        let mut identity =
            Self::new(format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"), &[SERVICE_ACCOUNTS, &group]);
        identity.uid = uid.to_owned();
        identity
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|found| found == group)
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        self.is_in(UNAUTHENTICATED)
    }

    /// The node's name, if this is a node.
    pub(crate) fn node(&self) -> Option<&str> {
        match self.is_in(NODES) {
            true => self.name.strip_prefix(NODE_PREFIX),
            false => None,
        }
    }

    /// `UserInfo` of the authentication API.
    pub(crate) fn user_info(&self) -> Value {
        let mut info = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }
}

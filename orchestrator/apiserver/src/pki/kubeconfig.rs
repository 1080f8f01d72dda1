//! The kubeconfig that kubectl and the client libraries read.

use base64::{Engine, prelude::BASE64_STANDARD};

use super::Issued;

/// A kubeconfig with everything inline. `name` names cluster, user and context.
pub fn kubeconfig(name: &str, server: &str, authority_pem: &str, client: &Issued) -> String {
    let data = |pem: &str| BASE64_STANDARD.encode(pem);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {}\nusers:\n- name: {name}-admin\n  user:\n    client-certificate-data: {}\n    \
         client-key-data: {}\ncontexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {name}-admin\n\
         current-context: {name}\npreferences: {{}}\n",
        data(authority_pem),
        data(&client.certificate_pem),
        data(&client.key_pem),
    )
}

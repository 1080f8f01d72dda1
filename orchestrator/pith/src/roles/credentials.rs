//! A replica's certificates: from its state folder, or from the primary it joins.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use pith_apiserver::pki::join::{Credentials, join};
use pith_apiserver::pki::token::BootstrapToken;
use pith_apiserver::pki::{Issued, kubeconfig};

use crate::cli::{ReplicaArgs, UsedWrongly};

/// Files of the folder `credentials`; the kubeconfig is written last, so that it marks a complete set.
const AUTHORITY: &str = "ca.crt";
const SERVING_CERTIFICATE: &str = "serving.crt";
const SERVING_KEY: &str = "serving.key";
const KUBECONFIG: &str = "kubeconfig";

/// What the kubelet's server needs; none when the replica came with a kubeconfig of its user's.
pub(crate) struct Serving {
    pub(crate) authority: String,
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// Where a replica's credentials come from.
pub(crate) enum Source<'a> {
    Kubeconfig(&'a Path),
    /// `<dir>/credentials`, from an earlier join.
    Kept,
    Join {
        server: &'a str,
        token: BootstrapToken,
    },
}

/// Decides it before anything of the replica is set up, so that a wrong command line changes nothing.
pub(crate) fn source(args: &ReplicaArgs) -> Result<Source<'_>> {
    if let Some(path) = &args.kubeconfig {
        return Ok(Source::Kubeconfig(path));
    }
    if args.dir.join("credentials").join(KUBECONFIG).exists() {
        return Ok(Source::Kept);
    }
    let (Some(server), Some(token)) = (&args.join, &args.token) else {
        let never = "this replica has never joined: give --join and --token, or --kubeconfig";
        return Err(UsedWrongly(never.to_owned()).into());
    };
    // Not by clap, whose refusal would show what is nearly a secret.
    let token = token.parse().map_err(|error| UsedWrongly(format!("--token: {error}")))?;
    Ok(Source::Join { server, token })
}

/// Joins if this replica never did, and leaves its credentials in `<dir>/credentials`.
pub(crate) async fn obtain(
    source: Source<'_>,
    dir: &Path,
    node: &str,
    address: IpAddr,
) -> Result<(kube::Client, Option<Serving>)> {
    let dir = dir.join("credentials");
    let marker = dir.join(KUBECONFIG);
    match source {
        Source::Kubeconfig(path) => return Ok((super::client_from(path).await?, None)),
        Source::Kept => {}
        Source::Join { server, token } => {
            let credentials = join(server, &token, node, &[node.to_owned()], &[address])
                .await
                .with_context(|| format!("join {server} as {node}"))?;
            save(&dir, server, node, &credentials)?;
        }
    }
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let serving = Serving {
        authority: read(AUTHORITY)?,
        certificate: read(SERVING_CERTIFICATE)?,
        key: read(SERVING_KEY)?,
    };
    Ok((super::client_from(&marker).await?, Some(serving)))
}

fn save(dir: &Path, server: &str, node: &str, credentials: &Credentials) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let Issued { certificate_pem, key_pem } = &credentials.serving;
    let text = kubeconfig(node, server, &credentials.authority_pem, &credentials.client);
    let files = [
        (AUTHORITY, credentials.authority_pem.as_str()),
        (SERVING_CERTIFICATE, certificate_pem),
        (SERVING_KEY, key_pem),
        (KUBECONFIG, &text),
    ];
    for (name, content) in files {
        write_private(&dir.join(name), content)?;
    }
    Ok(())
}

/// Written beside its place and renamed: keys are never readable by others and never half there.
pub(super) fn write_private(path: &Path, content: &str) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        io::Write::write_all(&mut file, content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

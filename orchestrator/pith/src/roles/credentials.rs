//! A replica's certificates on disk: from its user, from an earlier join, or from the primary it joins.
//!
//! Two files of the folder `credentials`, each replaced as a whole, so that a certificate never stands beside the key
//! of another: `kubeconfig` (the primary's address and authority, the client certificate and its key) and
//! `serving.pem` (the kubelet server's certificate and key). The kubeconfig is written last: it marks a complete set.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use pith_apiserver::pki::join::{Credentials, JoinError, join, renew};
use pith_apiserver::pki::token::BootstrapToken;
use pith_apiserver::pki::{Issued, Validity, kubeconfig};
use serde_json::Value;

use crate::cli::{ReplicaArgs, UsedWrongly};

const SERVING: &str = "serving.pem";
const KUBECONFIG: &str = "kubeconfig";

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
    let dir = args.dir.join("credentials");
    let kept = dir.join(KUBECONFIG).exists();
    // Who was away for longer than its certificate was good has to join again.
    let expired = kept && Kept::read(&dir)?.client()?.not_after < SystemTime::now();
    match (&args.join, &args.token) {
        _ if kept && !expired => Ok(Source::Kept),
        (Some(server), Some(token)) => {
            // Not by clap, whose refusal would show what is nearly a secret.
            let token = token.parse().map_err(|error| UsedWrongly(format!("--token: {error}")))?;
            Ok(Source::Join { server, token })
        }
        _ if expired => {
            bail!("the certificate in {} has expired: give --join and --token to join again", dir.display())
        }
        _ => {
            let never = "this replica has never joined: give --join and --token, or --kubeconfig";
            Err(UsedWrongly(never.to_owned()).into())
        }
    }
}

/// The names that a node's certificates are for.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) node: String,
    pub(crate) address: IpAddr,
}

/// A set of credentials and the folder that has it too.
pub(crate) struct Kept {
    dir: PathBuf,
    server: String,
    pub(crate) credentials: Credentials,
}

impl Kept {
    /// Joins the cluster of the primary at `server`.
    pub(crate) async fn join(
        dir: &Path,
        server: &str,
        token: &BootstrapToken,
        member: &Member,
    ) -> Result<Self> {
        let names = [member.node.clone()];
        let credentials = join(server, token, &member.node, &names, &[member.address])
            .await
            .with_context(|| format!("join {server} as {}", member.node))?;
        let kept = Self { dir: dir.to_owned(), server: server.to_owned(), credentials };
        kept.save(member)?;
        Ok(kept)
    }

    /// From an earlier join.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(KUBECONFIG);
        let context = || format!("use {}", path.display());
        let parsed = Kubeconfig::read_from(&path).with_context(context)?;
        let parsed = serde_json::to_value(parsed).with_context(context)?;
        let (cluster, user) = (&parsed["clusters"][0]["cluster"], &parsed["users"][0]["user"]);
        let pem = |holder: &Value, field: &str| {
            let data = holder[field].as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
            let text = data.and_then(|bytes| String::from_utf8(bytes).ok());
            text.with_context(|| format!("{} holds no {field}", path.display()))
        };
        let path = dir.join(SERVING);
        let serving = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let credentials = Credentials {
            authority_pem: pem(cluster, "certificate-authority-data")?,
            client: Issued {
                certificate_pem: pem(user, "client-certificate-data")?,
                key_pem: pem(user, "client-key-data")?,
            },
            // Whoever reads PEM takes what it wants from a text that holds both.
            serving: Issued { certificate_pem: serving.clone(), key_pem: serving },
        };
        let server = cluster["server"].as_str().unwrap_or_default().to_owned();
        Ok(Self { dir: dir.to_owned(), server, credentials })
    }

    /// Fresh certificates for these, which are good until then.
    pub(crate) async fn renew(&mut self, member: &Member) -> Result<()> {
        let names = [member.node.clone()];
        let fresh: Result<_, JoinError> =
            renew(&self.server, &self.credentials, &member.node, &names, &[member.address]).await;
        self.credentials = fresh?;
        self.save(member)
    }

    fn save(&self, member: &Member) -> Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        let Credentials { authority_pem, client, serving } = &self.credentials;
        let serving = format!("{}{}", serving.certificate_pem, serving.key_pem);
        write_private(&self.dir.join(SERVING), &serving)?;
        let text = kubeconfig(&member.node, &self.server, authority_pem, client);
        write_private(&self.dir.join(KUBECONFIG), &text)
    }

    fn client(&self) -> Result<Validity> {
        validity(&self.credentials.client)
    }

    /// The time in which all of them are good.
    pub(crate) fn validity(&self) -> Result<Validity> {
        Ok(self.client()?.both(validity(&self.credentials.serving)?))
    }

    /// A client that shows this client certificate.
    pub(crate) async fn connect(&self, member: &Member) -> Result<Client> {
        let Credentials { authority_pem, client, .. } = &self.credentials;
        let text = kubeconfig(&member.node, &self.server, authority_pem, client);
        let parsed = Kubeconfig::from_yaml(&text).context("a kubeconfig of our own")?;
        let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await;
        Client::try_from(config.context("a kubeconfig of our own")?).context("the node's client certificate")
    }
}

fn validity(issued: &Issued) -> Result<Validity> {
    Validity::of_pem(&issued.certificate_pem).context("a certificate without dates")
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

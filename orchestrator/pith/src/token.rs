//! `pith token create`: a bootstrap token for a replica on another machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::config::Kubeconfig;
use kube::{Api, Client};
use pith_apiserver::pki::join::authority_hash;
use pith_apiserver::pki::token::BootstrapToken;

use crate::cli::{TokenArgs, TokenCommand};
use crate::cluster::Cluster;
use crate::roles::client_from;

/// Where bootstrap tokens are looked for.
const NAMESPACE: &str = "kube-system";

pub(crate) fn run(args: &TokenArgs) -> Result<()> {
    let TokenCommand::Create { cluster, ttl_hours } = &args.command;
    let cluster = Cluster::new(cluster)?;
    // A primary of its own keeps its kubeconfig in its state folder, as `up` does in the cluster's.
    let kubeconfig = cluster.kubeconfig();
    if !kubeconfig.exists() {
        bail!("no primary keeps its state in {}: name its folder with --dir", cluster.dir.display());
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let ttl = Duration::from_secs(u64::from(*ttl_hours) * 3600);
    let token = runtime.block_on(async {
        let client = client_from(&kubeconfig).await?;
        create(&client, &kubeconfig, ttl).await
    })?;
    println!("{token}");
    Ok(())
}

/// Stores a new token as the administrator, good for `ttl`; it names the authority in `kubeconfig`, so that whoever
/// joins with it knows the right server.
pub(crate) async fn create(client: &Client, kubeconfig: &Path, ttl: Duration) -> Result<BootstrapToken> {
    let authority = authority_of(kubeconfig)?;
    let hash = authority_hash(&authority)
        .with_context(|| format!("{} holds no usable CA certificate", kubeconfig.display()))?;
    let token = BootstrapToken::generate(&hash);
    let expiry = Timestamp::now().checked_add(ttl).context("the token's lifetime is too long")?;
    let secret: Secret = serde_json::from_value(token.object(expiry)).context("the token as a Secret")?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    secrets.create(&PostParams::default(), &secret).await.context("create the token's Secret")?;
    Ok(token)
}

/// The PEM certificate with which a kubeconfig's first cluster is verified.
fn authority_of(kubeconfig: &Path) -> Result<String> {
    use base64::Engine;
    let parsed =
        Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    let cluster = parsed.clusters.into_iter().next().and_then(|named| named.cluster);
    let data = cluster.and_then(|cluster| cluster.certificate_authority_data);
    let data = data.with_context(|| format!("{} embeds no CA certificate", kubeconfig.display()))?;
    let pem = base64::prelude::BASE64_STANDARD.decode(data).context("decode the CA certificate")?;
    String::from_utf8(pem).context("the CA certificate is not PEM")
}

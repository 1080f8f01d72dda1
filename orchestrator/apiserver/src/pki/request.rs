//! Certificate signing requests: making them (a replica that joins) and deciding on them (the primary).
//!
//! Two signers exist, with upstream's rules for them
//! (kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers):
//! a node asks for its client certificate, as itself or with a bootstrap token, and then as itself for its
//! kubelet's serving certificate.

use std::{net::IpAddr, time::Duration};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    SanType,
};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use super::{Authority, Error, Pki, Profile, authority};

pub const NODE_CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// The group of all nodes, and what their user names begin with.
pub const NODES: &str = "system:nodes";
pub const NODE_PREFIX: &str = "system:node:";
/// The group that a bootstrap token gives.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// Upstream's lower bound for `spec.expirationSeconds`.
const MIN_LIFETIME: Duration = Duration::from_secs(600);

/// A request together with the key that it is for.
#[derive(Debug)]
pub struct Pending {
    pub request_pem: String,
    pub key_pem: String,
}

/// Makes a key, and the request for a certificate of a node: a client's, or with names and addresses that of a
/// server.
pub fn node_request(node: &str, names: &[String], addresses: &[IpAddr]) -> Result<Pending, Error> {
    let subject = format!("{NODE_PREFIX}{node}");
    let failed = |source| Error::Issue { subject: subject.clone(), source };
    let key = authority::new_key(&subject)?;
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, NODES);
    name.push(DnType::CommonName, subject.as_str());
    params.distinguished_name = name;
    for name in names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(failed)?));
    }
    params.subject_alt_names.extend(addresses.iter().map(|&address| SanType::IpAddress(address)));
    let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
    Ok(Pending { request_pem: request, key_pem: key.serialize_pem() })
}

/// Who asks, and for what.
#[derive(Clone, Debug)]
pub struct Application<'a> {
    pub signer: &'a str,
    pub requester: &'a str,
    pub requester_groups: &'a [String],
    pub usages: &'a [String],
    /// The longest that is wanted.
    pub lifetime: Option<Duration>,
    pub request_pem: &'a str,
}

/// What the request itself says, from a checked signature.
struct Content {
    common_name: String,
    organizations: Vec<String>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    others: bool,
}

/// Signs a request if its signer approves such requests by itself; `None` for signers that are not ours, whose
/// requests wait for somebody else.
pub fn decide(pki: &Pki, application: &Application<'_>) -> Option<Result<String, Error>> {
    let usage = match application.signer {
        NODE_CLIENT_SIGNER => ExtendedKeyUsagePurpose::ClientAuth,
        KUBELET_SERVING_SIGNER => ExtendedKeyUsagePurpose::ServerAuth,
        _ => return None,
    };
    // Upstream's bound holds for what is asked for, not for what a cluster is set up with.
    let wanted = application.lifetime.map_or(pki.lifetime, |wanted| wanted.max(MIN_LIFETIME));
    Some(sign(&pki.authority, application, usage, wanted.min(pki.lifetime)))
}

fn sign(
    authority: &Authority,
    application: &Application<'_>,
    usage: ExtendedKeyUsagePurpose,
    lifetime: Duration,
) -> Result<String, Error> {
    let refused = |why: &str| Err(Error::Request(why.to_owned()));
    let content = read(application.request_pem)?;
    let Some(node) = content.common_name.strip_prefix(NODE_PREFIX).filter(|node| !node.is_empty()) else {
        return refused("the subject's common name is not system:node:<name>");
    };
    if content.organizations != [NODES] {
        return refused("the subject's organization is not exactly system:nodes");
    }
    if content.others {
        return refused("only DNS names and IP addresses may be asked for");
    }
    let has_names = !content.names.is_empty() || !content.addresses.is_empty();
    let is_node = application.requester == content.common_name
        && application.requester_groups.iter().any(|group| group == NODES);
    let is_bootstrap = application.requester_groups.iter().any(|group| group == BOOTSTRAPPERS);
    let (extended, other) = match usage {
        ExtendedKeyUsagePurpose::ClientAuth => {
            if has_names {
                return refused("a client certificate has no DNS names or IP addresses");
            }
            if !is_node && !is_bootstrap {
                return refused("only the node itself or a bootstrap token may ask for a node's certificate");
            }
            ("client auth", "server auth")
        }
        _ => {
            if !has_names {
                return refused("a serving certificate needs a DNS name or an IP address");
            }
            if !is_node {
                return refused("only the node itself may ask for its serving certificate");
            }
            ("server auth", "client auth")
        }
    };
    let wanted = |usage: &str| application.usages.iter().any(|given| given == usage);
    if !wanted(extended) || !wanted("digital signature") || wanted(other) {
        return Err(Error::Request(format!("the usages must be digital signature and {extended}")));
    }
    let profile = Profile {
        common_name: format!("{NODE_PREFIX}{node}"),
        organization: Some(NODES.to_owned()),
        names: content.names,
        addresses: content.addresses,
        usages: vec![usage],
        lifetime,
    };
    let request = CertificateSigningRequestParams::from_pem(application.request_pem)
        .map_err(|error| Error::Request(error.to_string()))?;
    authority.sign(&profile, &request.public_key)
}

fn read(request_pem: &str) -> Result<Content, Error> {
    let refused = |why: &str| Error::Request(why.to_owned());
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(request_pem.as_bytes()).map_err(|_| refused("it is not PEM"))?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err(refused("the PEM block type must be CERTIFICATE REQUEST"));
    }
    let (_, request) = X509CertificationRequest::from_der(&pem.contents)
        .map_err(|_| refused("it is not a PKCS#10 request"))?;
    let text = |attributes: Vec<Result<&str, _>>| {
        attributes
            .into_iter()
            .map(|text: Result<&str, x509_parser::error::X509Error>| text.map(str::to_owned))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| refused("its subject is not text"))
    };
    let subject = &request.certification_request_info.subject;
    let common_names = text(subject.iter_common_name().map(|name| name.as_str()).collect())?;
    let organizations = text(subject.iter_organization().map(|name| name.as_str()).collect())?;
    let [common_name] = <[String; 1]>::try_from(common_names)
        .map_err(|_| refused("its subject must have one common name"))?;
    let mut content =
        Content { common_name, organizations, names: Vec::new(), addresses: Vec::new(), others: false };
    for extension in request.requested_extensions().into_iter().flatten() {
        let x509_parser::extensions::ParsedExtension::SubjectAlternativeName(names) = extension else {
            continue;
        };
        for name in &names.general_names {
            match name {
                x509_parser::extensions::GeneralName::DNSName(name) => content.names.push((*name).to_owned()),
                x509_parser::extensions::GeneralName::IPAddress(bytes) => match address(bytes) {
                    Some(address) => content.addresses.push(address),
                    None => content.others = true,
                },
                _ => content.others = true,
            }
        }
    }
    Ok(content)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

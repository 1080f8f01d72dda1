//! Content negotiation: in which form an answer is wanted.
//!
//! Answers are JSON. A client that offers protobuf first (typed Go clients) also offers JSON, or takes it.

use http::{HeaderMap, header};
use pith_api::ApiError;

/// The form of objects in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects themselves.
    Objects,
    /// `meta.k8s.io/v1 Table`, for printing.
    Table,
    /// `PartialObjectMetadata` and its list.
    Metadata,
}

const ACCEPTED: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// One alternative of an Accept header: the media type and its parameters.
struct Alternative<'a> {
    media_type: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Alternative<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let parameters =
            parts.filter_map(|part| part.split_once('=')).map(|(k, v)| (k.trim(), v.trim())).collect();
        Self { media_type, parameters }
    }

    fn parameter(&self, name: &str) -> &'a str {
        self.parameters.iter().find(|(found, _)| *found == name).map(|(_, value)| *value).unwrap_or_default()
    }
}

/// The whole Accept header, several header lines joined.
pub(crate) fn header(headers: &HeaderMap) -> String {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    lines.collect::<Vec<_>>().join(",")
}

/// The first alternative that can be served.
pub(crate) fn form(headers: &HeaderMap) -> Result<Form, ApiError> {
    let accept = header(headers);
    let mut known = accept.trim().is_empty();
    for alternative in accept.split(',').map(|text| Alternative::parse(text.trim())) {
        let is_json = matches!(alternative.media_type, "application/json" | "*/*" | "application/*");
        let is_other = matches!(
            alternative.media_type,
            "application/vnd.kubernetes.protobuf" | "application/yaml" | "application/cbor"
        );
        known |= is_json || is_other;
        let ours = alternative.parameter("g") == "meta.k8s.io" && alternative.parameter("v") == "v1";
        match alternative.parameter("as") {
            "" if is_json => return Ok(Form::Objects),
            "Table" if is_json && ours => return Ok(Form::Table),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if (is_json || is_other) && ours => {
                return Ok(Form::Metadata);
            }
            _ => {}
        }
    }
    match known {
        true => Ok(Form::Objects),
        false => Err(ApiError::not_acceptable(ACCEPTED)),
    }
}

/// Whether the aggregated discovery document is wanted, and in which version.
pub(crate) fn aggregated_discovery(headers: &HeaderMap) -> Option<&'static str> {
    let accept = header(headers);
    accept.split(',').find_map(|text| {
        let alternative = Alternative::parse(text.trim());
        let ours = alternative.media_type == "application/json"
            && alternative.parameter("g") == "apidiscovery.k8s.io"
            && alternative.parameter("as") == "APIGroupDiscoveryList";
        match alternative.parameter("v") {
            "v2" if ours => Some("v2"),
            "v2beta1" if ours => Some("v2beta1"),
            _ => None,
        }
    })
}

/// Whether the client takes gzip.
pub(crate) fn takes_gzip(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|part| part.replace(' ', "") == "q=0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send() {
        let cases = [
            ("", Some(Form::Objects)),
            ("*/*", Some(Form::Objects)),
            ("application/json", Some(Form::Objects)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Form::Objects)),
            ("application/vnd.kubernetes.protobuf", Some(Form::Objects)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some(Form::Table),
            ),
            ("application/json;as=Table;g=meta.k8s.io;v=v1beta1, application/json", Some(Form::Objects)),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                Some(Form::Metadata),
            ),
            ("text/html", None),
        ];
        for (accept, expect) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().expect("a header"));
            assert_eq!(form(&headers).ok(), expect, "{accept}");
        }
    }
}

//! `/openapi/v3` and `/openapi/v2`: large documents that clients ask for again and again. Each is built when it is
//! first asked for and kept compressed.

use std::{
    collections::HashMap,
    io::{Read, Write},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts};
use pith_api::{ApiError, openapi};

use crate::{
    accept,
    http::{Body, JSON, answer, full, json},
    request::Query,
};

/// Media type of `/openapi/v2` as protobuf; older clients write `@` and later ones a dot.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

fn wants_protobuf(headers: &HeaderMap) -> bool {
    let accept = accept::header(headers);
    let first = accept.split(',').next().unwrap_or_default();
    first.contains("proto-openapi.spec.v2") && first.contains("+protobuf")
}

/// Compressed documents by path. There are as many as group versions, and v2.
#[derive(Debug, Default)]
pub(crate) struct Documents(Mutex<HashMap<String, Bytes>>);

impl Documents {
    fn get(&self, path: &str, build: impl FnOnce() -> Option<Vec<u8>>) -> Result<Option<Bytes>, ApiError> {
        let kept =
            |documents: &Self| documents.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        if let Some(found) = kept(self) {
            return Ok(Some(found));
        }
        let Some(document) = build() else { return Ok(None) };
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        let compressed = encoder.write_all(&document).and_then(|()| encoder.finish());
        let compressed = Bytes::from(compressed.map_err(ApiError::internal)?);
        let mut documents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        documents.insert(path.to_owned(), compressed.clone());
        Ok(Some(compressed))
    }
}

pub(crate) fn handle(documents: &Documents, path: &str, parts: &Parts) -> Result<Response<Body>, ApiError> {
    let hash = openapi::hash();
    match path {
        "/openapi/v3" => Ok(json(StatusCode::OK, &openapi::index())),
        "/openapi/v2" => {
            if wants_protobuf(&parts.headers) {
                let document = documents.get(V2_PROTOBUF, || Some(openapi::swagger_protobuf()))?;
                return serve(document, V2_PROTOBUF, &hash, parts);
            }
            let document = documents.get(path, || Some(openapi::swagger().to_string().into_bytes()))?;
            serve(document, JSON, &hash, parts)
        }
        _ => {
            let name = path.strip_prefix("/openapi/v3/").ok_or_else(ApiError::no_such_path)?;
            let document = documents
                .get(path, || openapi::document(name).map(|found| found.to_string().into_bytes()))?;
            let mut response = serve(document, JSON, &hash, parts)?;
            // An address that names the content never changes its content.
            if Query::of(parts).get("hash") == hash {
                let headers = response.headers_mut();
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
                headers.insert(header::EXPIRES, HeaderValue::from_static("Fri, 31 Dec 9999 23:59:59 GMT"));
            }
            Ok(response)
        }
    }
}

fn serve(
    document: Option<Bytes>,
    content_type: &'static str,
    hash: &str,
    parts: &Parts,
) -> Result<Response<Body>, ApiError> {
    let document = document.ok_or_else(ApiError::no_such_path)?;
    let tag = HeaderValue::from_str(&format!("\"{hash}\"")).map_err(ApiError::internal)?;
    if has_tag(&parts.headers, hash) {
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().insert(header::ETAG, tag);
        return Ok(response);
    }
    let mut response = match accept::takes_gzip(&parts.headers) {
        true => {
            let mut response = answer(StatusCode::OK, content_type, document);
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
        }
        false => {
            let mut plain = Vec::new();
            GzDecoder::new(&document[..]).read_to_end(&mut plain).map_err(ApiError::internal)?;
            answer(StatusCode::OK, content_type, plain)
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, tag);
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    Ok(response)
}

fn has_tag(headers: &HeaderMap, hash: &str) -> bool {
    let tags = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    tags.flat_map(|value| value.split(','))
        .any(|tag| tag.trim().trim_start_matches("W/").trim_matches('"') == hash)
}

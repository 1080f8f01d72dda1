//! Request bodies into objects: which media type, which kind, how strictly.

use serde_json::{Map, Value};

pub use crate::decode::FieldValidation;
use crate::{
    decode::{self, Decoded},
    kind::api_version,
    protobuf,
    schema::Type,
    status::ApiError,
};

/// Media types that bodies may have.
pub const ACCEPTED: &[&str] = &["application/json", "application/yaml", protobuf::MEDIA_TYPE];

/// What a body has to be.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub schema: &'static Type,
}

impl Body {
    /// Bodies of that kind, also of kinds that only appear as subresources.
    pub fn of(group: &str, version: &str, kind: &str) -> Option<Self> {
        crate::find_kind(group, version, kind).map(crate::Kind::body)
    }

    /// `DeleteOptions`, `PatchOptions` and their like; clients send them with any group's apiVersion.
    pub fn options(kind: &'static str) -> Option<Self> {
        let schema = Type::find("io.k8s.apimachinery.pkg.apis.meta.v1", kind)?;
        Some(Self { group: "", version: "v1", kind, schema })
    }

    fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    fn refuse(&self, why: &str) -> ApiError {
        ApiError::bad_request(format!(
            "{0} in version {1:?} cannot be handled as a {0}: {why}",
            self.kind, self.version
        ))
    }
}

/// Reads `DeleteOptions` and the like; an empty body gives an empty object.
pub fn decode_options(kind: &'static str, content_type: &str, bytes: &[u8]) -> Result<Value, ApiError> {
    let body =
        Body::options(kind).ok_or_else(|| ApiError::internal(format!("{kind} is no type of meta/v1")))?;
    if bytes.is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    let decoded = read(body, content_type, bytes)?;
    Ok(Value::Object(decoded.object))
}

pub(crate) fn decode(
    body: Body,
    content_type: &str,
    bytes: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), ApiError> {
    finish(body, read(body, content_type, bytes)?, validation)
}

pub(crate) fn decode_value(
    body: Body,
    value: Value,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), ApiError> {
    let decoded = decode::typed(body.schema, value).map_err(|e| body.refuse(&e.to_string()))?;
    finish(body, decoded, validation)
}

fn read(body: Body, content_type: &str, bytes: &[u8]) -> Result<Decoded, ApiError> {
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media_type.as_str() {
        "" | "application/json" | "text/plain" => {
            let mut source = serde_json::Deserializer::from_slice(bytes);
            decode::typed(body.schema, &mut source)
                .and_then(|decoded| source.end().map(|()| decoded))
                .map_err(|e| json_error(body, &e))
        }
        "application/yaml" | "text/yaml" => {
            serde_saphyr::with_deserializer_from_slice(bytes, |source| decode::typed(body.schema, source))
                .map_err(|e| body.refuse(&format!("error converting YAML to JSON: {e}")))
        }
        protobuf::MEDIA_TYPE => protobuf::decode(body, bytes),
        _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
    }
}

fn json_error(body: Body, error: &serde_json::Error) -> ApiError {
    if error.is_data() {
        // serde_json adds where in the text it was; the field's path says it better.
        let text = error.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(head, _)| head);
        return body.refuse(text);
    }
    ApiError::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
}

/// Checks apiVersion and kind, and settles what to do about complaints.
fn finish(
    body: Body,
    decoded: Decoded,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), ApiError> {
    let Decoded { object: read, complaints } = decoded;
    let text = |name: &str| read.get(name).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let expected = body.api_version();
    if !version.is_empty() && version != expected {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({expected})"
        )));
    }
    if !kind.is_empty() && kind != body.kind {
        return Err(ApiError::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}: converting ({kind}) to ({}): unknown conversion",
            body.version, body.kind, body.kind
        )));
    }
    let warnings = match validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn => complaints,
        FieldValidation::Strict if complaints.is_empty() => Vec::new(),
        FieldValidation::Strict => {
            return Err(body.refuse(&format!("strict decoding error: {}", complaints.join(", "))));
        }
    };
    // kind and apiVersion lead, as everyone is used to see them.
    let mut object = Map::with_capacity(read.len() + 2);
    object.insert("kind".into(), body.kind.into());
    object.insert("apiVersion".into(), expected.into());
    for (name, value) in read {
        if name != "kind" && name != "apiVersion" {
            object.insert(name, value);
        }
    }
    Ok((Value::Object(object), warnings))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::find;

    fn deployment(body: &str, validation: FieldValidation) -> Result<(Value, Vec<String>), String> {
        let kind = find("apps", "v1", "deployments").expect("deployments");
        kind.decode("application/json", body.as_bytes(), validation).map_err(|e| e.message)
    }

    #[test]
    fn unknown_and_duplicate_fields_are_found_with_their_path() {
        let body = r#"{"spec": {"foo": 1, "replicas": 1, "replicas": 2,
            "template": {"spec": {"containers": [{"name": "a", "imagee": "x"}]}}}}"#;
        let found = [
            "unknown field \"spec.foo\"",
            "duplicate field \"spec.replicas\"",
            "unknown field \"spec.template.spec.containers[0].imagee\"",
        ];
        let (object, warnings) = deployment(body, FieldValidation::Warn).expect("warned");
        assert_eq!(warnings, found);
        assert_eq!(object["spec"]["replicas"], 2);
        assert_eq!(object["spec"].get("foo"), None);
        assert_eq!(deployment(body, FieldValidation::Ignore).expect("ignored").1, Vec::<String>::new());
        assert_eq!(
            deployment(body, FieldValidation::Strict).expect_err("strict"),
            format!(
                "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: {}",
                found.join(", ")
            )
        );
    }

    #[test]
    fn wrong_types_are_refused_in_gos_words() {
        for (body, why) in [
            (
                r#"{"spec": {"replicas": "two"}}"#,
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                r#"{"spec": {"template": {"spec": {"containers": [{"image": 5}]}}}}"#,
                "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.image of type string",
            ),
            (
                r#"{"spec": {"template": {"spec": {"containers": {}}}}}"#,
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
            (
                r#"{"metadata": {"labels": {"a": 1}}}"#,
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                r#"{"spec": {"replicas": 99999999999}}"#,
                "json: cannot unmarshal number 99999999999 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
        ] {
            let error = deployment(body, FieldValidation::Warn).expect_err(body);
            assert_eq!(
                error,
                format!("Deployment in version \"v1\" cannot be handled as a Deployment: {why}")
            );
        }
        assert!(deployment("{", FieldValidation::Warn).expect_err("cut off").contains("json parse error"));
        assert!(deployment("[]", FieldValidation::Warn).is_err());
        assert!(deployment(r#"{"apiVersion": "v1"}"#, FieldValidation::Warn).is_err());
        assert!(deployment(r#"{"kind": "Pod"}"#, FieldValidation::Warn).is_err());
        assert!(deployment("{} {}", FieldValidation::Warn).is_err());
    }

    #[test]
    fn values_get_their_canonical_form() {
        let pod = find("", "v1", "pods").expect("pods");
        let body = "
spec:
  containers:
  - name: a
    resources: {limits: {cpu: 1000m, memory: 0.5Gi}, requests: {cpu: 0.5}}
  dnsPolicy: null
metadata: {creationTimestamp: 2026-01-02T03:04:05.5+02:00}
";
        let (object, warnings) =
            pod.decode("application/yaml", body.as_bytes(), FieldValidation::Strict).expect("pod");
        assert!(warnings.is_empty());
        let container = &object["spec"]["containers"][0];
        assert_eq!(
            container["resources"],
            json!({"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "500m"}})
        );
        assert_eq!(object["metadata"]["creationTimestamp"], "2026-01-02T01:04:05Z");
        assert_eq!(object["spec"].get("dnsPolicy"), None);
        assert_eq!(object["apiVersion"], "v1");
    }

    #[test]
    fn depth_is_limited() {
        let pod = find("", "v1", "configmaps").expect("configmaps");
        let body = format!("{}{}", "{\"metadata\":".repeat(5000), "}".repeat(5000));
        assert!(pod.decode("", body.as_bytes(), FieldValidation::Warn).is_err());
    }
}

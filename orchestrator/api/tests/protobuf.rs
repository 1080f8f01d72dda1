//! Protobuf bodies: what a stock kubectl sends, what k8s-pb encodes, every type of the table there and back, and
//! bytes that are none.

use k8s_pb::{
    api::{apps::v1 as apps, core::v1 as core},
    apimachinery::pkg::{apis::meta::v1 as meta, util::intstr::IntOrString},
};
use pith_api::{
    FieldValidation, find, kinds,
    protobuf::{MAGIC, MEDIA_TYPE},
    schema::{Field, Shape, Type},
};
use proptest::prelude::*;
use prost::Message;
use serde_json::{Map, Value, json};

fn decode(group: &str, version: &str, kind: &str, body: &[u8]) -> Result<Value, String> {
    let kind = pith_api::find_kind(group, version, kind).expect("kind");
    kind.decode(MEDIA_TYPE, body, FieldValidation::Strict).map(|(object, _)| object).map_err(|e| e.message)
}

/// Bodies recorded from kubectl 1.37.1 with the commands named.
#[test]
fn what_kubectl_sends_is_understood() {
    let deployment = json!({
        "kind": "Deployment", "apiVersion": "apps/v1",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "nginx", "image": "nginx:1.27", "ports": [{"containerPort": 80}], "resources": {}}]},
            },
            "strategy": {},
        },
        "status": {},
    });
    let cases: [(&str, &str, &str, &[u8], Value); 9] = [
        // kubectl create configmap cm --from-literal=a=b
        (
            "",
            "v1",
            "ConfigMap",
            include_bytes!("kubectl-1.37/01-configmaps.bin"),
            json!({
                "kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "cm"}, "data": {"a": "b"},
            }),
        ),
        // kubectl create deployment web --image=nginx:1.27 --replicas=3 --port=80
        ("apps", "v1", "Deployment", include_bytes!("kubectl-1.37/02-deployments.bin"), deployment),
        // kubectl create secret generic s --from-literal=p=w
        (
            "",
            "v1",
            "Secret",
            include_bytes!("kubectl-1.37/03-secrets.bin"),
            json!({
                "kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}, "data": {"p": "dw=="},
            }),
        ),
        // kubectl create serviceaccount sa
        (
            "",
            "v1",
            "ServiceAccount",
            include_bytes!("kubectl-1.37/04-serviceaccounts.bin"),
            json!({
                "kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "sa"},
            }),
        ),
        // kubectl create namespace ns1
        (
            "",
            "v1",
            "Namespace",
            include_bytes!("kubectl-1.37/05-namespaces.bin"),
            json!({
                "kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "ns1"}, "spec": {}, "status": {},
            }),
        ),
        // kubectl create service nodeport np --tcp=5678:8080 --node-port=30001
        (
            "",
            "v1",
            "Service",
            include_bytes!("kubectl-1.37/07-services.bin"),
            json!({
                "kind": "Service", "apiVersion": "v1", "metadata": {"name": "np", "labels": {"app": "np"}},
                "spec": {
                    "ports": [{"name": "5678-8080", "protocol": "TCP", "port": 5678, "targetPort": 8080, "nodePort": 30001}],
                    "selector": {"app": "np"}, "type": "NodePort",
                },
                "status": {"loadBalancer": {}},
            }),
        ),
        // kubectl create token sa --duration=10m
        (
            "authentication.k8s.io",
            "v1",
            "TokenRequest",
            include_bytes!("kubectl-1.37/08-token.bin"),
            json!({
                "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
                "spec": {"expirationSeconds": 600}, "status": {"token": ""},
            }),
        ),
        // kubectl auth can-i create pods
        (
            "authorization.k8s.io",
            "v1",
            "SelfSubjectAccessReview",
            include_bytes!("kubectl-1.37/09-selfsubjectaccessreviews.bin"),
            json!({
                "kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
                "spec": {"resourceAttributes": {"namespace": "default", "verb": "create", "resource": "pods"}}, "status": {"allowed": false},
            }),
        ),
        // kubectl auth whoami
        (
            "authentication.k8s.io",
            "v1",
            "SelfSubjectReview",
            include_bytes!("kubectl-1.37/10-selfsubjectreviews.bin"),
            json!({
                "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "status": {"userInfo": {}},
            }),
        ),
    ];
    let wrong: Vec<_> = cases
        .into_iter()
        .map(|(group, version, kind, body, expected)| (decode(group, version, kind, body), Ok(expected)))
        .filter(|(decoded, expected)| decoded != expected)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let unknown = k8s_pb::apimachinery::pkg::runtime::Unknown {
        type_meta: Some(k8s_pb::apimachinery::pkg::runtime::TypeMeta {
            api_version: Some(api_version.to_owned()),
            kind: Some(kind.to_owned()),
        }),
        raw: Some(message.to_vec()),
        content_encoding: None,
        content_type: None,
    };
    [MAGIC, &unknown.encode_to_vec()].concat()
}

/// An encoder that shares nothing with ours agrees about tags, inlined structs and special types.
#[test]
fn what_another_encoder_writes_is_understood() {
    let quantity =
        |text: &str| k8s_pb::apimachinery::pkg::api::resource::Quantity { string: Some(text.to_owned()) };
    let container = core::Container {
        name: Some("c".into()),
        resources: Some(core::ResourceRequirements {
            limits: [("cpu".to_owned(), quantity("1500m"))].into(),
            ..Default::default()
        }),
        liveness_probe: Some(core::Probe {
            handler: Some(core::ProbeHandler {
                tcp_socket: Some(core::TcpSocketAction {
                    port: Some(IntOrString {
                        r#type: Some(1),
                        int_val: Some(0),
                        str_val: Some("web".into()),
                    }),
                    host: None,
                }),
                ..Default::default()
            }),
            period_seconds: Some(7),
            ..Default::default()
        }),
        env: vec![core::EnvVar {
            name: Some("A".into()),
            value_from: Some(core::EnvVarSource {
                secret_key_ref: Some(core::SecretKeySelector {
                    local_object_reference: Some(core::LocalObjectReference { name: Some("s".into()) }),
                    key: Some("k".into()),
                    optional: Some(false),
                }),
                ..Default::default()
            }),
            value: Some(String::new()),
        }],
        ..Default::default()
    };
    let deployment = apps::Deployment {
        metadata: Some(meta::ObjectMeta {
            name: Some("web".into()),
            creation_timestamp: Some(meta::Time { seconds: Some(0), nanos: Some(0) }),
            ..Default::default()
        }),
        spec: Some(apps::DeploymentSpec {
            replicas: Some(0),
            min_ready_seconds: Some(0),
            template: Some(core::PodTemplateSpec {
                metadata: None,
                spec: Some(core::PodSpec {
                    containers: vec![container],
                    volumes: vec![core::Volume {
                        name: Some("v".into()),
                        volume_source: Some(core::VolumeSource {
                            empty_dir: Some(core::EmptyDirVolumeSource::default()),
                            ..Default::default()
                        }),
                    }],
                    host_network: Some(false),
                    node_name: Some(String::new()),
                    automount_service_account_token: Some(false),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }),
        status: None,
    };
    let object =
        decode("apps", "v1", "Deployment", &envelope("apps/v1", "Deployment", &deployment.encode_to_vec()));
    assert_eq!(
        object,
        Ok(json!({
            "kind": "Deployment", "apiVersion": "apps/v1",
            "metadata": {"name": "web", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {
                "replicas": 0,
                "template": {
                    "metadata": {},
                    "spec": {
                        "automountServiceAccountToken": false,
                        "containers": [{
                            "name": "c", "resources": {"limits": {"cpu": "1500m"}},
                            "livenessProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 7},
                            "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": false}}}],
                        }],
                        "volumes": [{"name": "v", "emptyDir": {}}],
                    },
                },
                "strategy": {},
            },
            "status": {},
        }))
    );
}

#[test]
fn options_travel_in_any_groups_envelope() {
    let options = meta::DeleteOptions {
        grace_period_seconds: Some(0),
        propagation_policy: Some("Foreground".into()),
        preconditions: Some(meta::Preconditions { uid: Some("u".into()), resource_version: None }),
        ..Default::default()
    };
    for api_version in ["v1", "apps/v1", "meta.k8s.io/v1"] {
        let body = envelope(api_version, "DeleteOptions", &options.encode_to_vec());
        assert_eq!(
            pith_api::codec::decode_options("DeleteOptions", MEDIA_TYPE, &body),
            Ok(
                json!({"gracePeriodSeconds": 0, "propagationPolicy": "Foreground", "preconditions": {"uid": "u"}})
            )
        );
    }
}

/// A tiny source of choices for making up objects.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Fields deeper than this are left out of made-up objects.
const DEPTH: usize = 6;

fn make_up(ty: &'static Type, dice: &mut Dice, depth: usize) -> Map<String, Value> {
    let mut object = Map::new();
    // What has no tag (kind and apiVersion) protobuf does not carry.
    for field in ty.fields().iter().filter(|f| f.tag != 0) {
        if let Some(inner) = field.inlined() {
            object.extend(make_up(inner, dice, depth));
        } else if depth < DEPTH && dice.roll(3) == 0 {
            object.insert(field.name.to_owned(), make_up_value(&field.shape, dice, depth));
        }
    }
    object
}

fn make_up_value(shape: &'static Shape, dice: &mut Dice, depth: usize) -> Value {
    match shape {
        Shape::Bool => (dice.roll(2) == 0).into(),
        Shape::Int32 => (dice.roll(5) as i32 - 2).into(),
        Shape::Int64 => (dice.roll(5) as i64 - 2).into(),
        Shape::Float64 => json!(1.5),
        Shape::String => ["", "x", "größe"][dice.roll(3) as usize].into(),
        Shape::Bytes => "aGk=".into(),
        Shape::Time => "2026-01-02T03:04:05Z".into(),
        Shape::MicroTime => "2026-01-02T03:04:05.678901Z".into(),
        Shape::Duration => "1h2m3.5s".into(),
        Shape::Quantity => "1500m".into(),
        Shape::IntOrString => [json!(8), json!("25%")][dice.roll(2) as usize].clone(),
        Shape::Raw => json!({"any": ["thing"]}),
        Shape::Names => json!(["get", ""]),
        Shape::Object(index) => Value::Object(make_up(Type::at(*index), dice, depth + 1)),
        Shape::List(item) => (0..=dice.roll(2)).map(|_| make_up_value(item, dice, depth + 1)).collect(),
        Shape::Map(item) => {
            Value::Object([("k".to_owned(), make_up_value(item, dice, depth + 1))].into_iter().collect())
        }
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_number(tag: u64, value: u64, out: &mut Vec<u8>) {
    varint(tag << 3, out);
    varint(value, out);
}

fn put_bytes(tag: u64, bytes: &[u8], out: &mut Vec<u8>) {
    varint(tag << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn encode(ty: &'static Type, object: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for field in ty.fields() {
        encode_field(field, object, &mut out);
    }
    // A field that nobody knows.
    put_bytes(4000, b"newer than us", &mut out);
    out
}

fn encode_field(field: &'static Field, object: &Value, out: &mut Vec<u8>) {
    let tag = u64::from(field.tag);
    if let (Some(inner), 1..) = (field.inlined(), tag) {
        put_bytes(tag, &encode(inner, object), out);
        return;
    }
    let Some(value) = object.get(field.name) else { return };
    match &field.shape {
        Shape::List(item) => {
            value.as_array().expect("list").iter().for_each(|v| encode_value(item, tag, v, out))
        }
        Shape::Map(item) => {
            for (key, value) in value.as_object().expect("map") {
                let mut entry = Vec::new();
                put_bytes(1, key.as_bytes(), &mut entry);
                encode_value(item, 2, value, &mut entry);
                put_bytes(tag, &entry, out);
            }
        }
        shape => encode_value(shape, tag, value, out),
    }
}

fn encode_value(shape: &'static Shape, tag: u64, value: &Value, out: &mut Vec<u8>) {
    let text = value.as_str().unwrap_or_default();
    let message = |fields: &[(u64, Result<u64, &[u8]>)]| {
        let mut inner = Vec::new();
        for (tag, field) in fields {
            match field {
                Ok(number) => put_number(*tag, *number, &mut inner),
                Err(bytes) => put_bytes(*tag, bytes, &mut inner),
            }
        }
        inner
    };
    let inner = match shape {
        Shape::Bool => return put_number(tag, value.as_bool().expect("bool").into(), out),
        Shape::Int32 | Shape::Int64 => return put_number(tag, value.as_i64().expect("integer") as u64, out),
        Shape::Float64 => {
            varint(tag << 3 | 1, out);
            return out.extend_from_slice(&value.as_f64().expect("float").to_le_bytes());
        }
        Shape::String => text.as_bytes().to_vec(),
        Shape::Bytes => b"hi".to_vec(),
        Shape::Time => message(&[(1, Ok(1_767_323_045)), (2, Ok(0))]),
        Shape::MicroTime => message(&[(1, Ok(1_767_323_045)), (2, Ok(678_901_000))]),
        Shape::Duration => message(&[(1, Ok(3_723_500_000_000))]),
        Shape::Quantity => message(&[(1, Err(text.as_bytes()))]),
        Shape::IntOrString if value.is_string() => {
            message(&[(1, Ok(1)), (2, Ok(0)), (3, Err(text.as_bytes()))])
        }
        Shape::IntOrString => {
            message(&[(1, Ok(0)), (2, Ok(value.as_i64().expect("integer") as u64)), (3, Err(b""))])
        }
        Shape::Raw => message(&[(1, Err(value.to_string().as_bytes()))]),
        Shape::Names => {
            let names: Vec<_> = value
                .as_array()
                .expect("names")
                .iter()
                .map(|n| n.as_str().expect("name").as_bytes())
                .collect();
            message(&names.iter().map(|n| (1, Err(*n))).collect::<Vec<_>>())
        }
        Shape::Object(index) => encode(Type::at(*index), value),
        Shape::List(_) | Shape::Map(_) => panic!("lists of lists are no protobuf"),
    };
    put_bytes(tag, &inner, out);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever fits a kind's type survives the way through protobuf as it survives the way through JSON.
    #[test]
    fn every_kind_survives(seed in any::<u64>()) {
        let mut dice = Dice(seed);
        for kind in kinds() {
            let mut object = make_up(kind.schema(), &mut dice, 0);
            let body = envelope(&kind.api_version(), kind.kind, &encode(kind.schema(), &Value::Object(object.clone())));
            object.insert("kind".into(), kind.kind.into());
            object.insert("apiVersion".into(), kind.api_version().into());
            let (expected, _) = kind
                .decode("application/json", Value::Object(object).to_string().as_bytes(), FieldValidation::Strict)
                .expect("json");
            let (decoded, _) = kind.decode(MEDIA_TYPE, &body, FieldValidation::Strict).expect(kind.kind);
            prop_assert_eq!(decoded, expected, "{}", kind.kind);
        }
    }

    /// Arbitrary bytes, and bodies with bytes changed or cut off, are refused or read, never more.
    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..300, flip in any::<u8>()) {
        let pods = find("", "v1", "pods").expect("pods");
        let _ = pods.decode(MEDIA_TYPE, &bytes, FieldValidation::Warn);
        let _ = pods.decode(MEDIA_TYPE, &envelope("v1", "Pod", &bytes), FieldValidation::Warn);
        let mut body = include_bytes!("kubectl-1.37/02-deployments.bin").to_vec();
        let deployments = find("apps", "v1", "deployments").expect("deployments");
        let end = at.min(body.len());
        let _ = deployments.decode(MEDIA_TYPE, &body[..end], FieldValidation::Warn);
        if let Some(byte) = body.get_mut(at) {
            *byte ^= flip;
        }
        let _ = deployments.decode(MEDIA_TYPE, &body, FieldValidation::Warn);
    }
}

//! How a session ends, and how each protocol version says so on its error stream.

use serde_json::{Value, json};

/// How what was executed ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The process exited with this code; 0 is success. A process killed by signal N counts as 128 + N.
    Exited(i32),
    /// Attached, and the client has detached or the container has ended: success.
    Detached,
    /// It could not be carried out; the text is what kubectl prints.
    Failed(String),
}

impl Outcome {
    /// The `metav1.Status` of protocol v4 and later. kubectl takes the exit code from the cause.
    pub(crate) fn json(&self) -> Vec<u8> {
        let status = match self {
            Self::Exited(0) | Self::Detached => json!({"metadata": {}, "status": "Success"}),
            Self::Exited(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": exited(*code),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(text) => json!({
                "metadata": {},
                "status": "Failure",
                "message": internal(text),
                "reason": "InternalError",
                "details": {"causes": [{"message": text}]},
                "code": 500,
            }),
        };
        Value::to_string(&status).into_bytes()
    }

    /// Protocols up to v3: a text where something failed, nothing otherwise.
    pub(crate) fn text(&self) -> Vec<u8> {
        match self {
            Self::Exited(0) | Self::Detached => Vec::new(),
            Self::Exited(code) => exited(*code).into_bytes(),
            Self::Failed(text) => internal(text).into_bytes(),
        }
    }
}

fn exited(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit status {code}")
}

fn internal(text: &str) -> String {
    format!("Internal error occurred: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_read_as_kubectl_expects() {
        for (outcome, json, text) in [
            (Outcome::Exited(0), r#"{"metadata":{},"status":"Success"}"#, ""),
            (Outcome::Detached, r#"{"metadata":{},"status":"Success"}"#, ""),
            (
                Outcome::Exited(3),
                r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#,
                "command terminated with non-zero exit code: exit status 3",
            ),
            (
                Outcome::Failed("no \"sh\"".to_owned()),
                r#"{"metadata":{},"status":"Failure","message":"Internal error occurred: no \"sh\"","reason":"InternalError","details":{"causes":[{"message":"no \"sh\""}]},"code":500}"#,
                "Internal error occurred: no \"sh\"",
            ),
        ] {
            assert_eq!(String::from_utf8(outcome.json()).expect("JSON is text"), json);
            assert_eq!(String::from_utf8(outcome.text()).expect("text"), text);
        }
    }
}

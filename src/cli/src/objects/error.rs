//! Why a command failed, told as kubectl tells it, with kubectl's exit codes.
//!
//! Source: `k8s.io/kubectl/pkg/cmd/util/helpers.go` (`checkErr`, `StandardErrorMessage`).

use serde_json::Value;

/// What the API server answered instead of doing what was asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Refusal {
    /// The HTTP status.
    pub code: u16,
    /// `NotFound`, `AlreadyExists`, …; may be empty.
    pub reason: String,
    /// For people.
    pub message: String,
    /// What it is about, and the causes.
    pub details: Value,
    /// The answer as it came where it was no `Status` but text.
    pub body: Option<String>,
}

impl Refusal {
    /// Reads the body of an answer: a `Status`, or whatever a proxy on the way put there.
    pub fn read(code: u16, body: &[u8]) -> Self {
        let text = |status: &Value, field: &str| {
            status[field].as_str().map(str::to_owned).unwrap_or_default()
        };
        match serde_json::from_slice::<Value>(body) {
            Ok(mut status) if status["kind"] == "Status" => Self {
                code: status["code"].as_u64().map_or(code, |code| code as u16),
                reason: text(&status, "reason"),
                message: text(&status, "message"),
                details: status["details"].take(),
                body: None,
            },
            _ => Self {
                code,
                reason: reason(code).to_owned(),
                message: unknown(code, &String::from_utf8_lossy(body)),
                details: Value::Null,
                body: Some(String::from_utf8_lossy(body).trim().to_owned())
                    .filter(|text| !text.is_empty()),
            },
        }
    }

    fn invalid(&self) -> String {
        let named = |field: &str| self.details[field].as_str().unwrap_or_default();
        let causes: Vec<&Value> = self.details["causes"].as_array().into_iter().flatten().collect();
        let mut out = "The request is invalid".to_owned();
        if self.details.is_null() {
            if !self.message.is_empty() {
                out.push_str(&format!(": {}", self.message));
            }
            return out;
        }
        if !named("kind").is_empty() || !named("name").is_empty() {
            out = format!("The {} {:?} is invalid", named("kind"), named("name"));
        } else if !self.message.is_empty() && causes.is_empty() {
            out.push_str(&format!(": {}", self.message));
        }
        let mut told: Vec<String> = Vec::new();
        for cause in causes {
            let text = |field: &str| cause[field].as_str().unwrap_or_default();
            let line = format!("{}: {}", text("field"), text("message"));
            if !told.contains(&line) {
                told.push(line);
            }
        }
        match told.as_slice() {
            [] => out,
            [one] => format!("{out}: {one}"),
            many => {
                out.push_str(": \n");
                out.extend(many.iter().map(|line| format!("* {line}\n")));
                out
            }
        }
    }
}

/// The reason that goes with a status when the server gave none.
fn reason(code: u16) -> &'static str {
    match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        406 => "NotAcceptable",
        409 => "Conflict",
        410 => "Gone",
        415 => "UnsupportedMediaType",
        422 => "Invalid",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        400 => "BadRequest",
        _ => "",
    }
}

fn unknown(code: u16, body: &str) -> String {
    let body = body.trim();
    let what = match code {
        400 => "the server rejected our request for an unknown reason",
        401 => "the server has asked for the client to provide credentials",
        // Who may not do what is in the body.
        403 if !body.is_empty() => body,
        403 => "the server does not allow access to the requested resource",
        404 => "the server could not find the requested resource",
        405 => "the server does not allow this method on the requested resource",
        409 => "the server reported a conflict",
        406 | 415 if !body.is_empty() => body,
        406 => "the server was unable to respond with a content type that the client supports",
        415 => "unknown",
        422 => "the server rejected our request due to an error in our request",
        429 => "the server has received too many requests and has asked us to try again later",
        503 => "the server is currently unable to handle the request",
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
        }
        500.. => {
            let body = if body.is_empty() { "unknown" } else { body };
            return format!(
                "an error on the server ({body:?}) has prevented the request from succeeding"
            );
        }
        _ => {
            return format!(
                "the server responded with the status code {code} but did not return more information"
            );
        }
    };
    what.to_owned()
}

/// Why a command did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused; `doing` is put before its message.
    #[error("{}{}", doing, refusal.message)]
    Refused {
        /// Such as `error when creating "a.yaml": `; may be empty.
        doing: String,
        /// What it said.
        refusal: Box<Refusal>,
    },
    /// Told after `error: `.
    #[error("{0}")]
    Wrong(String),
    /// Told as it is.
    #[error("{0}")]
    Plain(String),
    /// The command ends with this code, and this is told; nothing when it is empty.
    #[error("{text}")]
    Exit {
        /// The exit code.
        code: u8,
        /// What is told.
        text: String,
    },
    /// Several things went wrong; the rest was done.
    #[error("several errors")]
    Many(Vec<Error>),
}

impl Error {
    /// An error told after `error: `.
    pub fn wrong(text: impl Into<String>) -> Self {
        Self::Wrong(text.into())
    }

    /// Whether the server says that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.code == 404)
    }

    /// Whether somebody else wrote the object meanwhile.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.code == 409)
    }

    /// Says what was being done, and with which file.
    #[must_use]
    pub fn when(self, verb: &str, source: &str) -> Self {
        self.after(format!("error when {verb} {source:?}: "))
    }

    /// Puts `text` before what the server said.
    #[must_use]
    pub fn after(self, text: String) -> Self {
        match self {
            Self::Refused { doing, refusal } => Self::Refused { doing: text + &doing, refusal },
            Self::Wrong(said) => Self::Wrong(text + &said),
            other => other,
        }
    }

    /// One error of those that came up; `Ok` when there are none.
    pub fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Many(errors)),
        }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        if let Self::Exit { code, .. } = self { *code } else { 1 }
    }

    /// What standard error gets, with the line's end; may be empty.
    pub fn text(&self) -> String {
        let mut text = match self {
            Self::Refused { refusal, .. } if refusal.reason == "Invalid" => refusal.invalid(),
            Self::Refused { .. } | Self::Plain(_) | Self::Exit { .. } => self.standard(),
            Self::Wrong(text) if text.starts_with("error: ") => text.clone(),
            Self::Wrong(text) => format!("error: {text}"),
            Self::Many(errors) => errors.iter().map(|e| e.standard() + "\n").collect(),
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }

    /// The message without kubectl's special treatment of single errors.
    fn standard(&self) -> String {
        match self {
            Self::Refused { refusal, .. } if refusal.reason == "Unauthorized" => {
                format!("error: You must be logged in to the server ({self})")
            }
            Self::Refused { refusal, .. } if refusal.reason.is_empty() => {
                format!("Error from server: {self}")
            }
            Self::Refused { refusal, .. } => {
                format!("Error from server ({}): {self}", refusal.reason)
            }
            other => other.to_string(),
        }
    }
}

/// Says what to do where others own fields that are applied; other errors stay as they are.
pub fn advised(error: Error) -> Error {
    let Error::Refused { refusal, .. } = &error else { return error };
    let mut causes = refusal.details["causes"].as_array().into_iter().flatten();
    if refusal.code != 409 || !causes.any(|cause| cause["reason"] == "FieldManagerConflict") {
        return error;
    }
    Error::Wrong(format!(
        "{}
Please review the fields above--they currently have other managers. Here
are the ways you can resolve this warning:
* If you intend to manage all of these fields, please re-run the apply
  command with the `--force-conflicts` flag.
* If you do not intend to manage all of the fields, please edit your
  manifest to remove references to the fields that should keep their
  current managers.
* You may co-own fields by updating your manifest to match the existing
  value; in this case, you'll become the manager if the other manager(s)
  stop managing the field (remove it from their configuration).
See https://kubernetes.io/docs/reference/using-api/server-side-apply/#conflicts",
        refusal.message
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(code: u16, reason: &str, message: &str, details: Value) -> Error {
        let body = json!({"kind": "Status", "code": code, "reason": reason, "message": message, "details": details});
        let refusal = Refusal::read(code, body.to_string().as_bytes());
        Error::Refused { doing: String::new(), refusal: Box::new(refusal) }
    }

    #[test]
    fn errors_are_told_as_kubectl_tells_them() {
        let cause = |field: &str| json!({"field": field, "message": "Required value"});
        let one = json!({"kind": "Pod", "name": "p", "causes": [cause("spec.a")]});
        let two = json!({"kind": "Pod", "name": "p", "causes": [cause("spec.a"), cause("spec.b"), cause("spec.a")]});
        let cases = [
            (
                refused(404, "NotFound", "pods \"x\" not found", Value::Null),
                "Error from server (NotFound): pods \"x\" not found\n",
            ),
            (refused(500, "", "odd", Value::Null), "Error from server: odd\n"),
            (
                refused(401, "Unauthorized", "Unauthorized", Value::Null),
                "error: You must be logged in to the server (Unauthorized)\n",
            ),
            (
                refused(409, "AlreadyExists", "it exists", Value::Null).when("creating", "a.yaml"),
                "Error from server (AlreadyExists): error when creating \"a.yaml\": it exists\n",
            ),
            (
                refused(422, "Invalid", "m", one),
                "The Pod \"p\" is invalid: spec.a: Required value\n",
            ),
            (
                refused(422, "Invalid", "m", two),
                "The Pod \"p\" is invalid: \n* spec.a: Required value\n* spec.b: Required value\n",
            ),
            (refused(422, "Invalid", "m", Value::Null), "The request is invalid: m\n"),
            (Error::wrong("no"), "error: no\n"),
            (
                Error::Many(vec![Error::wrong("a"), refused(404, "NotFound", "b", Value::Null)]),
                "a\nError from server (NotFound): b\n",
            ),
            (Error::Exit { code: 3, text: String::new() }, ""),
        ];
        for (error, want) in cases {
            assert_eq!(error.text(), want);
        }
    }

    #[test]
    fn answers_that_are_no_status_are_told_by_their_code() {
        let refusal = Refusal::read(404, b"404 page not found\n");
        assert_eq!(
            (refusal.reason.as_str(), refusal.message.as_str()),
            ("NotFound", "the server could not find the requested resource")
        );
        let refusal = Refusal::read(500, b"container not found\n");
        assert_eq!(
            refusal.message,
            "an error on the server (\"container not found\") has prevented the request from succeeding"
        );
    }
}

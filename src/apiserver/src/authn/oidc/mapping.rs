//! From claims to a user: claims by name, or CEL expressions.
//!
//! Source: `k8s.io/apiserver/pkg/authentication/cel` and the `oidc` plugin's `resolve…` functions.

use std::collections::BTreeMap;

use apimachinery::cel::{Program, TOTAL_LIMIT, Type, Value as Cel, Variables};
use serde_json::Value;

use crate::attributes::UserInfo;
use crate::subresources::user_value;
use crate::zero::Zero;

/// Where one fact of the user comes from.
#[derive(Debug)]
pub enum Source {
    /// The claim of this name, with a prefix.
    Claim(String, String),
    /// An expression over `claims`.
    Expression(String, Program),
}

/// A rule that claims or the user must meet.
#[derive(Debug)]
pub enum Rule {
    /// The claim has this value.
    Required(String, String),
    /// The expression holds; else the message tells why not.
    Expression(String, Program, String),
}

/// What expressions may name.
struct Scope<'a> {
    claims: Option<&'a Value>,
    user: Option<&'a Value>,
}

impl<'a> Variables<'a> for Scope<'a> {
    fn get(&self, name: &str) -> Option<Result<Cel<'a>, String>> {
        let value = match name {
            "claims" => self.claims?,
            "user" => self.user?,
            _ => return None,
        };
        Some(Ok(Cel::of(value, None)))
    }
}

fn compile(text: &str, name: &str) -> Result<Program, String> {
    Program::compile(text, vec![(name.to_owned(), Type::Dyn)], None)
}

fn evaluate(program: &Program, scope: &Scope<'_>) -> Result<Value, String> {
    let mut budget = TOTAL_LIMIT;
    let value = program.run(scope, &mut budget)?;
    value.to_json().ok_or_else(|| "the expression makes no JSON".to_owned())
}

impl Source {
    /// Reads `{claim, prefix}` or `{expression}`; nothing when neither is there.
    pub fn parse(value: &Value, path: &str) -> Result<Option<Self>, String> {
        let (claim, expression) = (value["claim"].text(), value["expression"].text());
        match (claim, expression) {
            ("", "") => Ok(None),
            ("", text) => compile(text, "claims")
                .map(|program| Some(Self::Expression(text.to_owned(), program)))
                .map_err(|error| format!("{path}.expression: {error}")),
            (claim, "") => {
                Ok(Some(Self::Claim(claim.to_owned(), value["prefix"].text().to_owned())))
            }
            _ => Err(format!("{path}: claim and expression can't both be set")),
        }
    }

    /// An expression.
    pub fn expression(text: &str, path: &str) -> Result<Self, String> {
        let program = compile(text, "claims").map_err(|error| format!("{path}: {error}"))?;
        Ok(Self::Expression(text.to_owned(), program))
    }

    fn value(&self, claims: &Value) -> Result<Value, String> {
        match self {
            Self::Claim(name, _) => Ok(claims.get(name).cloned().unwrap_or_default()),
            Self::Expression(text, program) => {
                let scope = Scope { claims: Some(claims), user: None };
                evaluate(program, &scope)
                    .map_err(|error| format!("error evaluating expression {text:?}: {error}"))
            }
        }
    }

    fn prefix(&self) -> &str {
        match self {
            Self::Claim(_, prefix) => prefix,
            Self::Expression(..) => "",
        }
    }

    /// The single value.
    pub fn one(&self, claims: &Value, what: &str) -> Result<String, String> {
        match self.value(claims)? {
            Value::String(text) => Ok(format!("{}{text}", self.prefix())),
            Value::Null => match self {
                Self::Claim(name, _) => Err(format!("claim {name:?} not present")),
                Self::Expression(..) => Err(format!("{what} expression must return a string")),
            },
            _ => Err(format!("{what} must be a string")),
        }
    }

    /// One value or a list of them; none where there is nothing.
    pub fn many(&self, claims: &Value, what: &str) -> Result<Vec<String>, String> {
        let found = match self.value(claims)? {
            Value::Null => Vec::new(),
            Value::String(text) => vec![text],
            Value::Array(list) => list
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text),
                    _ => Err(format!("{what} must be a string or a list of strings")),
                })
                .collect::<Result<_, _>>()?,
            _ => return Err(format!("{what} must be a string or a list of strings")),
        };
        let prefix = self.prefix();
        Ok(found
            .into_iter()
            .filter(|text| !text.is_empty())
            .map(|text| format!("{prefix}{text}"))
            .collect())
    }

    /// Whether the expression reads this claim.
    pub fn reads(&self, claim: &str) -> bool {
        match self {
            Self::Claim(name, _) => name == claim,
            Self::Expression(text, _) => {
                let named = format!("claims.{claim}");
                text.match_indices(&named).any(|(at, _)| {
                    let next = text[at + named.len()..].chars().next();
                    next.is_none_or(|c| !(c.is_alphanumeric() || c == '_'))
                })
            }
        }
    }
}

impl Rule {
    /// Reads a rule about `name` (`claims` or `user`).
    pub fn parse(value: &Value, name: &str, path: &str) -> Result<Self, String> {
        let (claim, expression) = (value["claim"].text(), value["expression"].text());
        if !claim.is_empty() && !expression.is_empty() {
            return Err(format!("{path}: claim and expression can't both be set"));
        }
        if !claim.is_empty() && name == "claims" {
            let wanted = value["requiredValue"].text();
            return Ok(Self::Required(claim.to_owned(), wanted.to_owned()));
        }
        if expression.is_empty() {
            return Err(format!("{path}: expression is required"));
        }
        let program =
            compile(expression, name).map_err(|error| format!("{path}.expression: {error}"))?;
        if !matches!(program.result(), "bool" | "dyn") {
            return Err(format!("{path}.expression: must evaluate to bool"));
        }
        let message = value["message"].text().to_owned();
        Ok(Self::Expression(expression.to_owned(), program, message))
    }

    fn check(&self, scope: &Scope<'_>) -> Result<(), String> {
        match self {
            Self::Required(claim, wanted) => {
                let found = scope.claims.map_or("", |claims| claims[claim].text());
                if found == wanted {
                    return Ok(());
                }
                Err(format!(
                    "required claim {claim} value does not match. Got = {found}, want = {wanted}"
                ))
            }
            Self::Expression(text, program, message) => match evaluate(program, scope) {
                Ok(Value::Bool(true)) => Ok(()),
                Ok(_) if message.is_empty() => {
                    Err(format!("validation expression '{text}' failed"))
                }
                Ok(_) => Err(format!("validation expression '{text}' failed: {message}")),
                Err(error) => Err(format!("expression '{text}' resulted in error: {error}")),
            },
        }
    }
}

/// Everything about the user that the claims give.
#[derive(Debug, Default)]
pub struct Mapping {
    pub username: Option<Source>,
    pub groups: Option<Source>,
    pub uid: Option<Source>,
    pub extra: Vec<(String, Source)>,
    pub claim_rules: Vec<Rule>,
    pub user_rules: Vec<Rule>,
}

impl Mapping {
    /// The user that `claims` describe.
    pub fn user(&self, claims: &Value) -> Result<UserInfo, String> {
        let Some(username) = &self.username else { return Err("no username is mapped".into()) };
        let name = username.one(claims, "username")?;
        // A mail address that nobody has checked is anybody's.
        if let Source::Claim(claim, _) = username
            && claim == "email"
            && let Some(verified) = claims.get("email_verified")
            && *verified != true
        {
            return Err("email not verified".into());
        }
        for rule in &self.claim_rules {
            rule.check(&Scope { claims: Some(claims), user: None })?;
        }
        if name.is_empty() {
            return Err("username expression evaluated to the empty string".into());
        }
        let groups = self.groups.as_ref().map(|source| source.many(claims, "groups"));
        let uid = self.uid.as_ref().map(|source| source.one(claims, "uid"));
        let mut extra = BTreeMap::new();
        for (key, source) in &self.extra {
            let values = source.many(claims, "extra")?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        if let Some(id) = claims.get("jti").and_then(Value::as_str) {
            let key = "authentication.kubernetes.io/credential-id".to_owned();
            extra.insert(key, vec![format!("JTI={id}")]);
        }
        let user = UserInfo {
            name,
            uid: uid.transpose()?.unwrap_or_default(),
            groups: groups.transpose()?.unwrap_or_default(),
            extra,
        };
        let mut value = user_value(&user);
        for (key, empty) in [
            ("uid", Value::from("")),
            ("groups", Value::Array(Vec::new())),
            ("extra", Value::Object(serde_json::Map::new())),
        ] {
            if value[key].is_null() {
                value[key] = empty;
            }
        }
        for rule in &self.user_rules {
            rule.check(&Scope { claims: None, user: Some(&value) })?;
        }
        Ok(user)
    }
}

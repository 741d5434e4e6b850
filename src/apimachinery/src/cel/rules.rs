//! `x-kubernetes-validations` of a schema, compiled and applied.
//!
//! Source: `pkg/apiserver/schema/cel` of apiextensions-apiserver.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::estimate::{self, RULE_LIMIT, SCHEMA_LIMIT, SLACK};
use super::{COST_EXCEEDED, Named, Program, TOTAL_LIMIT, Type, Value};
use crate::field::{Error, ErrorList, Path, ordered};
use crate::schema::ListType;
use crate::structural::{Additional, Rule, Structural};

/// One compiled rule.
#[derive(Debug)]
struct Compiled {
    rule: Rule,
    program: Program,
    message: Option<Program>,
    transition: bool,
}

/// The compiled rules at one place of a schema and below it.
#[derive(Debug, Default)]
pub struct Rules {
    own: Vec<Compiled>,
    properties: BTreeMap<String, Rules>,
    items: Option<Box<Rules>>,
    values: Option<Box<Rules>>,
}

fn declared<'s>(rule: &Rule, schema: &'s Structural) -> Vec<(String, Type<'s>)> {
    let old = if rule.optional_old_self {
        Type::Optional(Box::new(Type::Of(schema)))
    } else {
        Type::Of(schema)
    };
    vec![("self".into(), Type::Of(schema)), ("oldSelf".into(), old)]
}

/// What values are counted as when costs are estimated, whether they are there or not.
fn counted(schema: &Structural) -> [(String, Type<'_>); 2] {
    [("self".into(), Type::Of(schema)), ("oldSelf".into(), Type::Of(schema))]
}

fn compile_rule(
    rule: &Rule,
    schema: &Structural,
    root: Option<&Structural>,
) -> Result<Compiled, String> {
    let names = declared(rule, schema);
    let program = Program::compile(&rule.rule, names.clone(), root)?;
    let message = if rule.message_expression.is_empty() {
        None
    } else {
        Some(Program::compile(&rule.message_expression, names, root)?)
    };
    let transition = program.names("oldSelf");
    Ok(Compiled { rule: rule.clone(), program, message, transition })
}

/// What is wrong with the rules of a schema at `path`.
pub fn check(schema: &Structural, path: &Path) -> ErrorList {
    let mut found = Found { errors: ErrorList::new(), total: 0, costs: Vec::new() };
    check_at(schema, path, true, Some(1), None, &mut found);
    let Found { mut errors, total, mut costs } = found;
    if total > SCHEMA_LIMIT.saturating_mul(SLACK) {
        // Those that make up most of it are named.
        costs.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        for (_, path) in costs.iter().filter(|(cost, _)| *cost > SCHEMA_LIMIT / 100).take(4) {
            let detail = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            errors.push(Error::forbidden(path, detail));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.push(Error::forbidden(path, estimate::over(what, total, SCHEMA_LIMIT)));
    }
    errors
}

/// What checking a schema's rules has found so far.
struct Found {
    errors: ErrorList,
    total: u64,
    costs: Vec<(u64, Path)>,
}

impl Found {
    /// Takes an expression's cost in, `count` times; refuses it when that is too much.
    fn pay(&mut self, cost: u64, count: u64, what: &str, path: &Path) {
        let cost = cost.saturating_mul(count);
        self.total = self.total.saturating_add(cost);
        self.costs.push((cost, path.clone()));
        if cost > RULE_LIMIT.saturating_mul(SLACK) {
            self.errors.push(Error::forbidden(path, estimate::over(what, cost, RULE_LIMIT)));
        }
    }
}

/// `count` is how many values of the schema an object can have, where that is limited.
fn check_at(
    schema: &Structural,
    path: &Path,
    is_root: bool,
    count: Option<u64>,
    uncorrelatable: Option<&Path>,
    found: &mut Found,
) {
    let root = (is_root || schema.embedded).then_some(schema);
    for (index, rule) in schema.rules.iter().enumerate() {
        let path = path.child("x-kubernetes-validations").index(index);
        check_rule(rule, schema, root, &path, &mut found.errors);
        if let Some(within) = uncorrelatable
            && compile_rule(rule, schema, root).is_ok_and(|compiled| compiled.transition)
        {
            let detail = format!(
                "oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"
            );
            let at = path.child("rule");
            found.errors.push(Error::invalid(&at, rule.rule.as_str(), detail));
        }
        let names = declared(rule, schema);
        let times = count.unwrap_or_else(|| estimate::unbounded_count(schema));
        for (text, key, what) in [
            (&rule.rule, "rule", "estimated rule cost"),
            (&rule.message_expression, "messageExpression", "estimated messageExpression cost"),
        ] {
            if let Ok(program) = Program::compile(text, names.clone(), root) {
                found.pay(program.estimate(&counted(schema)), times, what, &path.child(key));
            }
        }
    }
    for (name, below) in &schema.properties {
        check_at(below, &path.child("properties").key(name), false, count, uncorrelatable, found);
    }
    let inner =
        count.zip(estimate::factor(schema)).map(|(count, factor)| count.saturating_mul(factor));
    if let Some(items) = &schema.items {
        // Only the items of a map are known again in the old list.
        let apart = schema.list_type != Some(ListType::Map);
        let within = if apart { Some(path) } else { uncorrelatable };
        check_at(items, &path.child("items"), false, inner, within, found);
    }
    if let Some(Additional::Of(values)) = &schema.additional {
        let path = path.child("additionalProperties");
        check_at(values, &path, false, inner, uncorrelatable, found);
    }
}

/// A rule as Go holds it.
fn shown(rule: &Rule) -> String {
    let text = |text: &str| Json::from(text);
    let set = |text: &str| if text.is_empty() { Json::Null } else { text.into() };
    ordered(&[
        ("Rule", text(&rule.rule)),
        ("Message", text(&rule.message)),
        ("MessageExpression", text(&rule.message_expression)),
        ("Reason", set(&rule.reason)),
        ("FieldPath", text(&rule.field_path)),
        ("OptionalOldSelf", if rule.optional_old_self { true.into() } else { Json::Null }),
    ])
}

fn check_rule(
    rule: &Rule,
    schema: &Structural,
    root: Option<&Structural>,
    path: &Path,
    errors: &mut ErrorList,
) {
    const REASONS: [&str; 4] =
        ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    if rule.rule.trim().is_empty() {
        errors.push(Error::required(&path.child("rule"), "rule is not specified"));
        return;
    }
    if !rule.message.is_empty() && rule.message.trim().is_empty() {
        let detail = "must be non-empty if specified";
        errors.push(Error::invalid(&path.child("message"), rule.message.as_str(), detail));
    } else if rule.message.contains('\n') {
        let detail = "must not contain line breaks";
        errors.push(Error::invalid(&path.child("message"), rule.message.as_str(), detail));
    } else if rule.rule.trim().contains('\n') && rule.message.is_empty() {
        let detail = "message must be specified if rule contains line breaks";
        errors.push(Error::required(&path.child("message"), detail));
    }
    if !rule.reason.is_empty() && !REASONS.contains(&rule.reason.as_str()) {
        errors.push(Error::not_supported(&path.child("reason"), rule.reason.as_str(), &REASONS));
    }
    if !rule.field_path.is_empty() && !rule.field_path.starts_with(['.', '['])
        || !rule.field_path.is_empty() && field_path(rule, schema, &Path::default()).is_none()
    {
        let detail = "must be a valid path";
        errors.push(Error::invalid(&path.child("fieldPath"), rule.field_path.as_str(), detail));
    }
    let names = declared(rule, schema);
    match Program::compile(&rule.rule, names.clone(), root) {
        Err(error) => {
            let detail = format!("compilation failed: {error}");
            errors.push(Error::invalid_shown(&path.child("rule"), shown(rule), detail));
        }
        Ok(program) => {
            if !matches!(program.result(), "bool" | "dyn") {
                let detail = "cel expression must evaluate to a bool";
                errors.push(Error::invalid_shown(&path.child("rule"), shown(rule), detail));
            }
            if rule.optional_old_self && !program.names("oldSelf") {
                let detail = "may not be set if oldSelf is not used in rule";
                errors.push(Error::invalid(&path.child("optionalOldSelf"), true, detail));
            }
        }
    }
    if !rule.message_expression.is_empty() && rule.message_expression.trim().is_empty() {
        let detail = "messageExpression must be non-empty if specified";
        errors.push(Error::required(&path.child("messageExpression"), detail));
    } else if !rule.message_expression.is_empty() {
        let field = path.child("messageExpression");
        match Program::compile(&rule.message_expression, names, root) {
            Err(error) => {
                let detail = format!("messageExpression compilation failed: {error}");
                errors.push(Error::invalid_shown(&field, shown(rule), detail));
            }
            Ok(program) if !matches!(program.result(), "string" | "dyn") => {
                let detail = "messageExpression must evaluate to a string";
                errors.push(Error::invalid_shown(&field, shown(rule), detail));
            }
            Ok(_) => {}
        }
    }
}

/// Where a rule points below `at`: `.a.b` and `['c']`.
fn field_path(rule: &Rule, schema: &Structural, at: &Path) -> Option<Path> {
    let parsed = crate::json_path::JsonPath::parse(&rule.field_path).ok()?;
    let (mut schema, mut path) = (schema, at.clone());
    for name in parsed.plain_fields()? {
        path = if schema.properties.contains_key(name) { path.child(name) } else { path.key(name) };
        schema = schema.child(name)?;
    }
    Some(path)
}

impl Rules {
    /// Compiles the rules of a schema; those that do not compile were refused when it was written.
    pub fn compile(schema: &Structural) -> Self {
        Self::compile_at(schema, true)
    }

    fn compile_at(schema: &Structural, is_root: bool) -> Self {
        let root = (is_root || schema.embedded).then_some(schema);
        let below = |schema: &Structural| Self::compile_at(schema, false);
        let some = |schema: &Structural| {
            let rules = below(schema);
            (!rules.is_empty()).then(|| Box::new(rules))
        };
        Self {
            own: schema.rules.iter().filter_map(|r| compile_rule(r, schema, root).ok()).collect(),
            properties: schema
                .properties
                .iter()
                .map(|(name, schema)| (name.clone(), below(schema)))
                .filter(|(_, rules)| !rules.is_empty())
                .collect(),
            items: schema.items.as_deref().and_then(some),
            values: match &schema.additional {
                Some(Additional::Of(schema)) => some(schema),
                _ => None,
            },
        }
    }

    /// Whether there is none, here and below.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty()
            && self.properties.is_empty()
            && self.items.is_none()
            && self.values.is_none()
    }

    /// What the rules say against `object`, which replaces `old`.
    pub fn validate(&self, schema: &Structural, object: &Json, old: Option<&Json>) -> ErrorList {
        self.judge(schema, object, old).errors
    }

    /// The same, and what they say against parts that are as they were.
    pub fn judge(&self, schema: &Structural, object: &Json, old: Option<&Json>) -> Judgement {
        let mut run = Run {
            budget: TOTAL_LIMIT,
            exhausted: false,
            errors: Vec::new(),
            tolerated: Vec::new(),
        };
        self.validate_at(schema, object, old, &Path::default(), &mut run);
        Judgement { errors: run.errors, tolerated: run.tolerated }
    }

    fn validate_at(
        &self,
        schema: &Structural,
        value: &Json,
        old: Option<&Json>,
        path: &Path,
        run: &mut Run,
    ) {
        let unchanged = old == Some(value);
        for rule in &self.own {
            if run.exhausted {
                return;
            }
            if rule.transition && old.is_none() && !rule.rule.optional_old_self {
                continue;
            }
            let before = run.errors.len();
            rule.apply(schema, value, old, path, run);
            // What was accepted before is not refused now; its author is told.
            if unchanged && !rule.transition && !run.exhausted {
                run.tolerated.extend(run.errors.drain(before..));
            }
        }
        match value {
            Json::Object(map) => {
                for (name, value) in map {
                    let before = old.and_then(|old| old.get(name));
                    let (rules, path) = match self.properties.get(name) {
                        Some(rules) => (rules, path.child(name)),
                        None if schema.properties.contains_key(name) => continue,
                        None => match &self.values {
                            Some(rules) => (rules.as_ref(), path.key(name)),
                            None => continue,
                        },
                    };
                    if let Some(schema) = schema.child(name)
                        && (!value.is_null() || schema.nullable)
                    {
                        rules.validate_at(schema, value, before, &path, run);
                    }
                }
            }
            Json::Array(list) => {
                let (Some(rules), Some(schema_of_items)) = (&self.items, &schema.items) else {
                    return;
                };
                for (index, item) in list.iter().enumerate() {
                    let before = schema.correlated(item, old);
                    rules.validate_at(schema_of_items, item, before, &path.index(index), run);
                }
            }
            _ => {}
        }
    }
}

/// What rules say against an object.
#[derive(Debug, Default)]
pub struct Judgement {
    /// What it is refused for.
    pub errors: ErrorList,
    /// What it would be refused for if it were new.
    pub tolerated: ErrorList,
}

struct Run {
    budget: u64,
    exhausted: bool,
    errors: ErrorList,
    tolerated: ErrorList,
}

impl Compiled {
    fn apply(
        &self,
        schema: &Structural,
        value: &Json,
        old: Option<&Json>,
        path: &Path,
        run: &mut Run,
    ) {
        let before = match old {
            Some(old) if self.rule.optional_old_self => {
                Value::Optional(Some(Value::of(old, Some(schema)).into()))
            }
            Some(old) => Value::of(old, Some(schema)),
            None => Value::Optional(None),
        };
        let variables: &[(&str, Value<'_>)] =
            &[("self", Value::of(value, Some(schema))), ("oldSelf", before)];
        let kind = if schema.kind.is_empty() { "object" } else { schema.kind.as_str() };
        let place = field_path(&self.rule, schema, path)
            .filter(|_| !self.rule.field_path.is_empty())
            .unwrap_or_else(|| path.clone());
        let place = if place.as_str().is_empty() { Path::new("<nil>") } else { place };
        let own = match self.rule.message.trim() {
            "" => self.rule.rule.trim(),
            message => message,
        };
        let outcome = self.program.run(&Named(variables), &mut run.budget);
        if run.budget == 0 {
            let detail = "validation failed due to running out of cost budget, no further validation rules will be run";
            run.errors.push(Error::invalid(&place, kind, detail));
            run.exhausted = true;
            return;
        }
        let failed = |detail: String| Error::invalid(&place, kind, detail);
        let detail = match outcome {
            Ok(Value::Bool(true)) => return,
            Ok(_) => {
                let made = self.message.as_ref().and_then(|program| {
                    let text = program.run(&Named(variables), &mut run.budget).ok()?.to_text();
                    let text = text.trim().to_owned();
                    (!text.is_empty() && !text.contains('\n') && text.len() <= 5120).then_some(text)
                });
                match made {
                    Some(text) => text,
                    None if self.rule.message.trim().is_empty() => format!("failed rule: {own}"),
                    None => own.to_owned(),
                }
            }
            Err(error) if error.starts_with("no such overload") => {
                let detail = format!(
                    "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {own}"
                );
                return run.errors.push(failed(detail));
            }
            Err(error) if error == COST_EXCEEDED => {
                let detail = format!(
                    "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {own}"
                );
                run.exhausted = true;
                return run.errors.push(failed(detail));
            }
            Err(error) => {
                return run.errors.push(failed(format!("{error} evaluating rule: {own}")));
            }
        };
        run.errors.push(match self.rule.reason.as_str() {
            "FieldValueForbidden" => Error::forbidden(&place, detail),
            "FieldValueRequired" => Error::required(&place, &detail),
            // Upstream has no words for these.
            "FieldValueDuplicate" => {
                Error { value: told(schema, value), ..Error::duplicate(&place, 0) }
            }
            _ => Error { value: told(schema, value), ..Error::invalid(&place, 0, detail) },
        });
    }
}

/// The value as a message has it; objects and lists are not shown.
fn told(schema: &Structural, value: &Json) -> Option<Json> {
    (!matches!(schema.kind.as_str(), "object" | "array")).then(|| value.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(rules: Json) -> Structural {
        Structural::parse(&json!({"type": "object", "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": rules,
            "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string"},
                "when": {"type": "string", "format": "date-time"},
                "list": {"type": "array", "items": {"type": "string"}},
                "map": {"type": "object", "additionalProperties": {"type": "integer"}}}}}}))
    }

    fn told(rule: Json, object: Json, old: Option<Json>) -> Vec<String> {
        let schema = schema(json!([rule]));
        assert!(
            check(&schema, &Path::new("s")).is_empty(),
            "{:?}",
            check(&schema, &Path::new("s"))
        );
        ran(&schema, object, old)
    }

    /// What the rules say of an object, whatever they may cost.
    fn ran(schema: &Structural, object: Json, old: Option<Json>) -> Vec<String> {
        let object = json!({"spec": object});
        let old = old.map(|old| json!({"spec": old}));
        let errors = Rules::compile(schema).validate(schema, &object, old.as_ref());
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_judge_in_upstreams_words() {
        let cases = [
            (json!({"rule": "self.min <= self.max"}), json!({"min": 1, "max": 2}), None, ""),
            (
                json!({"rule": "self.min <= self.max"}),
                json!({"min": 3, "max": 2}),
                None,
                r"spec: Invalid value: failed rule: self.min <= self.max",
            ),
            (
                json!({"rule": "self.min <= self.max", "message": "min above max"}),
                json!({"min": 3, "max": 2}),
                None,
                r"spec: Invalid value: min above max",
            ),
            (
                json!({"rule": "self.min <= 1", "messageExpression": "'min is ' + string(self.min)"}),
                json!({"min": 3}),
                None,
                r"spec: Invalid value: min is 3",
            ),
            (
                json!({"rule": "self.min <= 1", "reason": "FieldValueForbidden", "fieldPath": ".min", "message": "no"}),
                json!({"min": 3}),
                None,
                "spec.min: Forbidden: no",
            ),
            (
                json!({"rule": "self.min < 1"}),
                json!({}),
                None,
                r#"spec: Invalid value: "object": no such key: min evaluating rule: self.min < 1"#,
            ),
            (json!({"rule": "!has(self.min) || self.min < 1"}), json!({}), None, ""),
            (
                json!({"rule": "self.name == oldSelf.name", "message": "fixed"}),
                json!({"name": "b"}),
                None,
                "",
            ),
            (
                json!({"rule": "self.name == oldSelf.name", "message": "fixed"}),
                json!({"name": "b"}),
                Some(json!({"name": "a"})),
                r"spec: Invalid value: fixed",
            ),
            (
                json!({"rule": "oldSelf.hasValue() || self.name == 'new'", "optionalOldSelf": true}),
                json!({"name": "b"}),
                None,
                r"spec: Invalid value: failed rule: oldSelf.hasValue() || self.name == 'new'",
            ),
            (
                json!({"rule": "self.when > timestamp('2026-01-01T00:00:00Z')"}),
                json!({"when": "2026-06-01T00:00:00Z"}),
                None,
                "",
            ),
            (
                json!({"rule": "self.list.all(x, x.startsWith('a'))"}),
                json!({"list": ["a", "b"]}),
                None,
                r"spec: Invalid value: failed rule: self.list.all(x, x.startsWith('a'))",
            ),
            (
                json!({"rule": "self.map.all(k, self.map[k] < 2)"}),
                json!({"map": {"x": 1}}),
                None,
                "",
            ),
        ];
        for (rule, object, old, want) in cases {
            let told = told(rule.clone(), object, old);
            let want: Vec<&str> = if want.is_empty() { vec![] } else { vec![want] };
            assert_eq!(told, want, "{rule}");
        }
    }

    #[test]
    fn what_is_as_it_was_is_refused_when_it_costs_too_much() {
        let dear = "self.list.all(a, self.list.all(b, self.list.all(c, a != b + c)))";
        let schema = schema(json!([{"rule": dear}]));
        let list: Vec<String> = (0..300).map(|n| format!("x{n}")).collect();
        let object = json!({"list": list});
        let told = ran(&schema, object.clone(), Some(object));
        assert!(told[0].contains("call cost exceeds limit"), "{told:?}");
        let object = json!({"list": ["a", "b", "ab"]});
        assert_eq!(ran(&schema, object.clone(), Some(object.clone())), [""; 0]);
        assert_eq!(ran(&schema, object, None).len(), 1);
    }

    #[test]
    fn broken_rules_are_told_when_they_are_written() {
        let cases = [
            (
                "self.foo == 1",
                "compilation failed: ERROR: <input>:1:5: undefined field 'foo'\n | self.foo == 1\n | ....^",
            ),
            (
                "slef.min == 1",
                "compilation failed: ERROR: <input>:1:1: undeclared reference to 'slef' (in container '')\n | slef.min == 1\n | ^",
            ),
            (
                "self.min == 'a'",
                "compilation failed: ERROR: <input>:1:10: found no matching overload for '_==_' applied to '(int, string)'\n | self.min == 'a'\n | .........^",
            ),
            ("self.min + 1", "cel expression must evaluate to a bool"),
            (
                "self.min ==",
                "compilation failed: ERROR: <input>:1:12: Syntax error: mismatched input '<EOF>'",
            ),
        ];
        for (rule, want) in cases {
            let schema = schema(json!([{"rule": rule}]));
            let errors = check(&schema, &Path::new("s"));
            assert!(errors[0].detail.starts_with(want), "{rule}: {}", errors[0].detail);
        }
    }

    /// Upstream's words for rules that could hold up the server.
    #[test]
    fn old_items_are_known_again_in_maps_only() {
        let of = |kind: Option<&str>| {
            let mut list = json!({"type": "array", "maxItems": 5, "items": {"type": "object",
                "properties": {"k": {"type": "string"}, "v": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v"}]}});
            if let Some(kind) = kind {
                list["x-kubernetes-list-type"] = kind.into();
                list["x-kubernetes-list-map-keys"] = json!(["k"]);
            }
            let schema = json!({"type": "object", "properties": {"list": list}});
            let errors = check(&Structural::parse(&schema), &Path::new("s"));
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of(Some("map")), Vec::<String>::new());
        let told = of(None);
        assert!(
            told[0].ends_with("oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[list]"),
            "{told:?}"
        );
    }

    #[test]
    fn costs_are_estimated_from_the_limits_of_the_schema() {
        let estimate = |items: Json, rule: &str| {
            let schema = Structural::parse(&json!({"type": "object",
                "properties": {"list": items}, "x-kubernetes-validations": [{"rule": rule}]}));
            let told = check(&schema, &Path::new("s"));
            told.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let texts = |most: Option<u64>| {
            let mut list = json!({"type": "array", "items": {"type": "string"}});
            if let Some(most) = most {
                list["maxItems"] = most.into();
                list["items"]["maxLength"] = 64.into();
            }
            list
        };
        let twice = "self.list.all(a, self.list.all(b, a != b))";
        let none = Vec::<String>::new();
        // The keys of a map are of no length, however long a pattern for them.
        let map = json!({"type": "object", "maxProperties": 16,
            "additionalProperties": {"type": "string", "maxLength": 4096}});
        let pattern =
            format!("self.list.all(k, k.matches('^({})$'))", "[a-z0-9]([-a-z0-9]*)".repeat(9));
        assert_eq!(estimate(map, &pattern), none);
        assert_eq!(estimate(texts(Some(100)), twice), none);
        assert_eq!(estimate(texts(None), "self.list.all(a, size(a) > 0)"), none);
        assert_eq!(estimate(texts(None), "self.list.exists(a, a == 'x')"), none);
        assert_eq!(
            estimate(texts(None), twice)[0],
            "s.x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
        );
    }

    /// What upstream's estimate says of a schema without limits, and with them.
    #[test]
    fn estimates_are_upstreams() {
        let cost = |kind: Json, rule: &str| {
            let schema = Structural::parse(&kind);
            let names = counted(&schema);
            Program::compile(rule, names.to_vec(), None).expect(rule).estimate(&names)
        };
        let list = |of: &str| json!({"type": "array", "items": {"type": of}});
        let few = |of: &str| json!({"type": "array", "maxItems": 10, "items": {"type": of}});
        let map = |of: &str| json!({"type": "object", "additionalProperties": {"type": of}});
        let text = json!({"type": "string"});
        let short = json!({"type": "string", "maxLength": 10});
        let object = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}});
        for (schema, rule, want) in [
            (list("number"), "self.all(x, true)", 4_718_591),
            (few("number"), "self.all(x, true)", 32),
            (list("string"), "self.all(x, true)", 3_145_727),
            (few("string"), "self.all(x, true)", 32),
            (list("boolean"), "self.all(x, true)", 1_887_437),
            (map("integer"), "self.all(x, true)", 1_348_169),
            (text.clone(), "self.contains('test')", 314_574),
            (short.clone(), "self.contains('test')", 5),
            (text.clone(), "self.startsWith('test')", 2),
            (text.clone(), "self == 'x'", 2),
            (text, "self.matches('abcd')", 314_574),
            (short, "self.matches('abcd')", 6),
            (object.clone(), "self.a < self.b", 5),
            (object.clone(), "has(self.a)", 1),
            (object, "self == oldSelf", 2),
            (few("integer"), "self.map(x, x + 1).all(y, y > 1)", 203),
        ] {
            assert_eq!(cost(schema.clone(), rule), want, "{rule} over {schema}");
        }
    }

    /// Rules as they stand in definitions that people install, with the limits that they have there.
    #[test]
    fn rules_that_upstream_takes_are_taken() {
        let text = |most: u64| json!({"type": "string", "maxLength": most});
        let reference = json!({"type": "object", "required": ["name"], "properties": {
            "group": {"type": "string", "maxLength": 253}, "kind": {"type": "string", "maxLength": 63},
            "name": text(253), "namespace": text(63), "sectionName": text(253), "port": {"type": "integer"}}});
        let cases = [
            // A route's parents differ from each other.
            (
                json!({"type": "array", "maxItems": 32, "items": reference}),
                "self.all(p1, self.exists_one(p2, p1.group == p2.group && p1.kind == p2.kind && p1.name == p2.name && (((!has(p1.__namespace__) || p1.__namespace__ == '') && (!has(p2.__namespace__) || p2.__namespace__ == '')) || (has(p1.__namespace__) && has(p2.__namespace__) && p1.__namespace__ == p2.__namespace__))))",
            ),
            // A gateway's listeners have names of their own.
            (
                json!({"type": "array", "maxItems": 64, "items": {"type": "object", "required": ["name", "port", "protocol"],
                "properties": {"name": text(253), "hostname": text(253), "port": {"type": "integer"}, "protocol": text(255)}}}),
                "self.all(l1, self.exists_one(l2, l1.port == l2.port && l1.protocol == l2.protocol && (has(l1.hostname) && has(l2.hostname) ? l1.hostname == l2.hostname : !has(l1.hostname) && !has(l2.hostname))))",
            ),
            (
                text(1024),
                "!self.contains('//') && !self.endsWith('/..') && self.matches('^(?:[-A-Za-z0-9/._~!$&()*+,;=:]|[%][0-9a-fA-F]{2})+$')",
            ),
            // A queue's flavours cover the same resources.
            (
                json!({"type": "array", "maxItems": 16, "items": {"type": "object", "required": ["coveredResources", "flavors"],
                "properties": {"coveredResources": {"type": "array", "maxItems": 64, "items": {"type": "string"}},
                    "flavors": {"type": "array", "maxItems": 64, "items": {"type": "object", "properties": {
                        "resources": {"type": "array", "maxItems": 64, "items": {"type": "object", "properties": {"name": {"type": "string"}}}}}}}}}}),
                "self.all(g, g.flavors.all(f, size(f.resources) == size(g.coveredResources)))",
            ),
        ];
        for (schema, rule) in cases {
            let mut schema = json!({"type": "object", "properties": {"field": schema}});
            schema["properties"]["field"]["x-kubernetes-validations"] = json!([{"rule": rule}]);
            let told = check(&Structural::parse(&schema), &Path::new("s"));
            let told: Vec<String> = told.iter().map(ToString::to_string).collect();
            assert_eq!(told, Vec::<String>::new(), "{rule}");
        }
    }

    /// Sets and maps have no order, nulls are absent, rules may stand in `allOf`, and what a schema says itself
    /// of its metadata can be read.
    #[test]
    fn values_are_what_their_schemas_say() {
        let text = json!({"type": "string"});
        let named = json!({"type": "object", "required": ["k"],
            "properties": {"k": text, "v": {"type": "integer"}}});
        let schema = |rule: &str| {
            json!({"type": "object", "properties": {
                "set": {"type": "array", "x-kubernetes-list-type": "set", "items": text},
                "same": {"type": "array", "x-kubernetes-list-type": "set", "items": text},
                "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": named},
                "turned": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": named},
                "list": {"type": "array", "items": text},
                "none": {"type": "string", "nullable": true},
                "while": {"type": "integer"},
                "long": {"type": "string", "format": "duration"},
                "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {
                    "apiVersion": text, "kind": text, "metadata": {"type": "object", "properties": {
                        "name": text, "generateName": text, "namespace": text}}}}},
                "x-kubernetes-validations": [{"rule": rule}]})
        };
        let object = json!({
            "set": ["a", "b"], "same": ["b", "a"], "list": ["b", "a"], "none": null, "while": 1,
            "map": [{"k": "x", "v": 1}, {"k": "y", "v": 2}], "long": "1m0.5s",
            "turned": [{"k": "y", "v": 2}, {"k": "x", "v": 1}],
            "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "n"}}});
        for rule in [
            "self.set == self.same && self.map == self.turned",
            "self.set + ['b', 'c'] == ['a', 'b', 'c']",
            "(self.map + [self.turned[0]]).size() == 2",
            "self.list + ['c'] == ['b', 'a', 'c'] && self.list != ['a', 'b']",
            "!has(self.none)",
            "self.__while__ == 1",
            "self.long.getMilliseconds() == 60500",
            "self.pod.metadata.__namespace__ == 'n'",
            "url('https://a.example:443').getPort() == '443' && url('https://a.example').getEscapedPath() == ''",
            "url('https://a.example:443/b').getHost() == 'a.example:443' && url('https://a').getScheme() == 'https'",
            "url('/b/c').getEscapedPath() == '/b/c' && url('/b').getScheme() == '' && url('/b').getHost() == ''",
        ] {
            let schema = Structural::parse(&schema(rule));
            let mistakes = check(&schema, &Path::new("s"));
            assert!(mistakes.is_empty(), "{rule}: {mistakes:?}");
            let errors = Rules::compile(&schema).validate(&schema, &object, None);
            assert!(errors.is_empty(), "{rule}: {errors:?}");
        }
        let schema = Structural::parse(&json!({"type": "array", "items": text, "allOf": [
            {"x-kubernetes-validations": [{"rule": "self.size() < 2", "message": "few"}]},
            {"items": {"x-kubernetes-validations": [{"rule": "self.size() == 1", "message": "short"}]}}]}));
        let errors = Rules::compile(&schema).validate(&schema, &json!(["a", "bc"]), None);
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].ends_with("few") && told[1].ends_with("short"), "{told:?}");
    }

    #[test]
    fn costs_are_limited() {
        let list: Vec<String> = (0..1000).map(|i| i.to_string()).collect();
        let rule = "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c != 'x')))";
        let told = ran(&schema(json!([{"rule": rule}])), json!({"list": list}), None);
        assert!(told[0].contains("call cost exceeds limit for rule"), "{told:?}");
    }
}

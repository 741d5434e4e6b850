//! Rules for jobs and cron jobs.
//!
//! Source: `pkg/apis/batch/validation/validation.go`.

use std::collections::BTreeSet;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::labels::Selector;
use apimachinery::{meta, names};
use serde_json::Value;

use super::core::immutable;
use super::{cron, label_selector, mistakes, non_negative, omitted, one_of, pod, required_one_of};
use crate::zero::Zero;

const CRON_JOB_NAME_MAX: usize = 52;
const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const INDEXES_MAX_BYTES: usize = 64 * 1024;
/// Most pods at once and most failed indexes of an indexed job.
const INDEXED_MAX: i64 = 100_000;
/// The same where there are more completions than that and a limit per index.
const HIGH_INDEXED_MAX: i64 = 10_000;
const MANAGED_BY_MAX: usize = 63;

/// A job, new or changed.
pub fn job(object: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    generated_selector(object, errors);
    job_spec(spec, &path, errors);
    let at = path.child("selector");
    let matches = if spec["selector"].is_null() {
        errors.push(Error::required(&at, ""));
        false
    } else {
        label_selector(errors, &at, &spec["selector"]);
        let selector = Selector::from_label_selector(Some(&spec["selector"]));
        selector.map_or(true, |s| s.matches(&meta::labels(&spec["template"])))
    };
    if !matches {
        let labels = spec["template"]["metadata"]["labels"].clone();
        errors.push(Error::invalid(
            &path.child("template").child("metadata").child("labels"),
            labels,
            "`selector` does not match template `labels`",
        ));
    }
}

/// A selector that nobody asked to write by hand must be the one that is made for the job.
fn generated_selector(object: &Value, errors: &mut ErrorList) {
    let spec = &object["spec"];
    if spec["manualSelector"].flag() || spec["selector"].is_null() {
        return;
    }
    let (uid, name) = (meta::uid(object), meta::name(object));
    let expected = [
        ("controller-uid", uid),
        ("batch.kubernetes.io/controller-uid", uid),
        ("job-name", name),
        ("batch.kubernetes.io/job-name", name),
    ];
    let made = expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let selector = Selector::from_label_selector(Some(&spec["selector"]));
    if selector.is_ok_and(|selector| !selector.matches(&made)) {
        let detail = "`selector` not auto-generated";
        let at = Path::new("spec").child("selector");
        errors.push(Error::invalid(&at, spec["selector"].clone(), detail));
    }
}

fn job_spec(spec: &Value, path: &Path, errors: &mut ErrorList) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        non_negative(errors, &path.child(key), &spec[key]);
    }
    let per_index = spec["backoffLimitPerIndex"].is_set();
    if spec["maxFailedIndexes"].is_set() && !per_index {
        let detail = "when maxFailedIndexes is specified";
        errors.push(Error::required(&path.child("backoffLimitPerIndex"), detail));
    }
    let mode = spec["completionMode"].text();
    if !mode.is_empty() {
        one_of(errors, &path.child("completionMode"), mode, &["Indexed", "NonIndexed"]);
    }
    if mode == "Indexed" {
        indexed(spec, path, errors);
    } else {
        let only = [("backoffLimitPerIndex", per_index), ("maxFailedIndexes", per_index)];
        for (key, _) in only.into_iter().filter(|(key, _)| spec[*key].is_set()) {
            let detail = "requires indexed completion mode";
            errors.push(Error::invalid(&path.child(key), spec[key].clone(), detail));
        }
    }
    if spec["podFailurePolicy"].is_set() {
        failure_policy(spec, &path.child("podFailurePolicy").child("rules"), errors);
    }
    if spec["successPolicy"].is_set() {
        let at = path.child("successPolicy");
        if mode == "Indexed" {
            success_policy(spec, &at.child("rules"), errors);
        } else {
            let detail = "requires indexed completion mode";
            errors.push(Error::invalid(&at, spec["successPolicy"].clone(), detail));
        }
    }
    let replacement = spec["podReplacementPolicy"].text();
    if !replacement.is_empty() {
        let known: &[&str] = if spec["podFailurePolicy"].is_set() {
            &["Failed"]
        } else {
            &["Failed", "TerminatingOrFailed"]
        };
        one_of(errors, &path.child("podReplacementPolicy"), replacement, known);
    }
    managed_by(&spec["managedBy"], &path.child("managedBy"), errors);
    template(spec, path, errors);
}

fn managed_by(value: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(text) = value.as_str() else { return };
    domain_path(text, path, errors);
    if text.len() > MANAGED_BY_MAX {
        errors.push(Error::too_long(path, MANAGED_BY_MAX));
    }
}

/// `example.com/name` (`IsDomainPrefixedPath`).
pub fn domain_path(text: &str, path: &Path, errors: &mut ErrorList) {
    if text.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let Some((domain, rest)) = text.split_once('/').filter(|(d, r)| !d.is_empty() && !r.is_empty())
    else {
        let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        errors.push(Error::invalid(path, text, detail));
        return;
    };
    mistakes(errors, path, domain, names::dns_subdomain(domain));
    let shaped = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@%/".contains(c);
    if !rest.chars().all(shaped) {
        let detail =
            "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errors.push(Error::invalid(path, rest, detail));
    }
}

fn template(spec: &Value, path: &Path, errors: &mut ErrorList) {
    const ANY: [&str; 3] = ["Always", "Never", "OnFailure"];
    pod::template(&spec["template"], &path.child("template"), &ANY, errors);
    let at = path.child("template").child("spec").child("restartPolicy");
    match spec["template"]["spec"]["restartPolicy"].text() {
        "" | "Always" => {
            errors.push(Error::required(&at, "valid values: \"OnFailure\", \"Never\""));
        }
        policy if policy != "Never" && spec["podFailurePolicy"].is_set() => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(Error::invalid(&at, policy, detail));
        }
        _ => {}
    }
}

fn indexed(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (parallelism, failed) = (spec["parallelism"].int(), spec["maxFailedIndexes"].int());
    let (completions, count) = (&spec["completions"], spec["completions"].int());
    if completions.is_null() {
        let detail = "when completion mode is Indexed";
        errors.push(Error::required(&path.child("completions"), detail));
    }
    if parallelism > INDEXED_MAX {
        let detail =
            format!("must be less than or equal to {INDEXED_MAX} when completion mode is Indexed");
        errors.push(Error::invalid(&path.child("parallelism"), parallelism, detail));
    }
    let at = path.child("maxFailedIndexes");
    if completions.is_set() && failed > count {
        let detail = "must be less than or equal to completions";
        errors.push(Error::invalid(&at, failed, detail));
    }
    if failed > INDEXED_MAX {
        let detail = format!("must be less than or equal to {INDEXED_MAX}");
        errors.push(Error::invalid(&at, failed, detail));
    }
    if count <= INDEXED_MAX || spec["backoffLimitPerIndex"].is_null() {
        return;
    }
    if spec["maxFailedIndexes"].is_null() {
        let detail = format!("must be specified when completions is above {INDEXED_MAX}");
        errors.push(Error::required(&at, &detail));
    }
    let detail = format!(
        "must be less than or equal to {HIGH_INDEXED_MAX} when completions are above {INDEXED_MAX} and used with backoff limit per index"
    );
    for (key, value) in [("parallelism", parallelism), ("maxFailedIndexes", failed)] {
        if value > HIGH_INDEXED_MAX {
            errors.push(Error::invalid(&path.child(key), value, detail.clone()));
        }
    }
}

fn failure_policy(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let rules = spec["podFailurePolicy"]["rules"].items();
    if rules.len() > RULES_MAX {
        errors.push(Error::too_many(path, rules.len(), RULES_MAX));
    }
    let pod = &spec["template"]["spec"];
    let containers = pod["containers"].items().iter().chain(pod["initContainers"].items());
    let names: BTreeSet<&str> = containers.map(|c| c["name"].text()).collect();
    for (index, rule) in rules.iter().enumerate() {
        let at = path.index(index);
        let action = rule["action"].text();
        if action.is_empty() {
            let detail = "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]";
            errors.push(Error::required(&at.child("action"), detail));
        } else if action == "FailIndex" {
            if spec["backoffLimitPerIndex"].is_null() {
                let detail = "requires the backoffLimitPerIndex to be set";
                errors.push(Error::invalid(&at.child("action"), action, detail));
            }
        } else {
            let known = ["Count", "FailIndex", "FailJob", "Ignore"];
            one_of(errors, &at.child("action"), action, &known);
        }
        let (codes, conditions) = (&rule["onExitCodes"], rule["onPodConditions"].items());
        if codes.is_set() {
            exit_codes(codes, &names, &at.child("onExitCodes"), errors);
        }
        pod_conditions(conditions, &at.child("onPodConditions"), errors);
        let detail = match (codes.is_set(), conditions.is_empty()) {
            (true, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, true) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        errors.push(omitted(&at, detail));
    }
}

fn pod_conditions(conditions: &[Value], path: &Path, errors: &mut ErrorList) {
    if conditions.len() > RULES_MAX {
        errors.push(Error::too_many(path, conditions.len(), RULES_MAX));
    }
    for (index, condition) in conditions.iter().enumerate() {
        let (at, kind) = (path.index(index), condition["type"].text());
        mistakes(errors, &at.child("type"), kind, names::qualified_name(kind));
        match condition["status"].text() {
            "" => {
                let detail = "valid values: [\"False\" \"True\" \"Unknown\"]";
                errors.push(Error::required(&at.child("status"), detail));
            }
            status => one_of(errors, &at.child("status"), status, &["False", "True", "Unknown"]),
        }
    }
}

fn exit_codes(codes: &Value, names: &BTreeSet<&str>, path: &Path, errors: &mut ErrorList) {
    let operator = codes["operator"].text();
    if operator.is_empty() {
        let detail = "valid values: [\"In\" \"NotIn\"]";
        errors.push(Error::required(&path.child("operator"), detail));
    } else {
        one_of(errors, &path.child("operator"), operator, &["In", "NotIn"]);
    }
    if let Some(name) = codes["containerName"].as_str().filter(|name| !names.contains(name)) {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.push(Error::invalid(&path.child("containerName"), name, detail));
    }
    let (values, at) = (codes["values"].items(), path.child("values"));
    if values.is_empty() {
        let detail = "at least one value is required";
        errors.push(Error::invalid(&at, codes["values"].clone(), detail));
    } else if values.len() > EXIT_CODES_MAX {
        errors.push(Error::too_many(&at, values.len(), EXIT_CODES_MAX));
    }
    let mut seen = BTreeSet::new();
    for (index, value) in values.iter().map(Zero::int).enumerate() {
        if operator == "In" && value == 0 {
            let detail = "must not be 0 for the In operator";
            errors.push(Error::invalid(&at.index(index), value, detail));
        }
        if !seen.insert(value) {
            errors.push(Error::duplicate(&at.index(index), value));
        }
    }
    if !values.is_sorted_by_key(Zero::int) {
        errors.push(Error::invalid(&at, codes["values"].clone(), "must be ordered"));
    }
}

fn success_policy(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let rules = spec["successPolicy"]["rules"].items();
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errors.push(Error::required(path, detail));
    }
    if rules.len() > RULES_MAX {
        errors.push(Error::too_many(path, rules.len(), RULES_MAX));
    }
    let completions = spec["completions"].int();
    for (index, rule) in rules.iter().enumerate() {
        let at = path.index(index);
        let (count, indexes) = (&rule["succeededCount"], &rule["succeededIndexes"]);
        if count.is_null() && indexes.is_null() {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            errors.push(Error::required(&at, detail));
        }
        let mut total = 0;
        if let Some(text) = indexes.as_str() {
            let at = at.child("succeededIndexes");
            if text.len() > INDEXES_MAX_BYTES {
                errors.push(Error::too_long(&at, INDEXES_MAX_BYTES));
            }
            match count_indexes(text, completions) {
                Ok(count) => total = count,
                Err(why) => {
                    let detail = format!("error parsing succeededIndexes: {why}");
                    errors.push(Error::invalid(&at, text, detail));
                }
            }
        }
        let (at, number) = (at.child("succeededCount"), count.int());
        non_negative(errors, &at, count);
        if count.is_set() && number > completions {
            let detail = format!(
                "must be less than or equal to {completions} (the number of specified completions)"
            );
            errors.push(Error::invalid(&at, number, detail));
        }
        if count.is_set() && indexes.is_set() && number > total {
            let detail = format!(
                "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
            );
            errors.push(Error::invalid(&at, number, detail));
        }
    }
}

/// How many indexes `1,3-5` names; they must rise and stay below `completions`.
pub fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut last, mut total) = (None, 0);
    if text.is_empty() {
        return Ok(0);
    }
    for part in text.split(',') {
        let (first, end) = index_interval(part, completions)?;
        if let Some(last) = last.filter(|last| *last >= first) {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

fn index_interval(part: &str, completions: i64) -> Result<(i64, i64), String> {
    let ends: Vec<&str> = part.split('-').collect();
    if ends.len() > 2 {
        return Err(format!(
            "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        ));
    }
    let read = |text: &str| -> Result<i64, String> {
        let number = text
            .parse()
            .map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        if number >= completions {
            return Err(format!("too large index: {text:?}"));
        }
        Ok(number)
    };
    let first = read(ends[0])?;
    let Some(end) = ends.get(1) else { return Ok((first, first)) };
    let end = read(end)?;
    if first >= end {
        return Err(format!("non-increasing order, previous: {first}, current: {end}"));
    }
    Ok((first, end))
}

/// What may change of a job.
pub fn job_update(object: &Value, old: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let (new, before) = (&object["spec"], &old["spec"]);
    let at = path.child("completions");
    if new["completionMode"] != "Indexed" {
        immutable(&at, &new["completions"], &before["completions"], errors);
    } else if new["completions"] != before["completions"]
        && new["completions"].is_set()
        && new["completions"] != new["parallelism"]
    {
        let detail = "can only be modified in tandem with spec.parallelism";
        errors.push(Error::invalid(&at, new["completions"].clone(), detail));
    }
    immutable(&path.child("selector"), &new["selector"], &before["selector"], errors);
    let suspended = before["suspend"].flag();
    let template = if suspended && old["status"]["startTime"].is_null() {
        scheduled_alike(&new["template"], &before["template"])
    } else {
        before["template"].clone()
    };
    immutable(&path.child("template"), &new["template"], &template, errors);
    for key in
        ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        immutable(&path.child(key), &new[key], &before[key], errors);
    }
}

/// The old template with what steers scheduling and sizes as in the new one: that may change while the
/// job waits.
fn scheduled_alike(new: &Value, old: &Value) -> Value {
    let mut alike = old.clone();
    let mut take = |path: &str, key: &str| {
        let wanted = new.pointer(path).and_then(|at| at.get(key)).cloned();
        let Some(map) = alike.pointer_mut(path).and_then(Value::as_object_mut) else { return };
        match wanted {
            Some(value) => drop(map.insert(key.to_owned(), value)),
            None => drop(map.remove(key)),
        }
    };
    for key in ["nodeSelector", "tolerations", "schedulingGates"] {
        take("/spec", key);
    }
    for key in ["annotations", "labels"] {
        take("/metadata", key);
    }
    match (new.pointer("/spec/affinity").is_some(), old.pointer("/spec/affinity").is_some()) {
        (true, true) => take("/spec/affinity", "nodeAffinity"),
        (true, false) => take("/spec", "affinity"),
        (false, true) => {
            let affinity = &old["spec"]["affinity"];
            if affinity.entries().all(|(key, _)| key == "nodeAffinity") {
                take("/spec", "affinity");
            }
        }
        (false, false) => {}
    }
    for list in ["containers", "initContainers"] {
        let count = new["spec"][list].items().len();
        if count == old["spec"][list].items().len() {
            for index in 0..count {
                take(&format!("/spec/{list}/{index}"), "resources");
            }
        }
    }
    alike
}

/// A cron job, new (`old` is absent) or changed.
pub fn cron_job(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    let (schedule, at) = (spec["schedule"].text(), path.child("schedule"));
    if schedule.is_empty() {
        errors.push(Error::required(&at, ""));
    } else {
        if let Some(mistake) = cron::mistake(schedule) {
            errors.push(Error::invalid(&at, schedule, mistake));
        }
        let allowed = old.is_some_and(|old| old["spec"]["schedule"].text().contains("TZ"));
        if schedule.contains("TZ") {
            let detail = match (allowed, spec["timeZone"].is_set()) {
                (true, true) => {
                    Some("cannot use both timeZone field and TZ or CRON_TZ in schedule")
                }
                (false, _) => {
                    Some("cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
                }
                (true, false) => None,
            };
            errors.extend(detail.map(|detail| Error::invalid(&at, schedule, detail)));
        }
    }
    if old.is_none_or(|old| old["spec"]["timeZone"] != spec["timeZone"]) {
        time_zone(&spec["timeZone"], &path.child("timeZone"), errors);
    }
    let policy = spec["concurrencyPolicy"].text();
    let known = ["Allow", "Forbid", "Replace"];
    required_one_of(errors, &path.child("concurrencyPolicy"), policy, &known);
    let (job, at) = (&spec["jobTemplate"]["spec"], path.child("jobTemplate").child("spec"));
    job_spec(job, &at, errors);
    if job["selector"].is_set() {
        let detail = "`selector` will be auto-generated";
        errors.push(Error::invalid(&at.child("selector"), job["selector"].clone(), detail));
    }
    if job["manualSelector"].flag() {
        let at = at.child("manualSelector");
        errors.push(Error::not_supported(&at, true, &["nil", "false"]));
    }
    for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        non_negative(errors, &path.child(key), &spec[key]);
    }
    // A job's name is the cron job's with eleven characters more.
    let name = meta::name(object);
    if old.is_none() && name.len() > CRON_JOB_NAME_MAX {
        let detail = format!("must be no more than {CRON_JOB_NAME_MAX} characters");
        errors.push(Error::invalid(&Path::new("metadata").child("name"), name, detail));
    }
}

fn time_zone(zone: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(zone) = zone.as_str() else { return };
    if zone.is_empty() {
        let detail = "timeZone must be nil or non-empty string";
        errors.push(Error::invalid(path, zone, detail));
        return;
    }
    let shaped = |part: &str| {
        (1..=14).contains(&part.len())
            && !matches!(part, "." | "..")
            && !part.starts_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_+".contains(&b))
    };
    if zone.eq_ignore_ascii_case("Local") {
        let detail =
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.push(Error::invalid(path, zone, detail));
    } else if !zone.split('/').all(shaped) || jiff::tz::TimeZone::get(zone).is_err() {
        errors.push(Error::invalid(path, zone, format!("unknown time zone {zone}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;
    use serde_json::json;

    fn made(extra: Value) -> Value {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {
            "parallelism": 1, "completions": 4, "completionMode": "Indexed",
            "template": {"metadata": {}, "spec": {"restartPolicy": "Never",
                "containers": [{"name": "c", "image": "i"}]}}}});
        for (key, value) in extra.as_object().unwrap() {
            job["spec"][key] = value.clone();
        }
        let registry = crate::registry::Registry::default();
        let resource = registry.resource("batch", "jobs").unwrap();
        crate::defaults::set_defaults(&resource, &mut job);
        let ctx = crate::attributes::RequestContext::internal("create", &resource, "default", "j");
        crate::strategy::prepare_for_create(&ctx, &mut job);
        job
    }

    /// Upstream's words for each job.
    #[test]
    fn jobs_are_checked() {
        let rule = |rule: Value| json!({"podFailurePolicy": {"rules": [rule]}});
        let rules = "spec.podFailurePolicy.rules[0]";
        for (extra, want) in [
            (json!({}), String::new()),
            (json!({"completions": null}), "spec.completions: Required value: when completion mode is Indexed".into()),
            (json!({"maxFailedIndexes": 1}), "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified".into()),
            (json!({"completionMode": "NonIndexed", "backoffLimitPerIndex": 1}), "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode".into()),
            (json!({"podReplacementPolicy": "Never"}), "spec.podReplacementPolicy: Unsupported value: \"Never\": supported values: \"Failed\", \"TerminatingOrFailed\"".into()),
            (rule(json!({"action": "Ignore"})), format!("{rules}: Invalid value: specifying one of OnExitCodes and OnPodConditions is required")),
            (rule(json!({"action": "FailIndex", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]})), format!("{rules}.action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set")),
            (rule(json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3, 1]}})), format!("{rules}.onExitCodes.values: Invalid value: [3,1]: must be ordered")),
            (rule(json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1], "containerName": "x"}})), format!("{rules}.onExitCodes.containerName: Invalid value: \"x\": must be one of the container or initContainer names in the pod template")),
            (json!({"successPolicy": {"rules": [{"succeededIndexes": "0-1", "succeededCount": 3}]}}), "spec.successPolicy.rules[0].succeededCount: Invalid value: 3: must be less than or equal to 2 (the number of indexes in the specified succeededIndexes field)".into()),
            (json!({"successPolicy": {"rules": [{"succeededIndexes": "2-9"}]}}), "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"2-9\": error parsing succeededIndexes: too large index: \"9\"".into()),
            (json!({"managedBy": "me"}), "spec.managedBy: Invalid value: \"me\": must be a domain-prefixed path (such as \"acme.io/foo\")".into()),
            (json!({"template": {"metadata": {}, "spec": {"restartPolicy": "Always", "containers": [{"name": "c", "image": "i"}]}}}), "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"".into()),
        ] {
            assert_eq!(told(|e| job(&made(extra.clone()), e)).join("; "), want, "{extra}");
        }
    }

    #[test]
    fn little_of_a_job_may_change() {
        let old = made(json!({}));
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new["spec"]);
            told(|e| job_update(&new, &old, e))
        };
        let none = Vec::<String>::new();
        assert_eq!(changed(&|s| s["backoffLimit"] = 2.into()), none);
        assert_eq!(changed(&|s| (s["completions"], s["parallelism"]) = (2.into(), 2.into())), none);
        assert_eq!(
            changed(&|s| s["completions"] = 2.into()),
            [
                "spec.completions: Invalid value: 2: can only be modified in tandem with spec.parallelism"
            ]
        );
        let node = |s: &mut Value| s["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
        assert!(changed(&node)[0].ends_with("field is immutable"));
        let mut old = old.clone();
        old["spec"]["suspend"] = true.into();
        let mut new = old.clone();
        node(&mut new["spec"]);
        assert_eq!(told(|e| job_update(&new, &old, e)), none);
        new["spec"]["template"]["spec"]["containers"][0]["image"] = "x".into();
        assert_eq!(told(|e| job_update(&new, &old, e)).len(), 1);
    }

    #[test]
    fn cron_jobs_are_checked() {
        let cron = |extra: Value| {
            let mut spec = json!({"schedule": "* * * * *", "concurrencyPolicy": "Allow",
                "jobTemplate": {"spec": made(json!({}))["spec"]}});
            spec["jobTemplate"]["spec"]["selector"] = Value::Null;
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            json!({"metadata": {"name": "c"}, "spec": spec})
        };
        for (extra, want) in [
            (json!({}), ""),
            (json!({"timeZone": "Europe/Berlin"}), ""),
            (
                json!({"timeZone": "Nowhere"}),
                "spec.timeZone: Invalid value: \"Nowhere\": unknown time zone Nowhere",
            ),
            (
                json!({"timeZone": "local"}),
                "spec.timeZone: Invalid value: \"local\": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            ),
            (
                json!({"schedule": "TZ=UTC * * * * *"}),
                "spec.schedule: Invalid value: \"TZ=UTC * * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ),
            (
                json!({"schedule": "61 * * * *"}),
                "spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61",
            ),
        ] {
            assert_eq!(
                told(|e| cron_job(&cron(extra.clone()), None, e)).join("; "),
                want,
                "{extra}"
            );
        }
    }
}

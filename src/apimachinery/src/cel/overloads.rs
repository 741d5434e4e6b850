//! What functions and methods take, and what they make of it.
//!
//! Source: cel-go's standard library and extensions, and `k8s.io/apiserver/pkg/cel/library`.

use super::check::Type;

/// Functions by their whole names, with arguments and result. `A` and `B` are any type, the same wherever they
/// stand in one line.
const FUNCTIONS: &[(&str, &str)] = &[
    ("size", "string int"),
    ("size", "bytes int"),
    ("size", "list(A) int"),
    ("size", "map(A,B) int"),
    ("int", "int int"),
    ("int", "uint int"),
    ("int", "double int"),
    ("int", "string int"),
    ("int", "timestamp int"),
    ("int", "duration int"),
    ("uint", "uint uint"),
    ("uint", "int uint"),
    ("uint", "double uint"),
    ("uint", "string uint"),
    ("double", "double double"),
    ("double", "int double"),
    ("double", "uint double"),
    ("double", "string double"),
    ("bool", "bool bool"),
    ("bool", "string bool"),
    ("string", "string string"),
    ("string", "bool string"),
    ("string", "bytes string"),
    ("string", "int string"),
    ("string", "uint string"),
    ("string", "double string"),
    ("string", "timestamp string"),
    ("string", "duration string"),
    ("string", "net.IP string"),
    ("string", "net.CIDR string"),
    ("bytes", "bytes bytes"),
    ("bytes", "string bytes"),
    ("timestamp", "timestamp timestamp"),
    ("timestamp", "int timestamp"),
    ("timestamp", "string timestamp"),
    ("duration", "duration duration"),
    ("duration", "int duration"),
    ("duration", "string duration"),
    ("dyn", "A dyn"),
    ("matches", "string,string bool"),
    ("quantity", "string kubernetes.Quantity"),
    ("isQuantity", "string bool"),
    ("sign", "kubernetes.Quantity int"),
    ("ip", "string net.IP"),
    ("isIP", "string bool"),
    ("ip.isCanonical", "string bool"),
    ("cidr", "string net.CIDR"),
    ("isCIDR", "string bool"),
    ("url", "string kubernetes.URL"),
    ("isURL", "string bool"),
    ("semver", "string kubernetes.Semver"),
    ("semver", "string,bool kubernetes.Semver"),
    ("isSemver", "string bool"),
    ("isSemver", "string,bool bool"),
    ("strings.quote", "string string"),
    ("sets.contains", "list(A),list(A) bool"),
    ("sets.equivalent", "list(A),list(A) bool"),
    ("sets.intersects", "list(A),list(A) bool"),
    ("lists.range", "int list(int)"),
    ("optional.of", "A optional_type(A)"),
    ("optional.ofNonZeroValue", "A optional_type(A)"),
    ("format.named", "string optional_type(kubernetes.NamedFormat)"),
    ("jsonpatch.escapeKey", "string string"),
];

/// Methods, with their receivers first.
const METHODS: &[(&str, &str)] = &[
    ("size", "string int"),
    ("size", "bytes int"),
    ("size", "list(A) int"),
    ("size", "map(A,B) int"),
    ("contains", "string,string bool"),
    ("startsWith", "string,string bool"),
    ("endsWith", "string,string bool"),
    ("matches", "string,string bool"),
    ("find", "string,string string"),
    ("findAll", "string,string list(string)"),
    ("findAll", "string,string,int list(string)"),
    ("charAt", "string,int string"),
    ("indexOf", "string,string int"),
    ("indexOf", "string,string,int int"),
    ("indexOf", "list(A),A int"),
    ("lastIndexOf", "string,string int"),
    ("lastIndexOf", "string,string,int int"),
    ("lastIndexOf", "list(A),A int"),
    ("lowerAscii", "string string"),
    ("upperAscii", "string string"),
    ("replace", "string,string,string string"),
    ("replace", "string,string,string,int string"),
    ("split", "string,string list(string)"),
    ("split", "string,string,int list(string)"),
    ("substring", "string,int string"),
    ("substring", "string,int,int string"),
    ("trim", "string string"),
    ("reverse", "list(A) list(A)"),
    ("format", "string,list(dyn) string"),
    ("join", "list(string) string"),
    ("join", "list(string),string string"),
    ("isSorted", "list(COMPARABLE) bool"),
    ("min", "list(COMPARABLE) COMPARABLE"),
    ("max", "list(COMPARABLE) COMPARABLE"),
    ("sum", "list(SUMMABLE) SUMMABLE"),
    ("slice", "list(A),int,int list(A)"),
    ("flatten", "list(list(A)) list(A)"),
    ("flatten", "list(dyn),int list(dyn)"),
    ("sort", "list(COMPARABLE) list(COMPARABLE)"),
    ("distinct", "list(A) list(A)"),
    ("first", "list(A) optional_type(A)"),
    ("last", "list(A) optional_type(A)"),
    ("hasValue", "optional_type(A) bool"),
    ("value", "optional_type(A) A"),
    ("or", "optional_type(A),optional_type(A) optional_type(A)"),
    ("orValue", "optional_type(A),A A"),
    ("family", "net.IP int"),
    ("isUnspecified", "net.IP bool"),
    ("isLoopback", "net.IP bool"),
    ("isLinkLocalMulticast", "net.IP bool"),
    ("isLinkLocalUnicast", "net.IP bool"),
    ("isGlobalUnicast", "net.IP bool"),
    ("containsIP", "net.CIDR,net.IP bool"),
    ("containsIP", "net.CIDR,string bool"),
    ("containsCIDR", "net.CIDR,net.CIDR bool"),
    ("containsCIDR", "net.CIDR,string bool"),
    ("ip", "net.CIDR net.IP"),
    ("prefixLength", "net.CIDR int"),
    ("masked", "net.CIDR net.CIDR"),
    ("getScheme", "kubernetes.URL string"),
    ("getHost", "kubernetes.URL string"),
    ("getHostname", "kubernetes.URL string"),
    ("getPort", "kubernetes.URL string"),
    ("getEscapedPath", "kubernetes.URL string"),
    ("getQuery", "kubernetes.URL map(string,list(string))"),
    ("isInteger", "kubernetes.Quantity bool"),
    ("asInteger", "kubernetes.Quantity int"),
    ("asApproximateFloat", "kubernetes.Quantity double"),
    ("add", "kubernetes.Quantity,kubernetes.Quantity kubernetes.Quantity"),
    ("add", "kubernetes.Quantity,int kubernetes.Quantity"),
    ("sub", "kubernetes.Quantity,kubernetes.Quantity kubernetes.Quantity"),
    ("sub", "kubernetes.Quantity,int kubernetes.Quantity"),
    ("isLessThan", "kubernetes.Quantity,kubernetes.Quantity bool"),
    ("isLessThan", "kubernetes.Semver,kubernetes.Semver bool"),
    ("isGreaterThan", "kubernetes.Quantity,kubernetes.Quantity bool"),
    ("isGreaterThan", "kubernetes.Semver,kubernetes.Semver bool"),
    ("compareTo", "kubernetes.Quantity,kubernetes.Quantity int"),
    ("compareTo", "kubernetes.Semver,kubernetes.Semver int"),
    ("major", "kubernetes.Semver int"),
    ("minor", "kubernetes.Semver int"),
    ("patch", "kubernetes.Semver int"),
    ("validate", "kubernetes.NamedFormat,string optional_type(list(string))"),
    // A device's attribute, whose type only its value tells.
    ("includes", "dyn,A bool"),
    // The authorizer, whose values have no types here.
    ("path", "dyn,string dyn"),
    ("group", "dyn,string dyn"),
    ("serviceAccount", "dyn,string,string dyn"),
    ("resource", "dyn,string dyn"),
    ("subresource", "dyn,string dyn"),
    ("namespace", "dyn,string dyn"),
    ("name", "dyn,string dyn"),
    ("fieldSelector", "dyn,string dyn"),
    ("labelSelector", "dyn,string dyn"),
    ("check", "dyn,string dyn"),
    ("allowed", "dyn bool"),
    ("errored", "dyn bool"),
    ("error", "dyn string"),
    ("reason", "dyn string"),
];

/// Getters of times, which take a time zone, and of durations.
const OF_TIMES: [&str; 10] = [
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
];
const OF_DURATIONS: [&str; 4] = ["getHours", "getMinutes", "getSeconds", "getMilliseconds"];

/// What lists can be sorted of, and what can be added up.
const COMPARABLE: [&str; 8] =
    ["int", "uint", "double", "bool", "string", "bytes", "timestamp", "duration"];
const SUMMABLE: [&str; 4] = ["int", "uint", "double", "duration"];

/// What is known of a call.
pub(super) enum Found<'s> {
    /// Its result.
    Result(Type<'s>),
    /// There is a function of this name, and it does not take these arguments.
    Mismatch,
    /// There is none.
    Unknown,
}

/// A function called by its whole name.
pub(super) fn function<'s>(name: &str, args: &[Type<'s>]) -> Found<'s> {
    if let ("type", [of]) = (name, args) {
        return Found::Result(Type::Kind(Box::new(of.clone())));
    }
    best(FUNCTIONS.iter().filter(|(known, _)| *known == name).map(|(_, line)| *line), args)
}

/// A method of the first of `args`.
pub(super) fn method<'s>(name: &str, args: &[Type<'s>]) -> Found<'s> {
    let mut lines: Vec<&str> =
        METHODS.iter().filter(|(known, _)| *known == name).map(|(_, line)| *line).collect();
    if OF_TIMES.contains(&name) {
        lines.extend(["timestamp int", "timestamp,string int"]);
    }
    if OF_DURATIONS.contains(&name) {
        lines.push("duration int");
    }
    best(lines.into_iter(), args)
}

/// The result of the lines that fit; unknown where several differ.
fn best<'s>(lines: impl Iterator<Item = &'static str>, args: &[Type<'s>]) -> Found<'s> {
    let mut known = false;
    let mut result: Option<Type<'s>> = None;
    for line in lines {
        known = true;
        let Some(made) = apply(line, args) else { continue };
        result = Some(match result {
            Some(before) if before.shown() != made.shown() => Type::Dyn,
            _ => made,
        });
    }
    match result {
        Some(result) => Found::Result(result),
        None if known => Found::Mismatch,
        None => Found::Unknown,
    }
}

/// The result of one line, if `args` fit.
fn apply<'s>(line: &'static str, args: &[Type<'s>]) -> Option<Type<'s>> {
    let (takes, makes) = line.split_once(' ')?;
    let takes = parts(takes);
    if takes.len() != args.len() {
        return None;
    }
    let mut bound = Vec::new();
    takes.iter().zip(args).all(|(pattern, arg)| fits(pattern, arg, &mut bound)).then_some(())?;
    Some(filled(makes, &bound))
}

/// The parts between commas that are not within parentheses.
fn parts(text: &'static str) -> Vec<&'static str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

/// What is within the parentheses of `name(…)`.
fn within(pattern: &'static str, name: &str) -> Option<Vec<&'static str>> {
    pattern.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')').map(parts)
}

fn fits<'s>(
    pattern: &'static str,
    arg: &Type<'s>,
    bound: &mut Vec<(&'static str, Type<'s>)>,
) -> bool {
    if pattern == "dyn" {
        return true;
    }
    let arg = arg.resolved();
    if matches!(pattern, "A" | "B" | "COMPARABLE" | "SUMMABLE") {
        let plain = arg.shown();
        let allowed = match pattern {
            "COMPARABLE" => COMPARABLE.contains(&plain.as_str()),
            "SUMMABLE" => SUMMABLE.contains(&plain.as_str()),
            _ => true,
        };
        if !allowed && !matches!(arg, Type::Dyn) {
            return false;
        }
        if let Some((_, known)) = bound.iter_mut().find(|(name, _)| *name == pattern) {
            let same = known.takes(&arg) || arg.takes(known);
            if matches!(known, Type::Dyn) {
                *known = arg;
            }
            return same;
        }
        bound.push((pattern, arg));
        return true;
    }
    match &arg {
        Type::Dyn => return true,
        Type::List(item) => {
            return within(pattern, "list").is_some_and(|inner| fits(inner[0], item, bound));
        }
        Type::Map(key, value) => {
            return within(pattern, "map").is_some_and(|inner| {
                inner.len() == 2 && fits(inner[0], key, bound) && fits(inner[1], value, bound)
            });
        }
        Type::Optional(inner) => {
            return within(pattern, "optional_type")
                .is_some_and(|pattern| fits(pattern[0], inner, bound));
        }
        _ => {}
    }
    pattern == arg.shown()
}

fn filled<'s>(pattern: &'static str, bound: &[(&'static str, Type<'s>)]) -> Type<'s> {
    if let Some((_, known)) = bound.iter().find(|(name, _)| *name == pattern) {
        return known.clone();
    }
    let one = |inner: &[&'static str]| Box::new(filled(inner[0], bound));
    if let Some(inner) = within(pattern, "list") {
        return Type::List(one(&inner));
    }
    if let Some(inner) = within(pattern, "optional_type") {
        return Type::Optional(one(&inner));
    }
    if let Some(inner) = within(pattern, "map") {
        return Type::Map(one(&inner), Box::new(filled(inner[1], bound)));
    }
    match pattern {
        "dyn" | "A" | "B" | "COMPARABLE" | "SUMMABLE" => Type::Dyn,
        name => Type::Plain(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_follow_from_arguments() {
        let list = |of: Type<'static>| Type::List(Box::new(of));
        let shown = |found: Found<'_>| match found {
            Found::Result(result) => result.shown(),
            Found::Mismatch => "mismatch".into(),
            Found::Unknown => "unknown".into(),
        };
        let (text, int) = (Type::Plain("string"), Type::Plain("int"));
        for (name, args, want) in [
            ("contains", vec![text.clone(), text.clone()], "bool"),
            ("contains", vec![text.clone(), int.clone()], "mismatch"),
            ("bogus", vec![text.clone()], "unknown"),
            ("split", vec![text.clone(), text.clone()], "list(string)"),
            ("indexOf", vec![list(int.clone()), int.clone()], "int"),
            ("indexOf", vec![list(int.clone()), text.clone()], "mismatch"),
            ("sum", vec![list(int.clone())], "int"),
            ("sum", vec![list(text.clone())], "mismatch"),
            ("flatten", vec![list(list(int.clone()))], "list(int)"),
            ("flatten", vec![list(text.clone())], "mismatch"),
            ("orValue", vec![Type::Optional(Box::new(text.clone())), int.clone()], "mismatch"),
            ("size", vec![Type::Dyn], "int"),
            ("reverse", vec![Type::Dyn], "list(dyn)"),
            ("getHours", vec![Type::Plain("duration")], "int"),
            ("getFullYear", vec![Type::Plain("duration")], "mismatch"),
        ] {
            assert_eq!(shown(method(name, &args)), want, "{name}");
        }
        assert_eq!(shown(function("type", &[text])), "type(string)");
        assert_eq!(shown(function("sets.contains", &[list(int.clone()), list(int)])), "bool");
    }
}

use serde_json::json;

use super::*;

fn eval(text: &str) -> Result<String, String> {
    let object = json!({"a": 1, "b": {"c": ["x", "y"]}, "n": null, "f": 1.5, "k-v": "dash"});
    let variables = [("object", Value::of(&object, None))];
    let names = vec![("object".to_owned(), Type::Dyn)];
    let program = Program::compile(text, names, None)?;
    let mut budget = TOTAL_LIMIT;
    program.run(&Named(&variables), &mut budget).map(|value| value.to_text())
}

#[test]
fn expressions_have_values() {
    let cases = [
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3 % 4", "1"),
        ("-7 / 2", "-3"),
        ("1 < 2 && 2.0 >= 2", "true"),
        ("1u + 2u == 3u", "true"),
        ("'a' + \"b\"", "ab"),
        (r"'\n\x41\u0042\101'", "\nABA"),
        (r"r'\d'", r"\d"),
        ("true ? 1 : 2", "1"),
        ("object.b.c[1]", "y"),
        ("object['k-v']", "dash"),
        ("has(object.b.c) && !has(object.z)", "true"),
        ("object.n == null", "true"),
        ("object.b.c.map(x, x + '!')", "[x!, y!]"),
        ("[1, 2, 3].filter(x, x > 1)", "[2, 3]"),
        ("[1, 2, 3].map(x, x > 1, x * 2)", "[4, 6]"),
        ("[1, 2, 3].exists(x, x == 2)", "true"),
        ("[1, 2, 2].exists_one(x, x == 2)", "false"),
        ("{'a': 1, 'b': 2}.all(k, k < 'c')", "true"),
        ("[5, 6].all(i, v, v - i == 5)", "true"),
        ("['a', 'b'].transformList(i, v, v + string(i))", "[a0, b1]"),
        ("{'a': 1}.transformMap(k, v, v + 1)", "{a: 2}"),
        ("{'a': 1}.transformMapEntry(k, v, {v: k})", "{1: a}"),
        ("2 in [1, 2]", "true"),
        ("'a' in {'a': 1}", "true"),
        ("object.?z.orValue('none')", "none"),
        ("object.?b.?c[?0].hasValue()", "true"),
        ("object.?a.optMap(x, x + 1).value()", "2"),
        ("[1, ?optional.none(), ?optional.of(2)].size()", "2"),
        ("optional.ofNonZeroValue('').hasValue()", "false"),
        ("size('äö')", "2"),
        ("'hello'.matches('^h.*o$')", "true"),
        ("'a,b,c'.split(',').join('-')", "a-b-c"),
        ("'tacocat'.substring(4)", "cat"),
        ("'Hello'.lowerAscii() + 'x'.upperAscii()", "helloX"),
        ("' x '.trim().size()", "1"),
        ("'hello'.indexOf('l') + 'hello'.lastIndexOf('l')", "5"),
        ("'abc'.replace('b', 'x').charAt(1)", "x"),
        ("'%s is %d, %.2f, %x'.format(['a', 1, 1.5, 255])", "a is 1, 1.50, ff"),
        ("'abc 123'.find('[0-9]+')", "123"),
        ("'1 2 3'.findAll('[0-9]', 2)", "[1, 2]"),
        ("[3, 1, 2].sum() + [3, 1, 2].max() - [3, 1].min()", "8"),
        ("[1, 2, 2].isSorted() && ![2, 1].isSorted()", "true"),
        ("[1, 2, 1].distinct().size()", "2"),
        ("[3, 1, 2].sort()", "[1, 2, 3]"),
        ("[[1], [2, 3]].flatten()", "[1, 2, 3]"),
        ("sets.contains([1, 2, 3], [1]) && sets.intersects([1], [1, 2])", "true"),
        ("sign(quantity('-1'))", "-1"),
        ("jsonpatch.escapeKey('a/b~c')", "a~1b~0c"),
        ("int('7') + int(2.9) + int(true ? 1 : 0)", "10"),
        ("string(1) + string(true) + string(1.5)", "1true1.5"),
        ("type(1) == int && type('') == string", "true"),
        ("duration('1h30m').getMinutes()", "90"),
        ("timestamp('2026-01-02T03:04:05Z').getFullYear()", "2026"),
        (
            "timestamp('2026-01-02T03:04:05Z') + duration('1s') > timestamp('2026-01-02T03:04:05Z')",
            "true",
        ),
        ("quantity('1Gi').isGreaterThan(quantity('500M'))", "true"),
        ("quantity('50k').add(quantity('50k')) == quantity('100k')", "true"),
        ("isQuantity('1.3Gigabytes')", "false"),
        ("quantity('50k').asInteger()", "50000"),
        ("ip('10.0.0.1').family()", "4"),
        ("isIP('::1') && ip('::1').isLoopback()", "true"),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3')", "true"),
        ("cidr('10.0.0.0/8').containsCIDR(cidr('10.1.0.0/16'))", "true"),
        ("cidr('10.1.2.3/8').masked().ip() == ip('10.0.0.0')", "true"),
        ("url('https://example.com:80/a?x=1').getHostname()", "example.com"),
        ("url('https://example.com:80/a?x=1').getQuery()['x'][0]", "1"),
        ("isURL('../relative')", "false"),
        ("format.dns1123Label().validate('a-b').hasValue()", "false"),
        ("format.named('dns1123Label').value().validate('A').hasValue()", "true"),
        ("semver('1.2.3').isLessThan(semver('1.10.0'))", "true"),
        ("semver('1.2.3-alpha').compareTo(semver('1.2.3'))", "-1"),
        ("false && (1 / 0 == 1)", "false"),
        ("(1 / 0 == 1) || true", "true"),
        ("cel.bind(x, 2, x * x)", "4"),
        ("'abc'.indexOf('a', 9) + 'abc'.lastIndexOf('a', 9)", "-2"),
        ("has(dyn('a').b) || has(dyn(null).b)", "false"),
        ("[{'n': 2}, {'n': 1}].sortBy(x, x.n)[0].n", "1"),
        ("// a comment\n1", "1"),
    ];
    for (text, want) in cases {
        assert_eq!(eval(text).as_deref(), Ok(want), "{text}");
    }
}

#[test]
fn errors_are_upstreams() {
    let cases = [
        ("1 / 0", "division by zero"),
        ("[1][3]", "index out of bounds: 3"),
        ("object.z", "no such key: z"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("dyn(1) + 'a'", "no such overload"),
        ("optional.none().value()", "optional.none() dereference"),
        ("dyn('a').b", "no such key: b"),
        ("dyn(null).b", "no such key: b"),
        ("dyn([1]).b", "unsupported index type 'string' in list"),
        ("dyn([1])['a']", "unsupported index type 'string' in list"),
        ("dyn('a').all(x, x)", "got 'types.String', expected iterable type"),
        ("timestamp(dyn('b'))", "invalid RFC 3339 timestamp \"b\""),
        ("duration(dyn('b'))", "type conversion error from 'string' to 'google.protobuf.Duration'"),
        ("int('b')", "type conversion error from 'string' to 'int'"),
        ("double('b')", "type conversion error from 'string' to 'double'"),
        ("bool('b')", "type conversion error from 'string' to 'bool'"),
        ("string(dyn([1]))", "no such overload: string(list)"),
        ("dyn(['a', 'b']).sum()", "no such overload: sum(list)"),
        (
            "[1, 2].slice(2, 1)",
            "cannot slice(2, 1), start index must be less than or equal to end index",
        ),
        ("[[1]].flatten(-1)", "level must be non-negative"),
        ("lists.range(-1)", "lists.range: size must be non-negative, got -1"),
        (
            "'%d'.format(['a'])",
            "error during formatting: decimal clause can only be used on integers, was given string",
        ),
        ("'%s %s'.format(['a'])", "index 1 out of range"),
        ("semver(dyn('b'))", "No Major.Minor.Patch elements found"),
        ("semver(dyn('1.x.2'))", "Invalid character(s) found in minor number \"x\""),
        ("semver(dyn('1.2.03'))", "Patch number must not contain leading zeroes \"03\""),
    ];
    for (text, want) in cases {
        assert_eq!(eval(text), Err(want.to_owned()), "{text}");
    }
}

#[test]
fn deep_nesting_is_refused_and_not_a_crash() {
    let text = format!("{}1{}", "(".repeat(5000), ")".repeat(5000));
    assert!(eval(&text).is_err());
    let text = "!".repeat(5000) + "true";
    assert!(eval(&text).is_err());
    let text = "1 + ".repeat(5000) + "1";
    assert!(eval(&text).is_err());
    let text = format!("{}true", "true && ".repeat(5000));
    assert_eq!(eval(&text).as_deref(), Ok("true"));
    let text = format!("{}1{} == 1", "(".repeat(30), ")".repeat(30));
    assert_eq!(eval(&text).as_deref(), Ok("true"));
}

/// What kube-apiserver says of the same expressions over the same schema.
#[test]
fn types_are_checked_as_upstream_does() {
    let schema = Structural::parse(&json!({"type": "object", "properties": {
        "s": {"type": "string"}, "i": {"type": "integer"}, "b": {"type": "boolean"},
        "l": {"type": "array", "items": {"type": "string"}},
        "m": {"type": "object", "additionalProperties": {"type": "integer"}},
        "o": {"type": "object", "properties": {"x": {"type": "string"}}},
        "d": {"type": "string", "format": "date-time"},
        "ios": {"x-kubernetes-int-or-string": true},
        "pu": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}));
    let cases = [
        ("self.s.bogus()", "1:13: undeclared reference to 'bogus' (in container '')"),
        (
            "self.s.contains(1)",
            "1:16: found no matching overload for 'contains' applied to 'string.(int)'",
        ),
        ("size(self.i) > 1", "1:5: found no matching overload for 'size' applied to '(int)'"),
        (
            "self.b ? true : 1",
            "1:8: found no matching overload for '_?_:_' applied to '(bool, bool, int)'",
        ),
        ("self.s == 'a' && self.i", "1:22: expected type 'bool' but found 'int'"),
        (
            "self.l[0] == 1",
            "1:11: found no matching overload for '_==_' applied to '(string, int)'",
        ),
        (
            "self.l['a'] == 'a'",
            "1:7: found no matching overload for '_[_]' applied to '(list(string), string)'",
        ),
        (
            "self.m[0] == 1",
            "1:7: found no matching overload for '_[_]' applied to '(map(string, int), int)'",
        ),
        (
            "1 in self.l",
            "1:3: found no matching overload for '@in' applied to '(int, list(string))'",
        ),
        ("[1, 1.5].size() == 1", "1:5: expected type 'int' but found 'double'"),
        ("{'a': 1, 'b': 'c'}.size() == 2", "1:15: expected type 'int' but found 'string'"),
        ("!self.s", "1:1: found no matching overload for '!_' applied to '(string)'"),
        (
            "self.l == null",
            "1:8: found no matching overload for '_==_' applied to '(list(string), null)'",
        ),
        ("self.l.all(x, x)", "1:15: expected type 'bool' but found 'string'"),
        (
            "self.l.filter(x, x).size() == 1",
            "1:14: found no matching overload for '_?_:_' applied to '(string, list(string), list(string))'",
        ),
        (
            "self.i.all(x, true)",
            "1:5: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("has(self.o.y)", "1:4: undefined field 'y'"),
        ("self.pu.foo == 1", "1:8: undefined field 'foo'"),
        ("self.l.foo == 1", "1:7: type 'list(string)' does not support field selection"),
        (
            "self.?s.orValue(1) == 'b'",
            "1:16: found no matching overload for 'orValue' applied to 'optional_type(string).(int)'",
        ),
        (
            "type(self.s) == 'string'",
            "1:14: found no matching overload for '_==_' applied to '(type(string), string)'",
        ),
        (
            "self.d.getHours(1) == 1",
            "1:16: found no matching overload for 'getHours' applied to 'timestamp.(int)'",
        ),
        ("math.greatest(1, 2) == 2", "1:1: undeclared reference to 'math' (in container '')"),
        ("self.o == null && self.d == null", ""),
        ("self.ios == 1 || self.ios == 'a'", ""),
        ("self.?o.?x.orValue('') == 'a' && self.l[?0].hasValue()", ""),
        ("self.m.all(k, v, v > 1) && self.m.map(k, k).size() > 1", ""),
        ("self.l + [] == self.l && self.m != {}", ""),
        ("'%s is %d'.format([self.s, 1]) == 'a'", ""),
        ("self.i < 1.5 && self.d - duration('1h') < self.d", ""),
        ("self.l.sort() == self.l.distinct() && self.l.first().value() == 'a'", ""),
    ];
    for (text, want) in cases {
        let names = vec![("self".to_owned(), Type::Of(&schema))];
        let told = Program::compile(text, names, None).err().unwrap_or_default();
        let first = told.lines().next().unwrap_or_default();
        assert_eq!(first.strip_prefix("ERROR: <input>:").unwrap_or(first), want, "{text}");
    }
}

#[test]
fn operators_tell_the_type_of_what_they_make_of_anything() {
    for (text, want) in [
        ("'a' + x", "string"),
        ("x + 1", "int"),
        ("x * 1.5", "double"),
        ("x + y", "dyn"),
        ("x - timestamp('2026-01-02T03:04:05Z')", "duration"),
        ("x - duration('1s')", "dyn"),
        ("x == 1 || y", "bool"),
        ("x ? 'a' : y", "dyn"),
        ("'a' + (x ? 'a' : y)", "string"),
        ("string(x) + y", "string"),
        ("x.y.startsWith('a')", "bool"),
    ] {
        let names = ["x", "y"].map(|name| (name.to_owned(), Type::Dyn)).to_vec();
        let program = Program::compile(text, names, None);
        assert_eq!(program.map(|program| program.result()), Ok(want), "{text}");
    }
    let names = vec![("x".to_owned(), Type::Dyn)];
    assert!(Program::compile("true + x", names, None).is_err());
}

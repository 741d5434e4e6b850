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
        ("math.greatest(1, 5, 3)", "5"),
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

//! Text that means harm or none at all: refused quickly, with the place, and without a panic.

use job::JobSpec;
use job::text::{Limits, TextError, parse, parse_within};
use proptest::prelude::*;
use serde_json::{Value, json};

fn message(bytes: &[u8]) -> String {
    parse(bytes).map(|document| document.value).expect_err("a refusal").to_string()
}

#[test]
fn nothing_is_called_empty() {
    for text in ["", " \n\t", "# only a comment\n", "---\n...\n", "~", "null", "\u{feff}"] {
        let error = parse(text.as_bytes()).map(|document| document.value).unwrap_err();
        assert_eq!(error, TextError::Empty, "{text:?}");
        assert!(error.to_string().starts_with("empty"));
    }
}

#[test]
fn binary_is_called_binary_and_placed() {
    assert!(message(b"Type: batch\nName: a\0b").contains("binary: control characters"));
    assert!(message(b"Type: batch\nName: a\0b").ends_with("(line 2, column 8)"));
    assert!(message(b"\0asm\x01\0\0\0").ends_with("(line 1, column 1)"));
    assert!(message(b"\x7fELF").contains("binary"));
    assert!(message(b"Name: \xff\xfe").contains("not UTF-8"));
    assert!(message("Näme: \u{1}".as_bytes()).ends_with("(line 1, column 7)"));
    assert!(message(b"\xff\xfeT\0y\0").contains("binary"));
}

#[test]
fn too_large_names_both_sizes() {
    let error = message(&vec![b'x'; Limits::SPEC.bytes + 1]);
    assert!(error.contains("too large: more than 1048576 bytes of text"), "{error}");
}

#[test]
fn too_deep_is_refused_in_every_style() {
    let depth = 100_000;
    let block: String = (0..500).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    for text in [
        "[".repeat(depth),
        "{a: ".repeat(depth),
        format!("{{\"a\":{}", "[".repeat(depth)),
        "{\"a\":".repeat(depth),
        "- ".repeat(depth),
        "? ".repeat(depth),
        block,
    ] {
        let error = message(text.as_bytes());
        assert!(error.contains("deep") || error.contains("key") || error.contains("recursion"), "{error}");
    }
    let fits = format!("{}{}", "[".repeat(64), "]".repeat(64));
    assert!(parse(fits.as_bytes()).is_ok());
    assert!(message(format!("[{fits}]").as_bytes()).contains("more than 64 levels"));
}

#[test]
fn aliases_repeat_values_within_bounds() {
    let value = parse(b"a: &x {b: [1, 2]}\nc: *x\nd: [*x, *x]\n").unwrap().value;
    assert_eq!(value, json!({"a": {"b": [1, 2]}, "c": {"b": [1, 2]}, "d": [{"b": [1, 2]}, {"b": [1, 2]}]}));
    let wide = format!("a: &a {}\nb: [{}]", "x".repeat(100_000), "*a, ".repeat(100));
    assert!(message(wide.as_bytes()).contains("bytes of text once aliases are filled in"));
    let deep: String = (1..80).map(|level| format!("a{level}: &a{level} [*a{}]\n", level - 1)).collect();
    assert!(message(format!("a0: &a0 [1]\n{deep}").as_bytes()).contains("too deep"));
    assert!(message(b"a: &a [*a]").contains("value that it is part of"));
    assert!(message(b"a: *nothing").contains("line 1"));
}

#[test]
fn many_values_are_too_many() {
    let text = format!("a: [{}]", "1,".repeat(60_000));
    assert!(message(text.as_bytes()).contains("more than 50000 values"));
    let text = format!("{{\"a\": [{}1]}}", "1,".repeat(60_000));
    assert!(message(text.as_bytes()).contains("more than 50000 values"));
}

#[test]
fn long_lists_of_everything_that_yaml_has_end_quickly() {
    // A tenth of a megabyte of each: a reader of quadratic time would not come back from any of them.
    for unit in [
        "a: b\n",
        "- a\n",
        "a\n",
        "a ",
        "\n",
        " ",
        "\t",
        "#\n",
        "'",
        "\"",
        "\"a\" ",
        "[]",
        "{}",
        "[a, ",
        "&a ",
        "*a ",
        "!a ",
        "|\n",
        ">\n",
        "---\n",
        "...\n",
        "%a\n",
        "? a\n",
        ": ",
        ":",
        ",",
        "a:",
        "{a: ",
        "{\"a\": ",
        "- - ",
        "- &a\n",
        "é",
        "\\",
        "\"\\n",
        "a: |\n  b\n",
        "a,",
        "? ",
        "[? ",
        "@",
        "`",
        "<<: *a\n",
        "\r",
        "''",
        "'a\n",
        "\"a\n",
        "- 'a'\n  b\n",
        "[\n",
    ] {
        let text = unit.repeat(100_000 / unit.len());
        let _ = parse(text.as_bytes());
        let _ = parse(format!("{{\"a\":{text}").as_bytes());
        let _ = parse(format!("a: {text}").as_bytes());
    }
}

#[test]
fn scalars_have_the_types_of_yamls_core_schema() {
    for (text, value) in [
        ("1", json!(1)),
        ("-1", json!(-1)),
        ("+1", json!(1)),
        ("0x10", json!(16)),
        ("0o10", json!(8)),
        ("1.5", json!(1.5)),
        ("1e3", json!(1000.0)),
        (".5", json!(0.5)),
        ("18446744073709551615", json!(u64::MAX)),
        ("yes", json!("yes")),
        ("1_000", json!("1_000")),
        ("1.2.3", json!("1.2.3")),
        (".inf", json!(".inf")),
        ("-", json!([null])),
        ("2026-01-01", json!("2026-01-01")),
        ("500m", json!("500m")),
        ("\"1\"", json!("1")),
        ("'true'", json!("true")),
        ("true", json!(true)),
        ("!!str 1", json!("1")),
        ("!!int 1", json!(1)),
        ("~", json!(null)),
        ("|\n  a\n  b", json!("a\nb")),
    ] {
        let read = parse(format!("a: [b]\nc:\n  {text}\n").as_bytes()).unwrap().value;
        let value = if text.starts_with('|') { json!("a\nb\n") } else { value };
        assert_eq!(read["c"], value, "{text}");
    }
    assert!(message(b"a: !!int x").contains("no value for the tag"));
    assert!(message(b"a: !!binary aGk=").contains("means nothing here"));
}

#[test]
fn keys_are_text_and_stand_once() {
    assert_eq!(parse(b"1: a\ntrue: b").unwrap().value, json!({"1": "a", "true": "b"}));
    assert!(message(b"[a]: b").contains("a key must be text"));
    assert!(message(b"? {a: b}\n: c").contains("a key must be text"));
    assert!(message(b"a: &x b\n*x : c").contains("a key must be text"));
    assert_eq!(
        message(b"a: 1\nb: 2\na: 3"),
        "key \"a\" is given twice, first at line 1, column 1 (line 3, column 1)"
    );
    let json = message(b"{\"a\": 1,\n \"b\": 2, \"a\": 3}");
    assert_eq!(json, "key \"a\" is given twice, first at line 1, column 2 (line 2, column 10)");
}

#[test]
fn json_is_read_as_json() {
    let text = br#"{"a":"\ud83d\ude00\/","b":[1,2.5,-3,true,null,{}],"c":{"d":[]}}"#;
    let value: Value = serde_json::from_slice(text).unwrap();
    assert_eq!(parse(text).unwrap().value, value);
    let tabs = "{\n\t\"a\":\t1\n}";
    assert_eq!(parse(tabs.as_bytes()).unwrap().value, json!({"a": 1}));
    for (text, part) in [
        ("{\"a\" 1}", "expected `:` after the key, found '1' (line 1, column 6)"),
        ("{\"a\": 1 \"b\": 2}", "expected `,` or `}`, found '\"' (line 1, column 9)"),
        ("{\"a\": [1 2]}", "expected `,` or `]`, found '2' (line 1, column 10)"),
        ("{\"a\": tru}", "expected a value"),
        ("{\"a\": 01}", "expected a value"),
        ("{\"a\": \"b\n\"}", "no closing"),
        ("{\"a\": \"\\x\"}", "wrong escape"),
        ("{\"a\": \"\\", "no closing"),
        ("{\"a\": 1} x", "expected the end of the text"),
        ("{\"a\":\n", "found the end of the text (line 2, column 1)"),
    ] {
        let error = message(text.as_bytes());
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn other_limits_can_be_set() {
    let limits = Limits { bytes: 10, depth: 1, nodes: 3 };
    assert!(parse_within(b"a: 1", &limits).is_ok());
    assert!(matches!(parse_within(b"a: [1]", &limits), Err(TextError::TooDeep(_, 1))));
    assert!(matches!(parse_within(b"a: 1\nb: 2", &limits), Err(TextError::TooMany(..))));
    assert!(matches!(parse_within(b"a: 12345678", &limits), Err(TextError::TooLarge { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
        let _ = JobSpec::from_text(&bytes);
        let _ = JobSpec::from_canonical(&bytes);
    }

    #[test]
    fn any_yaml_like_text_is_read_or_refused(parts in prop::collection::vec(prop::sample::select(PARTS), 0..60)) {
        let text = parts.concat();
        let _ = JobSpec::from_text(text.as_bytes());
        let _ = parse(format!("{{\"{text}").as_bytes());
    }

    #[test]
    fn any_json_reads_the_same_as_with_serde(value in json_value()) {
        let value = json!({"k": value});
        for text in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
            prop_assert_eq!(&parse(text.as_bytes()).unwrap().value, &value);
        }
    }
}

/// What YAML is made of.
const PARTS: &[&str] = &[
    "a: ",
    "b: ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "\"",
    "'",
    "&a ",
    "*a ",
    "!x ",
    "!!str ",
    "|",
    ">",
    "# ",
    "\n",
    "\n  ",
    "\n    ",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "1",
    "null",
    "\\u12",
    "é",
    "? ",
    ": ",
    "\t",
];

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        // Control characters other than these are refused before anything is read; JSON escapes them anyway.
        "[ -~é😀\n\t]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[ -~é]{0,8}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

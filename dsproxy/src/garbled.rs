//! Text that was right, garbled in the ways that files are: for the readers of what others have written, none of which may panic, or take
//! longer than somebody would wait.
//!
//! `cargo xtask fuzz readers` throws more of it than an ordinary run of the tests does, and other text each time.

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{RngAlgorithm, TestCaseResult, TestRng, TestRunner},
};
use serde_json::Value;

/// How many garbled texts each reader gets, unless the variable of this name says otherwise.
const CASES: u32 = 2_000;
const CASES_VARIABLE: &str = "DSPROXY_FUZZ_CASES";

/// What they follow from, likewise: an ordinary run is always the same, so that what fails fails again.
const SEED: u64 = 7;
const SEED_VARIABLE: &str = "DSPROXY_FUZZ_SEED";

/// Longer than any reader may take for a text of some kilobytes, on a busy machine and not optimised.
const PATIENCE: Duration = Duration::from_secs(10);

/// What means something to YAML or JSON, or to those who read numbers, addresses and times.
const TELLING: [&str; 32] = [
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "!!int ",
    "? ",
    "- ",
    ": ",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "|",
    ">",
    "#",
    "---\n",
    "...\n",
    "\t",
    "null",
    "~",
    "-1",
    "1e999",
    "99999999999999999999",
    "0x",
    "::",
    "10.0.0.0/33",
    "\u{0}",
    "\u{feff}",
    "\u{1f980}",
    "%",
];

#[derive(Clone, Debug)]
enum Change {
    /// Other bytes at a place.
    Bytes(Index, Vec<u8>),
    /// Cut off.
    Cut(Index),
    /// A line gone, twice, or further in.
    Drop(Index),
    Double(Index, u8),
    Indent(Index, u8),
    /// Something telling, so many times.
    Insert(Index, Index, u16),
}

fn change() -> impl Strategy<Value = Change> {
    let place = any::<Index>;
    prop_oneof![
        (place(), proptest::collection::vec(any::<u8>(), 0..4)).prop_map(|(at, bytes)| Change::Bytes(at, bytes)),
        place().prop_map(Change::Cut),
        place().prop_map(Change::Drop),
        (place(), 1_u8..20).prop_map(|(at, times)| Change::Double(at, times)),
        (place(), 0_u8..9).prop_map(|(at, by)| Change::Indent(at, by)),
        (place(), place(), prop_oneof![9 => 1_u16..3, 1 => 100_u16..5_000])
            .prop_map(|(at, what, times)| Change::Insert(at, what, times)),
    ]
}

/// `text` changed in one to four ways.
fn garbled(text: String) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(change(), 1..5)
        .prop_map(move |changes| changes.iter().fold(text.clone().into_bytes(), |bytes, change| change.made(bytes)))
}

impl Change {
    fn made(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if bytes.is_empty() {
            return bytes;
        }
        let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        match self {
            Self::Bytes(at, with) => {
                let at = at.index(bytes.len());
                bytes.splice(at..(at + with.len()).min(bytes.len()), with.iter().copied());
                return bytes;
            }
            Self::Cut(at) => {
                bytes.truncate(at.index(bytes.len()));
                return bytes;
            }
            Self::Insert(at, what, times) => {
                let (at, what) = (at.index(bytes.len()), TELLING[what.index(TELLING.len())]);
                bytes.splice(at..at, what.repeat(usize::from(*times)).into_bytes());
                return bytes;
            }
            Self::Drop(at) => {
                lines.remove(at.index(lines.len()));
            }
            Self::Double(at, times) => {
                let at = at.index(lines.len());
                let line = lines[at].clone();
                lines.splice(at..at, std::iter::repeat_n(line, (*times).into()));
            }
            Self::Indent(at, by) => {
                let at = at.index(lines.len());
                lines[at].splice(0..0, std::iter::repeat_n(b' ', (*by).into()));
            }
        }
        lines.concat()
    }
}

/// What a variable says, if it is set. One that says nothing is a mistake that would go unnoticed.
fn told<T: FromStr>(variable: &str, otherwise: T) -> T {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number")),
        Err(_) => otherwise,
    }
}

fn runner(seed: u64) -> TestRunner {
    let config =
        ProptestConfig { cases: told(CASES_VARIABLE, CASES), failure_persistence: None, ..ProptestConfig::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Hands `text`, garbled ever differently, to `reader`, which is to come back, and soon.
#[track_caller]
pub(crate) fn hands_to(text: &str, reader: impl Fn(&[u8]) -> TestCaseResult) {
    run(&garbled(text.to_owned()), |bytes| reader(&bytes));
}

/// As `hands_to`, for a value in which some parts were replaced by parts of other kinds.
#[track_caller]
pub(crate) fn hands_value_to(value: &Value, reader: impl Fn(&Value) -> TestCaseResult) {
    let value = value.clone();
    let replacements = proptest::collection::vec((any::<Index>(), any::<Index>(), any::<i64>()), 1..4);
    let garbled = replacements.prop_map(move |replacements| {
        let mut garbled = value.clone();
        for (at, what, number) in replacements {
            let mut places = Vec::new();
            collect(&garbled, String::new(), &mut places);
            let place = &places[at.index(places.len())];
            if let Some(held) = garbled.pointer_mut(place) {
                let others = [
                    Value::Null,
                    Value::from(number),
                    Value::from(i64::MAX),
                    Value::from(1.5),
                    Value::from(true),
                    Value::from(""),
                    Value::from("\u{0}\u{1f980}"),
                    Value::from("fd00::1/129"),
                    Value::from("x".repeat(10_000)),
                    Value::Array(vec![Value::Null, held.clone(), Value::from(0)]),
                    Value::Object(serde_json::Map::new()),
                ];
                *held = others[what.index(others.len())].clone();
            }
        }
        garbled
    });
    run(&garbled, |value| reader(&value));
}

#[track_caller]
fn run<S: Strategy>(strategy: &S, reader: impl Fn(S::Value) -> TestCaseResult)
where
    S::Value: std::fmt::Debug,
{
    let seed = told(SEED_VARIABLE, SEED);
    let outcome = runner(seed).run(strategy, |input| {
        let started = Instant::now();
        reader(input)?;
        let took = started.elapsed();
        prop_assert!(took < PATIENCE, "it took {took:?}");
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}\nagain: cargo xtask fuzz readers --seed {seed}, with as many texts");
    }
}

/// The places of all parts of `value`, as JSON pointers.
fn collect(value: &Value, place: String, places: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let field = field.replace('~', "~0").replace('/', "~1");
                collect(value, format!("{place}/{field}"), places);
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                collect(value, format!("{place}/{index}"), places);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    places.push(place);
}

//! Files that are too long end early, but never in the middle of something: text after a line, JSON after an entry and still as JSON. Pure.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use serde::Serialize;

/// A file is not longer than this, but for what says that it was cut off.
pub(super) const LONGEST: usize = 8 << 20;

/// Where something was left out.
const CUT: &str = "... cut off here";

/// What of `content` a file of this name has that may be so long.
pub(super) fn shortened<'a>(name: &str, content: &'a [u8], longest: usize) -> Cow<'a, [u8]> {
    if content.len() <= longest {
        content.into()
    } else if name.ends_with(".json") {
        json_up_to(content, longest).into()
    } else {
        text_up_to(content, longest).into()
    }
}

/// `value` as JSON. No more of it is made than [`shortened`] has to have to see that it is too long.
pub(super) fn json(value: &impl Serialize, longest: usize) -> serde_json::Result<Vec<u8>> {
    let mut start = Start { bytes: Vec::new(), longest };
    match serde_json::to_writer_pretty(&mut start, value) {
        Err(_) if start.bytes.len() > longest => Ok(start.bytes),
        outcome => outcome.map(|()| start.bytes),
    }
}

/// The start of what is written; then it fails.
struct Start {
    bytes: Vec<u8>,
    longest: usize,
}

impl Write for Start {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() > self.longest {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn text_up_to(content: &[u8], longest: usize) -> Vec<u8> {
    let kept = &content[..longest];
    // One line without an end is better cut than left out.
    let end = kept.iter().rposition(|byte| *byte == b'\n').map_or(longest, |newline| newline + 1);
    let newline: &[u8] = if kept[..end].ends_with(b"\n") { b"" } else { b"\n" };
    [&kept[..end], newline, CUT.as_bytes(), b"\n"].concat()
}

/// Where JSON can be cut: in an array or object that has something left out then.
#[derive(Clone, Debug, Default)]
struct Place {
    at: usize,
    /// The brackets that are open there, as they are closed.
    open: Vec<u8>,
    /// Whether something stands before it in the innermost of them.
    follows: bool,
}

/// Cuts after an entry of the outermost array, or of one in the objects around: what an entry has itself stays together.
fn json_up_to(content: &[u8], longest: usize) -> Vec<u8> {
    let Place { at, open, follows } = last_place(&content[..longest]);
    let mut kept = content[..at].to_vec();
    let comma = if follows { "," } else { "" };
    let left_out = match open.last() {
        Some(b'}') => format!("{comma}\n\"...\": \"{CUT}\""),
        // There is no array around a single value.
        _ if open.is_empty() => format!("\"{CUT}\""),
        _ => format!("{comma}\n\"{CUT}\""),
    };
    kept.extend(left_out.bytes());
    for bracket in open.iter().rev() {
        kept.extend([b'\n', *bracket]);
    }
    kept.push(b'\n');
    kept
}

fn last_place(content: &[u8]) -> Place {
    let mut last = Place::default();
    let mut open = Vec::new();
    let (mut in_text, mut is_escaped) = (false, false);
    for (at, byte) in content.iter().enumerate() {
        if in_text {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => in_text = false,
                _ => {}
            }
            continue;
        }
        let (at, follows) = match byte {
            b'"' => {
                in_text = true;
                continue;
            }
            b'[' | b'{' => {
                open.push(if *byte == b'[' { b']' } else { b'}' });
                (at + 1, false)
            }
            b']' | b'}' => {
                open.pop();
                continue;
            }
            b',' => (at, true),
            _ => continue,
        };
        let around = open.split_last().map_or(&[][..], |(_, around)| around);
        if !around.contains(&b']') {
            last = Place { at, open: open.clone(), follows };
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cut(name: &str, content: &str, longest: usize) -> String {
        String::from_utf8(shortened(name, content.as_bytes(), longest).into_owned()).expect("text")
    }

    #[test]
    fn text_ends_with_a_line() {
        assert_eq!(cut("a.txt", "one\ntwo\nthree\n", 14), "one\ntwo\nthree\n", "it is short enough");
        assert_eq!(cut("a.txt", "one\ntwo\nthree\n", 10), "one\ntwo\n... cut off here\n");
        assert_eq!(cut("a.txt", "one\ntwo\nthree\n", 8), "one\ntwo\n... cut off here\n");
        assert_eq!(cut("a.txt", "without an end", 7), "without\n... cut off here\n");
    }

    #[test]
    fn json_stays_json_wherever_it_is_too_long() {
        let list = json!([{"a": [1, 2]}, {"b": "x],\"}{"}, {"c": "\\"}, 4]);
        let object = json!({"daemon": {"since": [1], "maps": "{"}, "hooks": [{"a": [1, 2]}, {"b": 2}], "last": null});
        for value in [list, object, json!("just a text"), json!(123_456)] {
            for text in [value.to_string(), serde_json::to_string_pretty(&value).expect("JSON")] {
                for longest in 0..text.len() {
                    let cut = cut("a.json", &text, longest);
                    let parsed: Value = serde_json::from_str(&cut).unwrap_or_else(|error| panic!("{error}: {cut}"));
                    assert!(cut.contains(CUT), "{cut}");
                    for entry in parsed.as_array().into_iter().flatten() {
                        let is_whole = value.as_array().is_some_and(|all| all.contains(entry));
                        assert!(is_whole || entry == CUT, "{cut}");
                    }
                }
                assert_eq!(cut("a.json", &text, text.len()), text);
            }
        }
    }

    #[test]
    fn as_many_entries_stay_as_there_is_room_for() {
        let entries = |text: &str| serde_json::from_str::<Vec<Value>>(text).expect("an array");
        assert_eq!(entries(&cut("a.json", "[10,20,30]", 7)), [json!(10), json!(20), json!(CUT)]);
        let cut = cut("a.json", r#"{"hooks":[{"a":1},{"b":2},{"c":3}],"maps":[]}"#, 30);
        let expected = json!({"hooks": [{"a": 1}, {"b": 2}, CUT]});
        assert_eq!(serde_json::from_str::<Value>(&cut).expect("JSON"), expected);
    }

    #[test]
    fn no_more_json_is_made_than_is_looked_at() {
        let rows: Vec<_> = (0..1000).map(|number| json!({ "number": number })).collect();
        let made = json(&rows, 100).expect("it is cut later");
        assert!((101..200).contains(&made.len()), "{}", made.len());
        serde_json::from_str::<Value>(&cut("a.json", &String::from_utf8(made).expect("text"), 100)).expect("JSON");
        assert_eq!(json(&[1], 100).expect("JSON"), b"[\n  1\n]");
    }
}

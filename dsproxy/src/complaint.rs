//! The one line in which a command that cannot go on says why, for people and for the log of a pod that does not start.
//!
//! It knows no error in particular.

use clap::error::ErrorKind;

/// An error with its causes. A cause that the text before it tells already is left out, as is whatever follows the
/// first line of it.
pub fn of_error(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let first_line = cause.lines().next().unwrap_or_default();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(first_line) {
            text = format!("{text}: {cause}");
        }
    }
    join_lines(&text)
}

/// What is wrong with the command line; none when the user asked for help or version.
pub fn of_arguments(error: &clap::Error) -> Option<String> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            None
        }
        _ => {
            let rendered = error.render().to_string();
            let rendered = rendered.strip_prefix("error: ").unwrap_or(&rendered);
            // Paragraphs: what is wrong, perhaps a tip, the usage, and where to read on.
            let told = rendered
                .split("\n\n")
                .filter(|paragraph| !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more information"));
            let told: Vec<String> = told.map(join_lines).collect();
            Some(format!("{}; --help tells what can be written", told.join("; ")))
        }
    }
}

fn join_lines(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Arguments;

    #[test]
    fn each_cause_is_told_once_and_in_one_line() {
        let error = anyhow::anyhow!("no such file").context("open /x: no such file").context("start");
        assert_eq!(of_error(&error), "start: open /x: no such file");
        let error = anyhow::anyhow!("refused\nby line 1\n  of many").context("load: refused, it takes root");
        assert_eq!(of_error(&error), "load: refused, it takes root");
        assert_eq!(of_error(&anyhow::anyhow!("a\n  b\n\nc")), "a b c");
    }

    #[test]
    fn a_bad_command_line_is_told_in_one_line_with_the_flag_and_the_value() {
        for (arguments, told) in [
            (&["run", "--attach", "nail"][..], &["--attach", "nail", "clsact"][..]),
            (&["run", "--max-slots", "0"], &["--max-slots", "'0'"]),
            (&["run", "--manifests", "a", "--kubeconfig", "b"], &["--manifests", "--kubeconfig"]),
            (&["run", "--metrics-bind-address", "here"], &["--metrics-bind-address", "here"]),
            (&["run", "--nonesuch"], &["--nonesuch"]),
            (&["runn"], &["runn", "run"]),
            (&["run", "--log-level", "loud"], &["--log-level", "loud", "debug"]),
        ] {
            let arguments = [&["dsproxy"], arguments].concat();
            let line = of_arguments(&Arguments::try_parse_from(&arguments).expect_err("invalid")).expect("a complaint");
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(told.iter().all(|part| line.contains(part)) && line.contains("--help"), "{line}");
        }
        for wanted in ["--help", "--version"] {
            let error = Arguments::try_parse_from(["dsproxy", wanted]).expect_err("to be printed");
            assert_eq!(of_arguments(&error), None);
        }
    }
}

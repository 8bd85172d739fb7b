//! `--log-level`: a level, or a list of levels for targets.
//!
//! The filter that takes the value in the end would read any word as a target, so that a level with a slip in it would
//! silence the log.

use thiserror::Error;
use tracing_subscriber::EnvFilter;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

const ADVICE: &str =
    "write one of off, error, warn, info, debug, trace, or levels for targets, as in info,dsproxy=debug";

/// What is wrong with the flag's value. The command line names flag and value around it.
#[derive(Debug, Error)]
pub enum LogLevelError {
    /// A word that is no level.
    #[error("{word:?} is no level; {ADVICE}")]
    NoLevel {
        /// The word.
        word: String,
    },
    /// Not a filter at all.
    #[error("{source}; {ADVICE}")]
    NoFilter {
        /// What the filter says.
        #[from]
        source: tracing_subscriber::filter::ParseError,
    },
}

/// Reads the value of the flag.
///
/// # Errors
///
/// Says what is wrong with it and what would be right.
pub fn parse(value: &str) -> Result<String, LogLevelError> {
    EnvFilter::try_new(value)?;
    for part in value.split(',').map(str::trim) {
        let is_level = LEVELS.iter().any(|level| part.eq_ignore_ascii_case(level));
        // A span in brackets is for those who know what they write.
        if !is_level && !part.contains(['=', '[']) {
            return Err(LogLevelError::NoLevel { word: part.to_owned() });
        }
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_lists_are_read() {
        for value in
            ["info", "WARN", "off", "info,dsproxy=debug", "dsproxy::reconcile=trace,error", "[span{field}]=debug"]
        {
            assert_eq!(parse(value).expect(value), value);
        }
    }

    #[test]
    fn anything_else_says_what_would_be_right() {
        for value in ["", "loud", "dsproxy", "info,loud", "dsproxy=loud", "=", "info,"] {
            let text = parse(value).expect_err(value).to_string();
            assert!(text.contains("debug") && text.contains("dsproxy=debug"), "{text}");
        }
    }
}

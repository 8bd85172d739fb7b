//! Reads the file of `--config`.
//!
//! A field that kube-proxy does not have is a slip of the pen, or of a release older or newer than the one that the types
//! are from. kube-proxy says so and goes on without it, and so does this: all of them are named, with their lines.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::kube_proxy::{API_VERSION, KIND, KubeProxyConfiguration};

/// Why the file cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("--config {}: {source}; name a readable file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("--config {}: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ContentError,
    },
}

/// What is wrong with the content.
#[derive(Debug, Error)]
pub enum ContentError {
    /// No YAML, or a value of the wrong type.
    #[error("{}", told(field, *line, problem))]
    Malformed {
        /// The field, as in `iptables.syncPeriod`; `.` is the whole.
        field: String,
        /// Its line, from 1, when it is found.
        line: Option<usize>,
        /// What is wrong with it.
        problem: serde_yaml::Error,
    },
    /// Another kind of file.
    #[error("it is of the apiVersion {api_version:?} and the kind {kind:?}; what can be read is {API_VERSION}, {KIND}")]
    Kind {
        /// As the file says.
        api_version: String,
        /// As the file says.
        kind: String,
    },
    /// A value that JSON cannot hold.
    #[error("{0}")]
    Value(#[from] serde_json::Error),
}

/// The parser names the section with its line, and perhaps the field, where it can be said better.
fn told(field: &str, line: Option<usize>, problem: &serde_yaml::Error) -> String {
    let text = problem.to_string();
    let reason = match text.split_once(": ") {
        Some((section, rest)) if field.starts_with(section) => rest,
        _ => &text,
    };
    match (line, reason.rsplit_once(" at line ")) {
        (Some(line), Some((reason, _))) => format!("{field} (line {line}): {reason}"),
        (Some(line), None) => format!("{field} (line {line}): {reason}"),
        (None, _) => format!("{field}: {reason}"),
    }
}

/// A field of the file that kube-proxy does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownField {
    /// The field, as in `iptables.masqueradeAl`.
    pub name: String,
    /// Its line, from 1; none when the file is not laid out in lines.
    pub line: Option<usize>,
}

impl fmt::Display for UnknownField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{} (line {line})", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What a file says.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// The fields that say something.
    pub configuration: KubeProxyConfiguration,
    /// What was left out.
    pub unknown: Vec<UnknownField>,
    /// All of it, as it was read.
    pub text: String,
}

impl File {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is no such file.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let text = fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|source| FileError::Content { path: path.to_owned(), source })
    }

    /// Reads the content of a file.
    ///
    /// # Errors
    ///
    /// When it is no such file.
    pub fn parse(text: &str) -> Result<Self, ContentError> {
        let mut unknown = Vec::new();
        let deserializer = serde_yaml::Deserializer::from_str(text);
        let mut track = serde_path_to_error::Track::new();
        let deserializer = serde_path_to_error::Deserializer::new(deserializer, &mut track);
        let configuration: Result<KubeProxyConfiguration, _> = serde_ignored::deserialize(deserializer, |path| {
            // An optional field appears as a step of its own.
            let name = path.to_string().replace("?.", "");
            unknown.push(UnknownField { line: line_of(text, &name), name });
        });
        let configuration = configuration.map_err(|problem| {
            let field = track.path().to_string().replace("?.", "");
            ContentError::Malformed { line: line_of(text, &field), field, problem }
        })?;
        let KubeProxyConfiguration { api_version, kind, .. } = &configuration;
        if api_version.as_deref() != Some(API_VERSION) || kind.as_deref() != Some(KIND) {
            return Err(ContentError::Kind {
                api_version: api_version.clone().unwrap_or_default(),
                kind: kind.clone().unwrap_or_default(),
            });
        }
        Ok(Self { configuration: configuration.without_zeros()?, unknown, text: text.to_owned() })
    }
}

/// The line on which the field `name` stands, below the fields it is in.
fn line_of(text: &str, name: &str) -> Option<usize> {
    let mut lines = text.lines().zip(1..);
    let mut found = None;
    let mut outer = None;
    for step in name.split('.') {
        let (line, number) = lines.find(|(line, _)| {
            let key = line.trim_start();
            let indent = line.len() - key.len();
            let is_deeper = outer.map_or(indent == 0, |outer| indent > outer);
            let key = key.split_once(':').map_or("", |(key, _)| key.trim().trim_matches(['"', '\'']));
            is_deeper && key == step
        })?;
        outer = Some(line.len() - line.trim_start().len());
        found = Some(number);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> crate::config::RunFlags {
        use clap::{Args as _, FromArgMatches as _};
        let command = crate::config::RunFlags::augment_args(clap::Command::new("run"));
        let matches = command.try_get_matches_from(["run", "--config", "-"]).expect("flags");
        crate::config::RunFlags::from_arg_matches(&matches).expect("flags")
    }

    /// kube-proxy's file, garbled: read, or refused with the field that is wrong.
    #[test]
    fn a_garbled_file_is_read_or_refused() {
        crate::garbled::hands_to(include_str!("everything.yaml"), |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
            match File::parse(text) {
                Ok(File { configuration, .. }) => {
                    proptest::prop_assert!(configuration.said().is_ok());
                    // What was read makes a configuration, or is refused by name.
                    let flags = flags();
                    let file = File { configuration, unknown: Vec::new(), text: String::new() };
                    if let Err(error) = crate::config::assemble(&flags, Some(&file)) {
                        proptest::prop_assert!(!error.to_string().is_empty());
                    }
                }
                Err(ContentError::Malformed { field, .. }) => proptest::prop_assert!(!field.is_empty()),
                Err(error) => proptest::prop_assert!(!error.to_string().is_empty()),
            }
            Ok(())
        });
    }

    const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn parse(rest: &str) -> Result<File, ContentError> {
        File::parse(&format!("{HEADER}{rest}"))
    }

    #[test]
    fn what_kubeadm_leaves_unset_says_nothing() {
        let file = File::parse(include_str!("kubeadm.yaml")).expect("valid");
        assert_eq!(file.unknown, []);
        let said = file.configuration.said().expect("JSON");
        let said: Vec<&str> = said.keys().map(String::as_str).collect();
        assert_eq!(said, ["apiVersion", "bindAddress", "clientConnection.kubeconfig", "clusterCIDR", "kind"]);
    }

    #[test]
    fn a_zero_that_is_a_value_stays() {
        let file = parse(
            "oomScoreAdj: 0\nconntrack: {maxPerCore: 0, min: null, tcpEstablishedTimeout: 0s}\nfeatureGates: {A: false}\n",
        );
        let said = file.expect("valid").configuration.said().expect("JSON");
        let said: Vec<&str> =
            said.keys().map(String::as_str).filter(|name| *name != "apiVersion" && *name != "kind").collect();
        assert_eq!(said, ["conntrack.maxPerCore", "conntrack.tcpEstablishedTimeout", "featureGates.A", "oomScoreAdj"]);
    }

    #[test]
    fn unknown_fields_are_named_with_their_lines_and_left_out() {
        let file = parse(
            "mode: nftables\nudpIdleTimeout: 250ms\niptables:\n  # a slip\n  masqueradeAl: true\n  masqueradeAll: true\nnftables: {syncPerod: 5s}\n",
        )
        .expect("read all the same");
        let unknown: Vec<String> = file.unknown.iter().map(UnknownField::to_string).collect();
        assert_eq!(unknown, ["udpIdleTimeout (line 4)", "iptables.masqueradeAl (line 7)", "nftables.syncPerod"]);
        assert_eq!(file.configuration.iptables.expect("said").masquerade_all, Some(true));
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        for (rest, parts) in [
            ("oomScoreAdj: often\n", &["oomScoreAdj", "line 3"][..]),
            ("iptables:\n  syncPeriod: 30\n", &["iptables.syncPeriod", "line 4"]),
            ("iptables:\n  syncPeriod: 30 s\n", &["iptables.syncPeriod", "30 s", "1h30m", "line 4"]),
            ("nodePortAddresses: primary\n", &["nodePortAddresses", "line 3"]),
            ("mode: [\n", &["line"]),
            ("mode: ipvs\nmode: nftables\n", &["mode", "duplicate"]),
        ] {
            let error = parse(rest).expect_err(rest).to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn another_kind_of_file_is_none() {
        for text in [
            "kind: KubeProxyConfiguration\n",
            "apiVersion: kubeproxy.config.k8s.io/v1beta1\nkind: KubeProxyConfiguration\n",
            "{}",
        ] {
            let error = File::parse(text).expect_err(text).to_string();
            assert!(error.contains(API_VERSION) && error.contains(KIND), "{error}");
        }
        File::parse("").expect_err("nothing");
        let error = File::read(Path::new("/nowhere/config.conf")).expect_err("no file").to_string();
        assert!(error.contains("--config /nowhere/config.conf") && error.contains("No such file"), "{error}");
    }
}

//! What the daemon sets on the host beside its programs: sysctls, and how likely the kernel is to end the process.
//!
//! Packets do not depend on any of it. Ports are kept from the host's own sockets, so that a connection of the host's does
//! not get the port of a NodePort or of a masqueraded packet; the kernel's own connection table is given what kube-proxy
//! gives it, for all that has nothing to do with Services. It is planned first, and then applied: the plan is pure.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::Path,
};

use tracing::{debug, info};

use crate::config::{Config, ConntrackConfig, PortRange};

const RESERVED_PORTS: &str = "proc/sys/net/ipv4/ip_local_reserved_ports";
const OOM_SCORE_ADJ: &str = "proc/self/oom_score_adj";
const CONNTRACK: &str = "proc/sys/net/netfilter/nf_conntrack";
const CONNTRACK_BUCKETS: &str = "sys/module/nf_conntrack/parameters/hashsize";

/// The most entries that the number of CPUs can ask for, as in kube-proxy.
const MOST_ENTRIES: u64 = 1 << 20;

/// The kernel's default: entries to a bucket of the connection table's hash.
const ENTRIES_PER_BUCKET: u64 = 4;

/// The whole of a list of reserved ports must be read at once: the kernel ends the file after one read
/// (kernel/sysctl.c, `proc_do_large_bitmap`). Even every second port alone makes no more than this.
const WHOLE_FILE: usize = 256 * 1024;

/// One file and what should be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The file, below the root.
    pub path: String,
    /// The content.
    pub wanted: Wanted,
}

/// What a file should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This number.
    Exactly(i64),
    /// This number or a greater one.
    AtLeast(u64),
    /// A list of ports that has these as well.
    Ports(Vec<PortRange>),
}

/// A setting that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("write {wanted} to /{path}, where {present:?} is: {source}; {}", self.remedy())]
pub struct SettingError {
    path: String,
    present: String,
    wanted: String,
    source: io::Error,
}

impl SettingError {
    fn remedy(&self) -> String {
        if self.path == OOM_SCORE_ADJ {
            return format!(
                "it takes CAP_SYS_RESOURCE to make the kernel spare a process; --oom-score-adj={} leaves it",
                self.present
            );
        }
        let where_it_is = match self.source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => "in a container that is not privileged it is read-only: ",
            _ => "",
        };
        format!(
            "{where_it_is}run `dsproxy run --init-only` with the same flags in a privileged init container, or on the node, or \
             set it there"
        )
    }
}

/// What `config` asks for on a host of so many CPUs.
pub fn plan(config: &Config, cpus: u64) -> Vec<Setting> {
    let mut settings =
        vec![Setting { path: OOM_SCORE_ADJ.into(), wanted: Wanted::Exactly(config.oom_score_adj.into()) }];
    settings.extend(of_host(config, cpus));
    settings
}

/// [`plan`] without what is the process's own.
fn of_host(config: &Config, cpus: u64) -> Vec<Setting> {
    let mut settings = Vec::new();
    if config.reserve_ports {
        let ports = vec![config.node_port_range, config.snat_ports];
        settings.push(Setting { path: RESERVED_PORTS.into(), wanted: Wanted::Ports(ports) });
    }
    let ConntrackConfig { max_per_core, min, tcp_established, tcp_close_wait, tcp_be_liberal, udp, udp_stream } =
        config.conntrack;
    if max_per_core > 0 {
        let entries = u64::from(max_per_core).saturating_mul(cpus).min(MOST_ENTRIES).max(min.into());
        settings.push(Setting { path: format!("{CONNTRACK}_max"), wanted: Wanted::AtLeast(entries) });
        let buckets = entries / ENTRIES_PER_BUCKET;
        settings.push(Setting { path: CONNTRACK_BUCKETS.into(), wanted: Wanted::AtLeast(buckets) });
    }
    let numbers = [
        ("tcp_timeout_established", tcp_established),
        ("tcp_timeout_close_wait", tcp_close_wait),
        ("tcp_be_liberal", tcp_be_liberal.then_some(1)),
        ("udp_timeout", udp),
        ("udp_timeout_stream", udp_stream),
    ];
    for (name, value) in numbers {
        // The kernel holds seconds in 31 bits.
        let Some(value) = value.map(|value| value.min(i32::MAX as u64).cast_signed()) else { continue };
        settings.push(Setting { path: format!("{CONNTRACK}_{name}"), wanted: Wanted::Exactly(value) });
    }
    settings
}

/// [`of_host`], and what [`for_xdp`] asks for where XDP may serve: all that can be done ahead of the daemon.
pub fn ahead(config: &Config, cpus: u64) -> Vec<Setting> {
    let mut settings = of_host(config, cpus);
    if config.xdp.devices().is_some() {
        settings.extend(for_xdp(config.conntrack.tcp_established, Path::new("/")));
    }
    settings
}

/// What XDP asks of the host. The kernel's own connection table sees a packet of a connection now and then: it must not take it for
/// somebody else's, nor a reset that it ends with, nor wait impatiently for the answer to what it saw
/// (Documentation/networking/nf_conntrack-sysctl.rst). An established connection may be silent for `established` seconds; where that is
/// left alone, for what is set below `root`.
pub fn for_xdp(established: Option<u64>, root: &Path) -> Vec<Setting> {
    /// The kernel's default, in seconds.
    const ESTABLISHED: u64 = 432_000;
    let setting = |name: &str, wanted| Setting { path: format!("{CONNTRACK}_{name}"), wanted };
    let present = || {
        let present = read_whole(&root.join(format!("{CONNTRACK}_tcp_timeout_established"))).ok()?;
        present.trim().parse().ok()
    };
    let established = established.or_else(present).unwrap_or(ESTABLISHED);
    vec![
        setting("tcp_be_liberal", Wanted::Exactly(1)),
        setting("tcp_ignore_invalid_rst", Wanted::Exactly(1)),
        setting("tcp_timeout_unacknowledged", Wanted::AtLeast(established.min(i32::MAX as u64))),
    ]
}

/// The first of what XDP asks of the host, below `root`, that it does not have; nothing is set.
pub fn in_the_way_of_xdp(root: &Path) -> Option<String> {
    for_xdp(None, root).into_iter().find_map(|Setting { path, wanted }| {
        let present = read_whole(&root.join(&path)).ok()?;
        let present = present.trim();
        let least = if matches!(wanted, Wanted::AtLeast(_)) { "at least " } else { "" };
        wanted.instead_of(present).map(|_| format!("/{path} is {present}, and has to be {least}{wanted}"))
    })
}

/// Brings the files below `root` to what is wanted, and says what could not be done. A host without a connection table has
/// nothing to be set there.
pub fn apply(settings: &[Setting], root: &Path) -> Vec<SettingError> {
    settings.iter().filter_map(|setting| apply_one(setting, root).err()).collect()
}

fn apply_one(Setting { path, wanted }: &Setting, root: &Path) -> Result<(), SettingError> {
    let failed = |present: &str, source| SettingError {
        path: path.clone(),
        present: present.to_owned(),
        wanted: wanted.to_string(),
        source,
    };
    let file = root.join(path);
    let present = match read_whole(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            debug!(path, "not there, so not set");
            return Ok(());
        }
        Err(error) => return Err(failed("", error)),
    };
    let present = present.trim();
    let Some(content) = wanted.instead_of(present) else { return Ok(()) };
    fs::write(&file, &content).map_err(|error| failed(present, error))?;
    info!(path = format!("/{path}"), before = present, now = content, "set");
    Ok(())
}

fn read_whole(path: &Path) -> io::Result<String> {
    let mut buffer = vec![0; WHOLE_FILE];
    let length = fs::File::open(path)?.read(&mut buffer)?;
    buffer.truncate(length);
    String::from_utf8(buffer).map_err(|_| io::ErrorKind::InvalidData.into())
}

impl Wanted {
    /// What is to be written where `present` is; nothing if that will do.
    fn instead_of(&self, present: &str) -> Option<String> {
        match self {
            Self::Exactly(value) => (present.parse() != Ok(*value)).then(|| value.to_string()),
            Self::AtLeast(least) => {
                (present.parse::<u64>().is_ok_and(|present| present < *least)).then(|| least.to_string())
            }
            Self::Ports(ranges) => {
                let mut all = ports_of(present);
                let before = merged(all.clone());
                all.extend(ranges);
                let after = merged(all);
                (after != before).then(|| list(&after))
            }
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(value) => write!(f, "{value}"),
            Self::AtLeast(value) => write!(f, "{value}"),
            Self::Ports(ranges) => f.write_str(&list(ranges)),
        }
    }
}

/// The kernel's form of a list: ranges and single ports, with commas between.
fn ports_of(text: &str) -> Vec<PortRange> {
    let part =
        |part: &str| part.parse().ok().or_else(|| part.parse().ok().map(|port| PortRange { first: port, last: port }));
    text.split(',').filter_map(|text| part(text.trim())).collect()
}

/// In order, with none that overlap or touch.
fn merged(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_by_key(|range| range.first);
    let mut merged: Vec<PortRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => last.last = last.last.max(range.last),
            _ => merged.push(range),
        }
    }
    merged
}

fn list(ranges: &[PortRange]) -> String {
    ranges.iter().map(PortRange::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::{RunFlags, assemble};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: RunFlags,
    }

    fn config(arguments: &[&str]) -> Config {
        let all = std::iter::once("run").chain(arguments.iter().copied());
        assemble(&Command::parse_from(all).flags, None).expect("valid").config
    }

    fn wanted(settings: &[Setting], name: &str) -> Option<Wanted> {
        settings.iter().find(|setting| setting.path.ends_with(name)).map(|setting| setting.wanted.clone())
    }

    #[test]
    fn the_connection_table_is_as_kube_proxy_makes_it() {
        for (arguments, cpus, entries) in [
            (&[][..], 1, Some(131_072)),
            (&[], 8, Some(262_144)),
            (&[], 256, Some(1_048_576)),
            (&["--conntrack-min=2000000"], 256, Some(2_000_000)),
            (&["--conntrack-max-per-core=0"], 8, None),
        ] {
            let settings = of_host(&config(arguments), cpus);
            assert_eq!(wanted(&settings, "nf_conntrack_max"), entries.map(Wanted::AtLeast), "{arguments:?}");
            assert_eq!(
                wanted(&settings, "hashsize"),
                entries.map(|entries| Wanted::AtLeast(entries / 4)),
                "{arguments:?}"
            );
        }
        let settings = plan(&config(&[]), 1);
        for (name, value) in
            [("established", Some(86_400)), ("close_wait", Some(3_600)), ("be_liberal", None), ("udp_timeout", None)]
        {
            assert_eq!(wanted(&settings, name), value.map(Wanted::Exactly), "{name}");
        }
        assert_eq!(wanted(&settings, "oom_score_adj"), Some(Wanted::Exactly(-999)));
        let flags =
            ["--conntrack-tcp-timeout-established=0", "--conntrack-tcp-be-liberal", "--conntrack-udp-timeout=45s"];
        let settings = plan(&config(&flags), 1);
        assert_eq!(wanted(&settings, "established"), None);
        assert_eq!(wanted(&settings, "be_liberal"), Some(Wanted::Exactly(1)));
        assert_eq!(wanted(&settings, "udp_timeout"), Some(Wanted::Exactly(45)));
        assert_eq!(wanted(&plan(&config(&["--reserve-ports=false"]), 1), "reserved_ports"), None);
    }

    #[test]
    fn what_xdp_asks_for_is_set_ahead_unless_it_is_off() {
        for (arguments, unacknowledged) in [
            (&[][..], Some(Wanted::AtLeast(86_400))),
            (&["--xdp=native", "--conntrack-tcp-timeout-established=0"], Some(Wanted::AtLeast(432_000))),
            (&["--xdp=off"], None),
        ] {
            let settings = ahead(&config(arguments), 1);
            let (unknown_reset, liberal) = (wanted(&settings, "invalid_rst"), wanted(&settings, "be_liberal"));
            assert_eq!(wanted(&settings, "unacknowledged"), unacknowledged, "{arguments:?}");
            let one = unacknowledged.map(|_| Wanted::Exactly(1));
            assert_eq!((unknown_reset, liberal), (one.clone(), one), "{arguments:?}");
        }
    }

    #[test]
    fn what_is_in_the_way_of_xdp_is_the_first_that_is_not_as_wanted() {
        let root = tempfile::tempdir().expect("a directory");
        assert_eq!(in_the_way_of_xdp(root.path()), None, "nothing tracks connections");
        let directory = root.path().join("proc/sys/net/netfilter");
        fs::create_dir_all(&directory).expect("made");
        let set = |name: &str, value: &str| {
            fs::write(directory.join(format!("nf_conntrack_tcp_{name}")), format!("{value}\n")).expect("written");
        };
        set("timeout_established", "86400");
        set("timeout_unacknowledged", "300");
        set("ignore_invalid_rst", "1");
        set("be_liberal", "0");
        let expected = ["be_liberal is 0, and has to be 1", "unacknowledged is 300, and has to be at least 86400"];
        for (expected, (name, value)) in
            expected.into_iter().zip([("be_liberal", "1"), ("timeout_unacknowledged", "86400")])
        {
            let found = in_the_way_of_xdp(root.path());
            assert!(found.as_ref().is_some_and(|found| found.ends_with(expected)), "{found:?} for {expected}");
            set(name, value);
        }
        assert_eq!(in_the_way_of_xdp(root.path()), None);
    }

    #[test]
    fn files_are_written_only_where_they_are_not_as_wanted() {
        let range = |first, last| PortRange { first, last };
        let ports = Wanted::Ports(vec![range(30000, 32767), range(49152, 65535)]);
        for (wanted, present, expected) in [
            (Wanted::Exactly(-999), "0", Some("-999")),
            (Wanted::Exactly(-999), "-999", None),
            (Wanted::AtLeast(100), "99", Some("100")),
            (Wanted::AtLeast(100), "200", None),
            (ports.clone(), "", Some("30000-32767,49152-65535")),
            (ports.clone(), "30000-32767,49152-65535", None),
            (ports.clone(), "30000-65535", None),
            (ports.clone(), "8080,32768,40000-50000", Some("8080,30000-32768,40000-65535")),
            (ports, "1-2,3", Some("1-3,30000-32767,49152-65535")),
        ] {
            // A single port may be written as a range of one.
            let expected = expected.map(|text| text.replace("8080,", "8080-8080,"));
            assert_eq!(wanted.instead_of(present), expected, "{wanted} in place of {present}");
        }
    }

    #[test]
    fn what_may_not_be_written_says_where_it_may() {
        let failed = |path: &str, kind: io::ErrorKind| {
            let (present, wanted) = ("0".to_owned(), "1".to_owned());
            SettingError { path: path.to_owned(), present, wanted, source: kind.into() }.to_string()
        };
        let text = failed(RESERVED_PORTS, io::ErrorKind::ReadOnlyFilesystem);
        for part in ["write 1 to /proc/sys/net/ipv4", "where \"0\" is", "not privileged it is read-only", "--init-only"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = failed(RESERVED_PORTS, io::ErrorKind::PermissionDenied);
        assert!(!text.contains("read-only") && text.contains("--init-only"), "{text}");
        let text = failed(OOM_SCORE_ADJ, io::ErrorKind::PermissionDenied);
        assert!(text.contains("--oom-score-adj=0 leaves it") && !text.contains("--init-only"), "{text}");
    }

    #[test]
    fn what_is_missing_is_left_out_and_what_fails_is_told() {
        let root = tempfile::tempdir().expect("a directory");
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("proc/sys/net/ipv4")).expect("made");
        fs::write(path(RESERVED_PORTS), "8080\n").expect("written");
        fs::create_dir_all(path(OOM_SCORE_ADJ)).expect("a directory in place of the file");
        let failures = apply(&plan(&config(&[]), 1), root.path());
        let [failure] = failures.as_slice() else { panic!("{failures:?}") };
        let text = failure.to_string();
        assert!(text.contains("write -999 to /proc/self/oom_score_adj") && text.contains("CAP_SYS_RESOURCE"), "{text}");
        let reserved = fs::read_to_string(path(RESERVED_PORTS)).expect("read");
        assert_eq!(reserved, "8080-8080,30000-32767,49152-65535");
    }
}

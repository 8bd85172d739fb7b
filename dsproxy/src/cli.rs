//! The command line: subcommands and flags, and nothing that acts on them.
//!
//! The flags of `run` are in `config`, where they become a configuration.

mod manual;
mod reference;

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    app,
    config::{RunFlags, flags::BpffsFlag},
    inspect::{
        self,
        filter::{FlowFilter, RowFilter},
    },
    model::Protocol,
};

/// A dual-stack kube-proxy replacement with an eBPF data path.
#[derive(Debug, Parser)]
#[command(name = "dsproxy", version, propagate_version = true, max_term_width = 120)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep the data path of this node equal to the cluster's Services
    Run(Box<RunFlags>),
    /// What is attached where, how full the maps are, what became of packets
    Status(InspectArguments),
    /// The Services in the maps, with their endpoints and traffic
    Services(FlowArguments),
    /// The endpoints in the maps
    Backends(RowArguments),
    /// The connections in the maps
    Connections(FlowArguments),
    /// What passes by the Services just now, and what is dropped
    Top(inspect::top::TopArguments),
    /// What would become of a packet that enters, and why
    Trace(TraceArguments),
    /// What becomes of packets, told as it happens: those that are dropped or translated, unless others are asked for
    Events(inspect::events::EventsArguments),
    /// Write one archive with all that a report of a fault needs
    Dump(inspect::dump::DumpArguments),
    /// Remove programs, maps and pins, so that connections through Services end; or what kube-proxy has left
    Cleanup(CleanupArguments),
    /// Print the script by which a shell completes commands and flags
    Completions(manual::CompletionsArguments),
    /// Write manual pages
    Man(manual::ManualArguments),
    /// Print docs/configuration.md
    #[command(hide = true)]
    Reference,
}

/// What the commands that look at the maps are told.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// Where pins are.
    #[command(flatten)]
    pub bpffs: BpffsFlag,

    /// The form of the output
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub output: OutputFormat,

    /// Look again every so many seconds, until interrupted; as JSON, one line for each look
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    pub watch: Option<Duration>,
}

/// The longest interval: nobody waits for longer, and clocks cannot be asked for what is too far away.
const LONGEST_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if seconds > LONGEST_INTERVAL.as_secs_f64() {
        return Err(format!("must be a day at most, {} seconds", LONGEST_INTERVAL.as_secs()));
    }
    let interval = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if interval.is_zero() { Err("must be more than none".to_owned()) } else { Ok(interval) }
}

/// What the commands are told that list flows, or what they are for.
#[derive(Debug, Args)]
struct FlowArguments {
    #[command(flatten)]
    inspect: InspectArguments,
    // Last, for its heading holds for what follows.
    #[command(flatten)]
    filter: FlowFilter,
}

/// What the commands are told that list what has no protocol.
#[derive(Debug, Args)]
struct RowArguments {
    #[command(flatten)]
    inspect: InspectArguments,
    // Last, for its heading holds for what follows.
    #[command(flatten)]
    filter: RowFilter,
}

/// What `dsproxy trace` is told.
#[derive(Debug, Args)]
pub struct TraceArguments {
    /// The protocol
    pub protocol: TransportProtocol,

    /// The client, ADDRESS:PORT; without a port, any
    pub source: String,

    /// Where it sends to, ADDRESS:PORT, an IPv6 address in brackets
    pub destination: String,

    /// By what the packet enters
    #[arg(long, value_name = "WHAT", default_value = "pod")]
    pub from: inspect::trace::From,

    /// Where the maps are, and the form of the output.
    #[command(flatten)]
    pub inspect: InspectArguments,
}

/// A protocol, as it is written on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TransportProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl From<TransportProtocol> for Protocol {
    fn from(protocol: TransportProtocol) -> Self {
        match protocol {
            TransportProtocol::Tcp => Self::Tcp,
            TransportProtocol::Udp => Self::Udp,
            TransportProtocol::Sctp => Self::Sctp,
        }
    }
}

#[derive(Debug, Args)]
struct CleanupArguments {
    #[command(flatten)]
    bpffs: BpffsFlag,

    /// Remove what a kube-proxy that no longer runs has left on this node, in all of its modes, and nothing of dsproxy's
    #[arg(long)]
    kube_proxy: bool,
}

/// The form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Columns, for people.
    Table,
    /// JSON, for programs.
    Json,
}

impl Arguments {
    /// Does what the command line says.
    ///
    /// # Errors
    ///
    /// With everything a user needs to know in one line.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run(flags) => app::run(&flags),
            Command::Status(arguments) => inspect::print(&arguments, inspect::status),
            Command::Services(FlowArguments { filter, inspect }) => {
                inspect::print(&inspect, |live| inspect::services(live, &filter))
            }
            Command::Backends(RowArguments { filter, inspect }) => {
                inspect::print(&inspect, |live| inspect::backends(live, &filter))
            }
            Command::Connections(FlowArguments { filter, inspect }) => {
                inspect::print(&inspect, |live| inspect::connections(live, &filter))
            }
            Command::Top(arguments) => inspect::top::top(&arguments),
            Command::Trace(arguments) => {
                inspect::print(&arguments.inspect, |live| inspect::trace::trace(live, &arguments))
            }
            Command::Events(arguments) => inspect::events::events(&arguments),
            Command::Dump(arguments) => inspect::dump::dump(&arguments),
            Command::Cleanup(CleanupArguments { bpffs: _, kube_proxy: true }) => app::cleanup_kube_proxy(),
            Command::Cleanup(CleanupArguments { bpffs, kube_proxy: false }) => app::cleanup(&bpffs.directory),
            Command::Completions(arguments) => {
                manual::completions(&arguments);
                Ok(())
            }
            Command::Man(arguments) => manual::manual(&arguments),
            Command::Reference => reference::print(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn run_needs_no_flag_but_a_source() {
        let arguments = Arguments::try_parse_from(["dsproxy", "run", "--manifests", "examples"]).expect("valid");
        let Command::Run(_) = arguments.command else { panic!("run") };
        Arguments::try_parse_from(["dsproxy", "run", "--manifests", "a", "--kubeconfig", "b"])
            .expect_err("two sources");
    }

    #[test]
    fn watching_is_every_two_seconds_unless_said_otherwise() {
        for (arguments, expected) in
            [(&[][..], None), (&["--watch"], Some(2_000)), (&["-w", "0.5"], Some(500)), (&["--watch=10"], Some(10_000))]
        {
            let all = ["dsproxy", "status"].iter().chain(arguments);
            let Command::Status(InspectArguments { watch, .. }) =
                Arguments::try_parse_from(all).expect("valid").command
            else {
                panic!("status")
            };
            assert_eq!(watch, expected.map(Duration::from_millis), "{arguments:?}");
        }
        for wrong in ["0", "-1", "soon", "NaN", "inf", "86400.5", "1e19", "1e99"] {
            Arguments::try_parse_from(["dsproxy", "status", &format!("--watch={wrong}")]).expect_err(wrong);
            Arguments::try_parse_from(["dsproxy", "top", &format!("--interval={wrong}")]).expect_err(wrong);
        }
        assert_eq!(seconds("86400"), Ok(LONGEST_INTERVAL));
        assert_eq!(seconds("1e19"), Err("must be a day at most, 86400 seconds".to_owned()));
    }

    #[test]
    fn a_bad_cidr_names_the_flag_and_the_value() {
        let error =
            Arguments::try_parse_from(["dsproxy", "run", "--cluster-cidr", "10.0.0.1/8"]).expect_err("host bits");
        let text = error.to_string();
        assert!(text.contains("--cluster-cidr") && text.contains("10.0.0.1/8"), "{text}");
    }
}

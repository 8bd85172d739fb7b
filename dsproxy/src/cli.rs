//! The command line: subcommands and flags, and nothing that acts on them.
//!
//! Flags that kube-proxy has carry its names and meanings.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    app,
    cluster_cidr::ClusterCidrs,
    datapath::{attach::AttachMode, bpffs},
    inspect, log_level,
    maps::Capacities,
};

/// A dual-stack kube-proxy replacement with an eBPF data path.
#[derive(Debug, Parser)]
#[command(name = "dsproxy", version, max_term_width = 120)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep the data path of this node equal to the cluster's Services
    Run(Box<RunArguments>),
    /// What is attached where, how full the maps are, what became of packets
    Status(InspectArguments),
    /// The Services in the maps, with their endpoints and traffic
    Services(InspectArguments),
    /// The endpoints in the maps
    Backends(InspectArguments),
    /// The connections in the maps
    Connections(InspectArguments),
    /// Remove programs, maps and pins; connections through Services end
    Cleanup(CleanupArguments),
}

/// What `dsproxy run` is told.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// Reach the API server as this kubeconfig says; without it, as a pod does
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,

    /// Take Services and EndpointSlices from the manifests in this directory, with no cluster at all
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// The name of this node's Node object, when it is not the host's name in lower case
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// The addresses of the cluster's pods: one CIDR, or one of each family
    #[arg(long, value_name = "V4[,V6]", value_parser = ClusterCidrs::parse)]
    pub cluster_cidr: Option<ClusterCidrs>,

    /// The devices towards other nodes and the world, instead of those that are found
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub node_devices: Vec<String>,

    /// The host sides of pods' interfaces, instead of those that are found
    #[arg(long, value_name = "GLOB,...", value_delimiter = ',')]
    pub pod_interfaces: Vec<String>,

    /// How programs are attached: tcx where the kernel has it, or as told
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub attach: AttachMode,

    /// Where /healthz and /livez are served; [::] stands for all addresses of both families
    #[arg(long, value_name = "HOST:PORT", default_value = "[::]:10256")]
    pub healthz_bind_address: SocketAddr,

    /// Where /metrics is served
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: SocketAddr,

    /// Where pins are.
    #[command(flatten)]
    pub bpffs: BpffsArgument,

    /// How large the maps are made.
    #[command(flatten)]
    pub sizes: SizeArguments,

    /// The form of the log on standard error
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub log_format: LogFormat,

    /// What is logged: error, warn, info, debug, trace, or a list of targets and levels
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = log_level::parse)]
    pub log_level: String,
}

/// Where pins are.
#[derive(Clone, Debug, Args)]
pub struct BpffsArgument {
    /// The BPF file system for pinned maps and links; mounted there if it is not
    #[arg(long = "bpffs", value_name = "DIR", default_value = bpffs::DEFAULT_DIRECTORY)]
    pub directory: PathBuf,
}

/// How large the maps are made. Maps that are there keep their size.
#[derive(Clone, Debug, Args)]
pub struct SizeArguments {
    /// Service ports
    #[arg(long, value_name = "N", default_value_t = Capacities::default().services, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_services: u32,
    /// Frontends of each family: an address, port and protocol each
    #[arg(long, value_name = "N", default_value_t = Capacities::default().frontends, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_frontends: u32,
    /// Backends of each family: an endpoint of a service port each
    #[arg(long, value_name = "N", default_value_t = Capacities::default().backends, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_backends: u32,
    /// Slots of each family: one a backend, or a hundred or more in a Maglev table
    #[arg(long, value_name = "N", default_value_t = Capacities::default().slots, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_slots: u32,
    /// Connections of each family; when the table is full, the least recently used gives way
    #[arg(long, value_name = "N", default_value_t = Capacities::default().connections, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
}

impl SizeArguments {
    /// The sizes.
    pub fn capacities(&self) -> Capacities {
        let Self { max_services, max_frontends, max_backends, max_slots, max_connections } = *self;
        Capacities {
            services: max_services,
            frontends: max_frontends,
            backends: max_backends,
            slots: max_slots,
            connections: max_connections,
        }
    }
}

/// What the commands that look at the maps are told.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// Where pins are.
    #[command(flatten)]
    pub bpffs: BpffsArgument,

    /// The form of the output
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub output: OutputFormat,
}

#[derive(Debug, Args)]
struct CleanupArguments {
    #[command(flatten)]
    bpffs: BpffsArgument,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
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
            Command::Run(arguments) => app::run(*arguments),
            Command::Status(arguments) => inspect::print(&arguments, inspect::status),
            Command::Services(arguments) => inspect::print(&arguments, inspect::services),
            Command::Backends(arguments) => inspect::print(&arguments, inspect::backends),
            Command::Connections(arguments) => inspect::print(&arguments, inspect::connections),
            Command::Cleanup(CleanupArguments { bpffs }) => app::cleanup(&bpffs.directory),
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
        let Command::Run(run) = arguments.command else { panic!("run") };
        assert_eq!(run.sizes.capacities(), Capacities::default());
        assert_eq!(run.attach, AttachMode::Auto);
        Arguments::try_parse_from(["dsproxy", "run", "--manifests", "a", "--kubeconfig", "b"])
            .expect_err("two sources");
    }

    #[test]
    fn a_bad_cidr_names_the_flag_and_the_value() {
        let error =
            Arguments::try_parse_from(["dsproxy", "run", "--cluster-cidr", "10.0.0.1/8"]).expect_err("host bits");
        let text = error.to_string();
        assert!(text.contains("--cluster-cidr") && text.contains("10.0.0.1/8"), "{text}");
    }
}

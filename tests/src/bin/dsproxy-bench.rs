//! `dsproxy-bench`: measures, compares with what is aimed at, and says so. Run by `cargo xtask bench`.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand, ValueEnum};
use dsproxy_tests::bench::{
    Comparison, DaemonAims, Effort, Figure, Machine, RateEffort, Report, Source, TrafficEffort, account_for_start,
    cold_start, measure_account, measure_control_plane, measure_daemon, measure_fast_path, measure_packets,
    measure_rate, measure_scale, measure_start, measure_traffic, write_documents,
};

#[derive(Parser)]
#[command(name = "dsproxy-bench", about = "Measures dsproxy: what a packet costs, and what a change costs. Needs root")]
struct Arguments {
    /// Write machine and figures to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measure this alone; may be given more than once.
    #[arg(long)]
    only: Vec<Part>,
    /// Measure only the ways of packets with this in their name.
    #[arg(long, default_value = "")]
    filter: String,
    /// How many rounds; each measures everything once. Without it, 21, and 5 of traffic and the control plane.
    #[arg(long)]
    rounds: Option<u32>,
    /// How many packets for one measurement.
    #[arg(long, default_value_t = 200_000)]
    repeat: u32,
    /// How many packets are forwarded for one measurement of a rate.
    #[arg(long, default_value_t = 500_000)]
    frames: u32,
    /// How many milliseconds traffic flows for one measurement.
    #[arg(long, default_value_t = 200)]
    window: u64,
    /// With how many Services traffic is measured.
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000")]
    services: Vec<u32>,
    #[command(subcommand)]
    child: Option<Child>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Each way of a packet through the programs.
    Packets,
    /// Each way of a packet past the stack.
    FastPath,
    /// Where the time of a packet goes: its instructions and calls, counted, and what a call costs.
    Account,
    /// The same ways among 10 to 100,000 Services.
    Scale,
    /// The daemon itself with many Services: its start, its memory, and a change until a client sees it.
    Daemon,
    /// Bringing Services into the maps, without API server and packets.
    ControlPlane,
    /// Real sockets, through dsproxy and through kube-proxy-shaped rules.
    Traffic,
    /// Packets made by the kernel itself, forwarded as fast as one processor can.
    Rate,
    /// The same with packets of the kernel's packet generator, which has to be there; only if asked for.
    Pktgen,
}

#[derive(Subcommand)]
enum Child {
    /// Say what changed from one run to another by more than they vary themselves.
    Compare {
        /// What `--json` wrote in the older run.
        old: PathBuf,
        /// What it wrote in the newer run.
        new: PathBuf,
    },
    /// Draw plots and write the tables of docs/benchmarks.md.
    Plots {
        /// What `--json` wrote, in one run or several.
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// Where benchmarks.md is, and plots go.
        #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"))]
        docs: PathBuf,
    },
    /// Bring Services into the maps once, in this process, and print what it took.
    #[command(hide = true)]
    ColdStart {
        #[arg(long)]
        services: u32,
        #[arg(long)]
        endpoints: u32,
    },
    /// Go through the same step by step, and print what each takes.
    #[command(hide = true)]
    AccountForStart {
        #[arg(long)]
        services: u32,
        #[arg(long)]
        endpoints: u32,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match &arguments.child {
        None => measure(arguments),
        Some(Child::ColdStart { services, endpoints }) => {
            serde_json::to_writer(std::io::stdout(), &cold_start(*services, *endpoints)?).context("print the result")
        }
        Some(Child::AccountForStart { services, endpoints }) => {
            let account = account_for_start(*services, *endpoints)?;
            serde_json::to_writer(std::io::stdout(), &account).context("print the result")
        }
        Some(Child::Compare { old, new }) => {
            print!("{}", Comparison::of(&read(old)?, &read(new)?));
            Ok(())
        }
        Some(Child::Plots { runs, docs }) => {
            let reports: Vec<Report> = runs.iter().map(|run| read(run)).collect::<anyhow::Result<_>>()?;
            for path in write_documents(&reports, docs)? {
                println!("wrote {}", path.display());
            }
            Ok(())
        }
    }
}

/// What `--json` wrote.
fn read(path: &Path) -> anyhow::Result<Report> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no run of this benchmark", path.display()))
}

fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { json, only, filter, rounds, repeat, frames, window, services, child: _ } = arguments;
    let machine = Machine::look()?;
    println!("{machine}\n");
    println!("{:<82} {:>8} {:>8}", "", "minimum", "median");
    // Few kernels have the generator.
    let wanted = |part| only.contains(&part) || (only.is_empty() && part != Part::Pktgen);
    let mut report = Report { machine, figures: Vec::new() };
    // Before this process is bound to one processor: children would inherit it, and the daemon is not bound either.
    let processes = rounds.unwrap_or(5);
    if wanted(Part::Daemon) {
        for (services, aims) in [(10_000, DaemonAims::LARGE), (50_000, DaemonAims::LARGEST)] {
            note(&mut report, measure_daemon(services, 10, processes, aims, |doing| eprintln!("{doing}"))?);
        }
    }
    if wanted(Part::ControlPlane) {
        for services in [10_000, 50_000] {
            note(&mut report, measure_control_plane(services, 10, processes)?);
            note(&mut report, measure_start(services, 10, processes)?);
        }
    }
    if wanted(Part::Traffic) {
        let effort = TrafficEffort {
            rounds: rounds.unwrap_or(5),
            window: Duration::from_millis(window),
            services: services.clone(),
        };
        note(&mut report, measure_traffic(&effort, |doing| eprintln!("{doing}"))?);
    }
    for (part, source) in [(Part::Rate, Source::LiveFrames), (Part::Pktgen, Source::Pktgen)] {
        if wanted(part) {
            let effort =
                RateEffort { source, rounds: rounds.unwrap_or(5), packets: frames, services: services.clone() };
            note(&mut report, measure_rate(&effort, |doing| eprintln!("{doing}"))?);
        }
    }
    report.machine.pin()?;
    let effort = Effort { filter: &filter, rounds: rounds.unwrap_or(21), repeat };
    if wanted(Part::Packets) {
        note(&mut report, measure_packets(1_000, effort)?);
    }
    if wanted(Part::FastPath) {
        note(&mut report, measure_fast_path(1_000, effort)?);
    }
    if wanted(Part::Account) {
        note(&mut report, measure_account(1_000, effort)?);
    }
    if wanted(Part::Scale) {
        note(&mut report, measure_scale(&[10, 1_000, 10_000, 100_000], effort)?);
    }
    let (aims, met) = report.aims();
    if aims > 0 {
        println!("\n{met} of {aims} aims met");
    }
    if let Some(path) = json {
        let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        serde_json::to_writer_pretty(&mut file, &report).with_context(|| format!("write {}", path.display()))?;
        writeln!(file).with_context(|| format!("write {}", path.display()))?;
    }
    let ambiguous = report.ambiguous();
    if !ambiguous.is_empty() {
        bail!("more than one figure has each of these names: {ambiguous:?}");
    }
    Ok(())
}

fn note(report: &mut Report, figures: Vec<Figure>) {
    for figure in &figures {
        println!("{figure}");
    }
    report.figures.extend(figures);
}

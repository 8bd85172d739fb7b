//! `dsproxy-bench`: measures, compares with what is aimed at, and says so. Run by `cargo xtask bench`.

use std::{fs::File, io::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use dsproxy_tests::bench::{
    Effort, Figure, Machine, Report, cold_start, measure_control_plane, measure_packets, measure_scale,
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
    /// How many rounds; each measures everything once.
    #[arg(long, default_value_t = 21)]
    rounds: u32,
    /// How many packets for one measurement.
    #[arg(long, default_value_t = 200_000)]
    repeat: u32,
    #[command(subcommand)]
    child: Option<Child>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Each way of a packet through the programs.
    Packets,
    /// The same among 10 to 100,000 Services.
    Scale,
    /// Bringing Services into the maps.
    ControlPlane,
}

#[derive(Subcommand)]
enum Child {
    /// Bring Services into the maps once, in this process, and print what it took.
    #[command(hide = true)]
    ColdStart {
        #[arg(long)]
        services: u32,
        #[arg(long)]
        endpoints: u32,
    },
}

fn main() -> anyhow::Result<()> {
    let Arguments { json, only, filter, rounds, repeat, child } = Arguments::parse();
    if let Some(Child::ColdStart { services, endpoints }) = child {
        serde_json::to_writer(std::io::stdout(), &cold_start(services, endpoints)?).context("print the result")?;
        return Ok(());
    }
    let machine = Machine::look()?;
    println!("{machine}\n");
    println!("{:<82} {:>8} {:>8}", "", "minimum", "median");
    let wanted = |part| only.is_empty() || only.contains(&part);
    let mut report = Report { machine, figures: Vec::new() };
    // Before this process is bound to one processor: children would inherit it, and the daemon is not bound either.
    if wanted(Part::ControlPlane) {
        note(&mut report, measure_control_plane(10_000, 10, 5)?);
    }
    report.machine.pin()?;
    let effort = Effort { filter: &filter, rounds, repeat };
    if wanted(Part::Packets) {
        note(&mut report, measure_packets(1_000, effort)?);
    }
    if wanted(Part::Scale) {
        note(&mut report, measure_scale(&[10, 1_000, 10_000, 100_000], effort)?);
    }
    let (aims, met) = report.aims();
    println!("\n{met} of {aims} aims met");
    if let Some(path) = json {
        let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        serde_json::to_writer_pretty(&mut file, &report).with_context(|| format!("write {}", path.display()))?;
        writeln!(file).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn note(report: &mut Report, figures: Vec<Figure>) {
    for figure in &figures {
        println!("{figure}");
    }
    report.figures.extend(figures);
}

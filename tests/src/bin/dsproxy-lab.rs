//! `dsproxy-lab reap`: removes what labs of ended processes left behind. Used by `cargo xtask test`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dsproxy_tests::lab::{Extent, find_leftovers, remove_leftovers};

#[derive(Parser)]
#[command(about = "Looks after the labs of network namespaces")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Remove what labs left behind whose process has ended. Labs kept on purpose stay.
    Reap {
        /// Fail if there was anything to remove.
        #[arg(long)]
        expect_none: bool,
    },
}

fn main() -> ExitCode {
    let Arguments { command: Command::Reap { expect_none } } = Arguments::parse();
    let leftovers = find_leftovers(&Extent::Abandoned);
    for leftover in &leftovers {
        println!("left behind: {leftover}");
    }
    let failures = remove_leftovers(&Extent::Abandoned);
    for failure in &failures {
        eprintln!("{failure}");
    }
    if failures.is_empty() && (leftovers.is_empty() || !expect_none) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

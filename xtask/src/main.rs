//! `cargo xtask`: everything a developer runs that is not plain cargo. This file only reads the command line.

mod bench;
mod cargo;
mod demo;
mod deploy_tools;
mod docs;
mod fuzz;
mod lint;
mod run;
mod setup;
mod soak;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cargo::Profile;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, build, show, test and measure dsproxy")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need and is missing; silent when nothing is.
    Setup,
    /// Build the optimised daemon, kernel programs inside, as target/release/dsproxy.
    Build,
    /// Show a dual-stack Service at work in network namespaces. Needs root.
    Demo(demo::Options),
    /// Check formatting and lints, of the kernel programs too.
    Lint,
    /// Run all tests. Needs root.
    Test(test::Options),
    /// Load, churn, restarts and outages, all at once, for half an hour. Needs root.
    Soak(soak::Options),
    /// Run tests on Debian's kernels 6.1 and 6.12, in an emulated machine.
    Vm(vm::Options),
    /// Measure; everything after `bench` goes to dsproxy-bench, but for `all`, which repeats everything that docs/benchmarks.md has, `rate` and
    /// `pktgen`. Needs root.
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of dsproxy-bench; --help lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Make the documents anew that are made from the code.
    Docs,
    /// Throw garbled packets and text, by the million.
    Fuzz {
        #[command(subcommand)]
        target: fuzz::Target,
    },
}

fn main() -> ExitCode {
    let Arguments { task } = Arguments::parse();
    match setup::ensure().and_then(|()| perform(task)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Setup => Ok(()),
        Task::Build => cargo::build_daemon(Profile::Release),
        Task::Demo(options) => demo::run(&options),
        Task::Lint => lint::run(),
        Task::Test(options) => test::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Vm(options) => vm::run(&options),
        Task::Bench { arguments } => bench::run(&arguments),
        Task::Docs => docs::run(),
        Task::Fuzz { target } => fuzz::run(&target),
    }
}

//! `cargo xtask bench`: builds the daemon and the benchmarks optimised, and hands the arguments on.
//!
//! `bench rate` is `bench --only rate`. `bench all` is all that docs/benchmarks.md has: the benchmark, then the packet generator, then the plots
//! and tables of both.
//!
//! `bench pktgen` takes a kernel with a packet generator. Where this machine's has none the benchmark runs on one of Debian's, in an
//! emulated machine: its figures say how the ways of a packet compare, and not what they cost.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, bail};

use crate::{
    cargo::{self, Profile},
    run, setup, vm,
};

/// What repeats everything.
const ALL: &str = "all";

/// A part that may be asked for by its name alone.
const RATE: &str = "rate";

/// The part that asks for the generator.
const PKTGEN: &str = "pktgen";

/// Where the generator's files are once its module is loaded.
const GENERATOR: &str = "/proc/net/pktgen";

/// What an emulated machine measures in a few minutes; what is given after it counts.
const IN_THE_GUEST: [&str; 6] = ["--rounds", "3", "--frames", "20000", "--services", "10"];

pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    run::pass_on_signals()?;
    match arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some((ALL, arguments)) => return all(arguments),
        Some((PKTGEN, arguments)) => return pktgen(arguments),
        Some((RATE, arguments)) => return run(&[&["--only", RATE].map(str::to_owned), arguments].concat()),
        _ => {}
    }
    // What only reads earlier runs needs no daemon.
    if !matches!(arguments.first().map(String::as_str), Some("compare" | "plots")) {
        cargo::build_daemon(Profile::Release)?;
    }
    bench(arguments)
}

fn bench(arguments: &[String]) -> anyhow::Result<()> {
    let mut command = cargo::cargo(&["run", "--release", "-p", "dsproxy-tests", "--bin", "dsproxy-bench", "--"]);
    run::succeed(command.args(arguments))
}

/// Measures everything, and writes the document anew. `arguments` are those of the benchmark, not of the generator.
fn all(arguments: &[String]) -> anyhow::Result<()> {
    let directory = cargo::target_directory()?.join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let (json, arguments) = take_json(arguments)?;
    let in_directory = |name: &str| directory.join(name).display().to_string();
    let [json, generated] = [json.unwrap_or_else(|| in_directory("run.json")), in_directory("pktgen.json")];
    let into = |file: &str| ["--json".to_owned(), file.to_owned()];
    cargo::build_daemon(Profile::Release)?;
    bench(&[&into(&json)[..], &arguments].concat())?;
    pktgen(&into(&generated)).with_context(|| {
        format!("the rest is measured: after `bench pktgen --json {generated}`, write both by `bench plots {json} {generated}`")
    })?;
    bench(&["plots".to_owned(), json, generated])
}

fn pktgen(arguments: &[String]) -> anyhow::Result<()> {
    let only = ["--only", PKTGEN].map(str::to_owned);
    if has_generator() {
        cargo::build_daemon(Profile::Release)?;
        return bench(&[&only[..], arguments].concat());
    }
    println!(
        "This machine's kernel has no pktgen: measuring on Debian's 6.12, emulated. Compare figures with each other only."
    );
    let (json, arguments) = take_json(arguments)?;
    // What is measured is the kernel's work, and the kernel programs are optimised in either profile.
    let profile = Profile::Development;
    cargo::build_daemon(profile)?;
    let program = cargo::build_binary("dsproxy-bench", profile)?;
    let defaults = IN_THE_GUEST.map(str::to_owned);
    // The first of an option that is given twice would be an error.
    let defaults = defaults.chunks(2).filter(|option| !arguments.contains(&option[0])).flatten().cloned();
    let arguments: Vec<String> = only.into_iter().chain(defaults).chain(arguments.iter().cloned()).collect();
    let report = vm::bench(vm::Series::Linux6_12, program, cargo::daemon(profile)?, &arguments)?;
    if let Some(path) = json {
        fs::write(&path, report).with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

fn has_generator() -> bool {
    let is_there = || Path::new(GENERATOR).exists();
    let load = |modprobe| Command::new(modprobe).arg(PKTGEN).output().is_ok();
    is_there() || (setup::program("modprobe").is_ok_and(load) && is_there())
}

/// Takes `--json FILE` out of `arguments`: the guest has no such file.
fn take_json(arguments: &[String]) -> anyhow::Result<(Option<String>, Vec<String>)> {
    let mut rest = arguments.to_vec();
    let Some(place) = rest.iter().position(|argument| argument == "--json") else { return Ok((None, rest)) };
    if place + 1 == rest.len() {
        bail!("--json takes the name of a file");
    }
    let taken: Vec<String> = rest.drain(place..place + 2).collect();
    Ok((taken.into_iter().nth(1), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_for_json_is_the_hosts() {
        let arguments = ["--rounds", "1", "--json", "x.json"].map(str::to_owned);
        let (json, rest) = take_json(&arguments).expect("a file is named");
        assert_eq!((json.as_deref(), &rest[..]), (Some("x.json"), &arguments[..2]));
        assert!(take_json(&arguments[..3]).is_err());
    }
}

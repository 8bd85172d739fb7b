//! `cargo xtask vm`: the tests on other kernels than this machine's, in an emulated machine.
//!
//! Debian's kernels are booted with a file system of this machine's programs and libraries, the daemon and the tests. Nothing but
//! QEMU and the kernels' packages is needed, and no root beyond what installing them takes.

mod archive;
mod guest;
mod kernel;
mod root;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use self::guest::{Job, Lines, Outcome, Tests};
pub(crate) use self::kernel::Series;
use crate::{cargo, run, setup};

/// What the guest takes beside what every task needs.
const PACKAGES: [&str; 4] = ["qemu-system-x86", "busybox-static", "kmod", "binutils"];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// On which kernel; without it, on all of them.
    #[arg(long, value_name = "SERIES")]
    kernel: Vec<Series>,
    /// Which tests.
    #[arg(long, value_delimiter = ',', default_value = "smoke")]
    only: Vec<Suite>,
    /// How many minutes one of the test programs may take.
    #[arg(long, default_value_t = 30)]
    minutes: u16,
    /// What the test programs are called with: parts of tests' names, and options of the test harness.
    #[arg(last = true)]
    filters: Vec<String>,
}

/// Tests that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// Every program through the verifier.
    Load,
    /// Packets through the programs.
    Datapath,
    /// The programs at interfaces.
    Attach,
    /// The programs of sockets.
    Sockets,
    /// Real traffic through the daemon.
    Lab,
    /// The daemon as a process.
    Daemon,
    /// What says most of a kernel in three minutes: every program loaded, packets through some, of XDP as well, a socket's calls,
    /// attachment, and real traffic through the daemon, over a restart of it too.
    Smoke,
}

impl Suite {
    /// The runs of test programs, each with what narrows it down.
    fn programs(self) -> &'static [(&'static str, &'static [&'static str])] {
        match self {
            Self::Load => &[("datapath", &["verifier"]), ("sockets", &["verifier"])],
            Self::Datapath => &[("datapath", &[])],
            Self::Attach => &[("attach", &[])],
            Self::Sockets => &[("sockets", &[])],
            Self::Lab => &[("lab", &[])],
            Self::Daemon => &[("daemon", &[])],
            // One process loads its programs once, which takes longer than the tests.
            Self::Smoke => &[
                ("datapath", &["verifier"]),
                (
                    "datapath",
                    &["translate::", "reset::", "events::a_translation", "fast_path::a_", "fragments::a_masqueraded"],
                ),
                ("sockets", &["verifier"]),
                ("sockets", &["refuse::without"]),
                ("attach", &["clsact::", "tcx::"]),
                ("lab", &["sctp::", "connections_through_a_node_port"]),
            ],
        }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let started = Instant::now();
    run::pass_on_signals()?;
    let directory = prepare()?;
    let jobs = jobs(options);
    let programs = build(&jobs, &directory)?;
    if options.filters.is_empty() {
        each_filter_meets_a_test(&jobs, &programs)?;
    }
    let series = if options.kernel.is_empty() { &Series::ALL[..] } else { &options.kernel };
    let mut summary = String::new();
    let mut failed = Vec::new();
    for series in series {
        let began = Instant::now();
        match run_on(*series, &directory, &programs, &jobs) {
            Ok(outcomes) => {
                summary += &format!("Linux {series}, {} s\n", began.elapsed().as_secs());
                for (job, outcome) in jobs.iter().zip(&outcomes) {
                    summary += &format!("  {}{}\n", described(outcome), of(&job.filters));
                }
                if let Err(error) = judge(&jobs, &outcomes, !options.filters.is_empty()) {
                    failed.push(format!("Linux {series}: {error:#}"));
                }
            }
            Err(error) => failed.push(format!("Linux {series}: {error:#}")),
        }
        if run::interrupted() {
            bail!("interrupted");
        }
    }
    print!("\n{summary}");
    if !failed.is_empty() {
        bail!("FAILED after {} s: {}", started.elapsed().as_secs(), failed.join("; "));
    }
    println!("xtask vm: all tests passed ({} s)", started.elapsed().as_secs());
    Ok(())
}

/// Sees to what the guest takes, and returns the directory for its files.
fn prepare() -> anyhow::Result<PathBuf> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "the guest runs this machine's programs on Debian's amd64 kernels; this machine is {}",
            std::env::consts::ARCH
        );
    }
    setup::install(&PACKAGES)?;
    let directory = cargo::target_directory()?.join("vm");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    Ok(directory)
}

/// Runs the benchmark `program` beside `daemon` with `arguments` on a kernel of `series`, and returns what it has written in JSON.
pub(crate) fn bench(
    series: Series,
    program: PathBuf,
    daemon: PathBuf,
    arguments: &[String],
) -> anyhow::Result<Vec<u8>> {
    let directory = prepare()?;
    let name = "dsproxy-bench";
    let mut programs = vec![(name.to_owned(), program), ("dsproxy".to_owned(), daemon)];
    strip(&mut programs, &directory)?;
    let command = [&format!("{}/{name}", root::PROGRAMS), "--json", guest::OUTPUT];
    let command = command.into_iter().map(str::to_owned).chain(arguments.iter().cloned()).collect();
    let job = Job { name: name.to_owned(), filters: Vec::new(), command, patience: Duration::from_secs(60 * 60) };
    match &run_on(series, &directory, &programs, &[job])?[..] {
        [Outcome { status: 0, .. }] => {}
        outcomes => bail!("{}", outcomes.iter().map(described).collect::<Vec<_>>().join(", ")),
    }
    let output = lines(series, &directory).output;
    fs::read(&output).with_context(|| format!("read {}", output.display()))
}

/// The runs of test programs; with the caller's filters, one for each, so that one that matches nothing shows.
fn jobs(options: &Options) -> Vec<Job> {
    let programs = options.only.iter().flat_map(|suite| suite.programs());
    let runs = programs.flat_map(|(name, narrowed)| {
        let all = if options.filters.is_empty() {
            vec![narrowed.iter().map(|filter| (*filter).to_owned()).collect()]
        } else {
            one_by_one(options.filters.clone())
        };
        all.into_iter().map(|filters| (*name, filters))
    });
    runs.map(|(name, filters)| {
        let program = format!("{}/{name}", root::PROGRAMS);
        let threads = ["--test-threads".to_owned(), "2".to_owned()];
        Job {
            name: name.to_owned(),
            command: [program].into_iter().chain(threads).chain(filters.iter().cloned()).collect(),
            filters,
            patience: Duration::from_secs(60 * u64::from(options.minutes)),
        }
    })
    .collect()
}

/// Each filter alone, unless there are options of the test harness among them, which may have a word of their own.
fn one_by_one(filters: Vec<String>) -> Vec<Vec<String>> {
    if filters.is_empty() || filters.iter().any(|filter| filter.starts_with('-')) {
        return vec![filters];
    }
    filters.into_iter().map(|filter| vec![filter]).collect()
}

/// Builds the tests, the daemon and a later version of it.
fn build(jobs: &[Job], directory: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    cargo::build_daemons()?;
    let mut programs = cargo::build_tests(&names)?;
    // Beside each other, as tests of upgrades look for the later one.
    let daemon = cargo::daemon(cargo::Profile::Development)?;
    programs.extend(["dsproxy", "dsproxy-next-layout"].map(|name| (name.to_owned(), daemon.with_file_name(name))));
    strip(&mut programs, directory)?;
    Ok(programs)
}

/// Asks the programs, here, for the tests that each filter of a suite means.
fn each_filter_meets_a_test(jobs: &[Job], programs: &[(String, PathBuf)]) -> anyhow::Result<()> {
    for Job { name, filters, .. } in jobs {
        let program = programs.iter().find(|(program, _)| program == name).map(|(_, path)| path);
        let program = program.with_context(|| format!("{name} was not built"))?;
        for filter in filters {
            let output = Command::new(program).args(["--list", filter]).output();
            let output = output.with_context(|| format!("run {} --list", program.display()))?;
            if !lists_a_test(&String::from_utf8_lossy(&output.stdout)) {
                bail!("no test of {name} is called by {filter}, which is in a suite: it has another name now");
            }
        }
    }
    Ok(())
}

/// Whether the list that a test program prints has a test in it.
fn lists_a_test(list: &str) -> bool {
    list.lines().any(|line| line.ends_with(": test"))
}

/// Has `programs` be copies without what only a debugger reads.
fn strip(programs: &mut [(String, PathBuf)], directory: &Path) -> anyhow::Result<()> {
    for (name, path) in programs {
        let stripped = directory.join(&*name);
        setup::quietly(Command::new("strip").args(["--strip-debug", "-o"]).arg(&stripped).arg(&path))
            .with_context(|| format!("strip {}", path.display()))?;
        *path = stripped;
    }
    Ok(())
}

fn run_on(
    series: Series,
    directory: &Path,
    programs: &[(String, PathBuf)],
    jobs: &[Job],
) -> anyhow::Result<Vec<Outcome>> {
    let kernel = kernel::obtain(series, directory)?;
    println!("vm: booting {}", kernel.release);
    let files = directory.join(format!("{series}.cpio"));
    root::write(&files, &kernel, programs, jobs)?;
    guest::run(&kernel, &files, jobs, &lines(series, directory))
}

fn lines(series: Series, directory: &Path) -> Lines {
    Lines { report: directory.join(format!("{series}.report")), output: directory.join(format!("{series}.output")) }
}

/// Whether all of it went well, and each filter has met a test. The caller's own need not be in every program.
fn judge(jobs: &[Job], outcomes: &[Outcome], is_narrowed: bool) -> anyhow::Result<()> {
    let bad: Vec<String> = outcomes.iter().filter(|outcome| outcome.status != 0).map(described).collect();
    if !bad.is_empty() {
        bail!("{}", bad.join(", "));
    }
    let ran = |outcome: &Outcome| outcome.tests.is_some_and(|tests| tests.passed > 0);
    let tested: Vec<(&Job, bool)> = jobs.iter().zip(outcomes.iter().map(ran)).collect();
    let elsewhere = |job: &Job| is_narrowed && tested.iter().any(|(other, ran)| *ran && other.filters == job.filters);
    let empty = tested.iter().filter(|(job, ran)| !ran && !elsewhere(job));
    let empty: Vec<String> = empty.map(|(job, _)| format!("{}{}", job.name, of(&job.filters))).collect();
    if !empty.is_empty() {
        bail!("no test of {} was run: what it is called with has to be a part of a test's name", empty.join(", "));
    }
    Ok(())
}

/// What narrows a program down, for the eye.
fn of(filters: &[String]) -> String {
    if filters.is_empty() { String::new() } else { format!(" ({})", filters.join(" ")) }
}

fn described(outcome: &Outcome) -> String {
    let Outcome { name, status, tests } = outcome;
    match tests {
        Some(Tests { passed, failed, ignored }) => {
            format!("{name}: {passed} passed, {failed} failed, {ignored} ignored")
        }
        None if *status == 137 => format!("{name}: ended, for it took too long or all memory"),
        None => format!("{name}: ended with status {status}, without a word of its tests"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(only: Vec<Suite>, filters: &[&str]) -> Options {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Options { kernel: Vec::new(), only, minutes: 1, filters }
    }

    fn outcome(job: &Job, passed: u32) -> Outcome {
        Outcome { name: job.name.clone(), status: 0, tests: Some(Tests { passed, ..Tests::default() }) }
    }

    /// The verdict where so many tests of each job have passed.
    fn verdict(options: &Options, passed: &[u32]) -> anyhow::Result<()> {
        let jobs = jobs(options);
        assert_eq!(jobs.len(), passed.len(), "{jobs:?}");
        let outcomes: Vec<Outcome> = jobs.iter().zip(passed).map(|(job, passed)| outcome(job, *passed)).collect();
        judge(&jobs, &outcomes, !options.filters.is_empty())
    }

    #[test]
    fn nothing_run_is_a_failure() {
        let lab = options(vec![Suite::Lab], &[]);
        verdict(&lab, &[1]).expect("one test");
        verdict(&lab, &[0]).expect_err("no test");
        let jobs = jobs(&lab);
        judge(&jobs, &[Outcome { status: 101, ..outcome(&jobs[0], 1) }], false).expect_err("it failed");
    }

    #[test]
    fn a_filter_that_meets_no_test_is_a_failure() {
        assert!(lists_a_test("reset::a: test\nreset::b: test\n\n2 tests, 0 benchmarks\n"));
        assert!(!lists_a_test("\n0 tests, 0 benchmarks\n"));

        // The caller's own: in some program.
        let own = options(vec![Suite::Datapath, Suite::Lab], &["a::", "b::"]);
        verdict(&own, &[1, 0, 0, 1]).expect("each is in one of them");
        let error = verdict(&own, &[1, 0, 1, 0]).expect_err("one is in none").to_string();
        assert!(error.contains("b::") && !error.contains("a::"), "{error}");
        let with_options = options(vec![Suite::Lab], &["a::", "--skip", "b"]);
        verdict(&with_options, &[1]).expect("they are one");
    }
}

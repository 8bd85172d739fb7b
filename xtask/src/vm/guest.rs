//! One run of a guest: booted, watched, and asked how it went.
//!
//! The guest's console is this process's output. How each job ended comes by a second serial line, where nothing else writes,
//! and a run without its last word there has failed, whatever else was seen of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::kernel::Kernel;
use crate::run;

/// The guest's memory. The connection tables alone take 240 MB a daemon.
const MEMORY: &str = "4G";
const PROCESSORS: &str = "2";

/// How long a guest may take beside its jobs: it boots in ten seconds.
const BOOT: Duration = Duration::from_secs(120);

/// Something that the guest runs.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// One word.
    pub(super) name: String,
    /// What narrows it down.
    pub(super) filters: Vec<String>,
    /// The program, as the guest has it, and its arguments, none of which has a space.
    pub(super) command: Vec<String>,
    /// How long it may take.
    pub(super) patience: Duration,
}

impl Job {
    /// As `init.sh` reads it.
    pub(super) fn line(&self) -> String {
        let Self { name, filters: _, command, patience } = self;
        format!("{name} {} {}\n", patience.as_secs(), command.join(" "))
    }
}

/// How a job ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) name: String,
    /// As a shell has it.
    pub(super) status: u8,
    /// What the test harness says of its tests.
    pub(super) tests: Option<Tests>,
}

/// How many tests were run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tests {
    pub(super) passed: u32,
    pub(super) failed: u32,
    pub(super) ignored: u32,
}

/// The files that the guest writes to.
pub(super) struct Lines {
    /// How each job ended.
    pub(super) report: PathBuf,
    /// What a job has to hand over: the guest's `OUTPUT`.
    pub(super) output: PathBuf,
}

/// The device that a job hands something over by.
pub(super) const OUTPUT: &str = "/dev/ttyS2";

/// Boots `kernel` with the file system at `root`, and returns how each of `jobs` ended.
///
/// A kernel that stops before its first program is booted once more: the emulator now and then trips over code that a booting kernel
/// patches, long before anything of ours. One that stops later has failed.
pub(super) fn run(kernel: &Kernel, root: &Path, jobs: &[Job], lines: &Lines) -> anyhow::Result<Vec<Outcome>> {
    let (mut ended, mut report) = boot(kernel, root, jobs, lines)?;
    if stopped_in_boot(ended, &report) {
        println!(
            "vm: the guest's kernel stopped before its first program; its last words are above. Booting it once more"
        );
        (ended, report) = boot(kernel, root, jobs, lines)?;
    }
    judge(ended, report, jobs)
}

/// Whether the machine went off before it came to its first job.
fn stopped_in_boot(ended: Option<ExitStatus>, report: &Report) -> bool {
    ended.is_some_and(|status| status.success()) && !report.is_ready
}

/// One boot: how the emulator ended, unless it had to be ended, and what the guest has reported.
fn boot(kernel: &Kernel, root: &Path, jobs: &[Job], lines: &Lines) -> anyhow::Result<(Option<ExitStatus>, Report)> {
    let Lines { report, output } = lines;
    // What an earlier run has left must not be read as this one's.
    for file in [report, output] {
        fs::write(file, b"").with_context(|| format!("write {}", file.display()))?;
    }
    let ended = run::status_within(&mut machine(kernel, root, lines), limit(jobs))?;
    let text = fs::read_to_string(report).with_context(|| format!("read {}", report.display()))?;
    Ok((ended, parse(&text)?))
}

/// How long a guest may run.
fn limit(jobs: &[Job]) -> Duration {
    BOOT + jobs.iter().map(|job| job.patience).sum()
}

/// The outcomes of a run that came to its end.
fn judge(ended: Option<ExitStatus>, report: Report, jobs: &[Job]) -> anyhow::Result<Vec<Outcome>> {
    let Report { is_ready: _, outcomes, is_whole } = report;
    let unfinished = || jobs.get(outcomes.len()).map_or("its end", |job| job.name.as_str());
    match ended {
        None => bail!("the guest ran for more than {} s and was ended in {}", limit(jobs).as_secs(), unfinished()),
        Some(status) if !status.success() => bail!("the emulator failed with {status} in {}", unfinished()),
        Some(_) if !is_whole => bail!("the guest's kernel stopped in {}; its last words are above", unfinished()),
        Some(_) if outcomes.len() != jobs.len() => {
            bail!("the guest ran {} of {} programs", outcomes.len(), jobs.len())
        }
        Some(_) => Ok(outcomes),
    }
}

fn machine(kernel: &Kernel, root: &Path, lines: &Lines) -> Command {
    // A kernel that stumbles must not go on, and one that stops must end the emulator.
    let parameters = "console=ttyS0 quiet loglevel=4 oops=panic panic=-1 random.trust_cpu=on";
    let mut command = Command::new("qemu-system-x86_64");
    command
        // Whatever this machine's own kernel and processor are: no KVM.
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", PROCESSORS, "-m", MEMORY])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
        .arg("-serial")
        .arg(format!("file:{}", lines.report.display()))
        .arg("-serial")
        .arg(format!("file:{}", lines.output.display()))
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(root)
        .args(["-append", parameters]);
    command
}

/// What a guest says of its run.
#[derive(Debug, Default)]
struct Report {
    /// Whether it has come to its first job.
    is_ready: bool,
    outcomes: Vec<Outcome>,
    /// Whether it has said its last word.
    is_whole: bool,
}

fn parse(text: &str) -> anyhow::Result<Report> {
    let mut report = Report::default();
    for line in text.lines().map(str::trim) {
        match line {
            "ready" => {
                report.is_ready = true;
                continue;
            }
            "end" => {
                report.is_whole = true;
                break;
            }
            _ => {}
        }
        let mut words = line.splitn(3, ' ');
        let (Some(name), Some(status)) = (words.next(), words.next().and_then(|status| status.parse().ok())) else {
            bail!("the guest reported {line:?}, which means nothing");
        };
        report.outcomes.push(Outcome { name: name.to_owned(), status, tests: words.next().and_then(parse_tests) });
    }
    Ok(report)
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn parse_tests(summary: &str) -> Option<Tests> {
    let counts = summary.split_once(". ")?.1;
    let count = |what: &str| -> Option<u32> {
        counts.split(';').find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    Some(Tests { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_how_each_program_ended() {
        let report = "ready\r\n\
                      datapath 0 test result: ok. 110 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\r\n\
                      lab 101 test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 63 filtered out\r\n\
                      bench 0 \r\nend\r\n";
        let report = parse(report).expect("a report");
        assert!(report.is_ready && report.is_whole);
        let [datapath, lab, bench] = &report.outcomes[..] else { panic!("{report:?}") };
        assert_eq!(datapath.tests, Some(Tests { passed: 110, failed: 0, ignored: 1 }));
        assert_eq!((lab.status, lab.tests), (101, Some(Tests { passed: 3, failed: 2, ignored: 0 })));
        assert_eq!((bench.name.as_str(), bench.status, bench.tests), ("bench", 0, None));
    }

    #[test]
    fn a_report_without_its_end_is_not_whole() {
        let report = parse("ready\r\ndatapath 137 \r\n").expect("a report");
        assert_eq!((report.is_ready, report.outcomes.len(), report.is_whole), (true, 1, false));
        let stopped = judge(Some(ExitStatus::default()), report, &[]).expect_err("it stopped").to_string();
        assert!(stopped.contains("stopped"), "{stopped}");
        assert!(parse("nonsense\r\n").is_err());
    }

    #[test]
    fn a_guest_that_stops_in_its_boot_is_told_from_others() {
        let [silent, begun] = ["", "ready\r\n"].map(|text| parse(text).expect("a report"));
        let off = Some(ExitStatus::default());
        assert!(stopped_in_boot(off, &silent));
        assert!(!stopped_in_boot(off, &begun), "a job stopped it");
        assert!(!stopped_in_boot(None, &silent), "it hung, and was ended");
        let failed = Command::new("false").status().expect("it runs");
        assert!(!stopped_in_boot(Some(failed), &silent), "there was no machine");
    }
}

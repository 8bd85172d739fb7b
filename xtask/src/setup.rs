//! `cargo xtask setup`: what has to be on the machine before anything can be built, and how it gets there.
//!
//! The kernel programs need a compiler with `core` for the bpf target, under the rustup name `dsproxy-ebpf`,
//! and `bpf-linker` on an LLVM no older than the compiler's. Debian packages both halves; elsewhere a nightly
//! with `rust-src` serves. Prints what it installs and is silent when nothing is missing.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

const TOOLCHAIN: &str = "dsproxy-ebpf";
/// What the kernel programs are compiled for.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// Debian's compiler with a prebuilt `core` for the bpf target. Its root is the file system's `/usr`.
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-llvm"];
const COMPILER_ROOT: &str = "/usr";

const LINTER_PACKAGE: &str = "rust-web-clippy";

const LINKER_VERSION: [u32; 3] = [0, 13, 0];
const LINKER_LLVM: u32 = 22;
const LLVM_PACKAGE: &str = "llvm-22-dev";
const LLVM_ROOT: &str = "/usr/lib/llvm-22";

/// Says that the development files are there; the directory itself exists without them.
const LLVM_LIBRARY: &str = "/usr/lib/llvm-22/lib/libLLVM.so";

/// Programs from Debian packages that are used beside the compiler: (program, package).
const PROGRAMS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("iptables-legacy", "iptables"),
    ("cc", "gcc"),
    ("c++", "g++"),
];

/// Installs whatever is missing.
pub(crate) fn ensure() -> anyhow::Result<()> {
    ensure_programs()?;
    ensure_compiler()?;
    ensure_linker()
}

fn ensure_programs() -> anyhow::Result<()> {
    let missing: Vec<(&str, &str)> = PROGRAMS.into_iter().filter(|(program, _)| find(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    install(&packages).with_context(|| {
        let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
        format!("{} missing: install what your distribution calls {}", programs.join(", "), packages.join(", "))
    })
}

/// Makes the toolchain that `dsproxy/build.rs` compiles the kernel programs with.
fn ensure_compiler() -> anyhow::Result<()> {
    match &toolchain_root(TOOLCHAIN) {
        // Debian splits it into packages; one of them may be missing although the compiler runs.
        Some(root) if has_bpf_core(root) && has_packages() && root == Path::new(COMPILER_ROOT) => {
            return install(&COMPILER_PACKAGES);
        }
        Some(root) if has_bpf_core(root) || has_rust_source(root) => return Ok(()),
        _ => {}
    }
    if !has_bpf_core(Path::new(COMPILER_ROOT)) && has_packages() {
        install(&COMPILER_PACKAGES)?;
    }
    let root = if has_bpf_core(Path::new(COMPILER_ROOT)) {
        PathBuf::from(COMPILER_ROOT)
    } else if let Some(nightly) = nightly_with_source()? {
        nightly
    } else {
        bail!(
            "no compiler for {BPF_TARGET}. Either, on Debian 12 or later with its security archive:\n  \
             apt-get install --no-install-recommends {}\n\
             or, where rustup can download a nightly of LLVM {LINKER_LLVM} or older:\n  \
             rustup toolchain install nightly --component rust-src\n\
             then run `cargo xtask setup` again",
            COMPILER_PACKAGES.join(" ")
        )
    };
    println!("setup: linking {} as the rustup toolchain {TOOLCHAIN}", root.display());
    quietly(Command::new("rustup").args(["toolchain", "link", TOOLCHAIN]).arg(&root))
}

/// A compiler for the bpf target with the clippy that was built from the same source.
pub(crate) struct Linter {
    pub(crate) compiler: PathBuf,
    pub(crate) driver: PathBuf,
}

/// Finds the clippy of the toolchain that compiles the kernel programs, and installs it where that can be done.
pub(crate) fn ensure_linter() -> anyhow::Result<Linter> {
    let root = toolchain_root(TOOLCHAIN).context("the toolchain dsproxy-ebpf is gone; run `cargo xtask setup`")?;
    if root == Path::new(COMPILER_ROOT) && has_packages() {
        install(&[LINTER_PACKAGE])?;
    }
    let linter = Linter { compiler: root.join("bin/rustc"), driver: root.join("bin/clippy-driver") };
    if !linter.driver.is_file() || !has_bpf_core(&root) {
        bail!(
            "{} has no clippy-driver with a prebuilt core for {BPF_TARGET}; on Debian they are in the packages {} and {}",
            root.display(),
            LINTER_PACKAGE,
            COMPILER_PACKAGES.join(", ")
        );
    }
    Ok(linter)
}

fn ensure_linker() -> anyhow::Result<()> {
    if linker_version().is_some_and(|version| version >= LINKER_VERSION) {
        return Ok(());
    }
    if !Path::new(LLVM_LIBRARY).exists() {
        install(&[LLVM_PACKAGE]).with_context(|| {
            format!(
                "bpf-linker is missing, and so is LLVM {LINKER_LLVM} to build it with; \
                 install LLVM {LINKER_LLVM} with its development files, then run\n  \
                 LLVM_PREFIX=<its root> {}",
                linker_command()
            )
        })?;
    }
    println!("setup: installing bpf-linker {} with cargo, which takes a minute or two", dotted(LINKER_VERSION));
    let mut words = linker_command().split(' ').map(str::to_owned).collect::<Vec<_>>().into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    // Outside the workspace, whose configuration is meant for its own crates.
    quietly(command.args(words).env("LLVM_PREFIX", LLVM_ROOT).env_remove("RUSTC_BOOTSTRAP").current_dir("/"))
}

fn linker_command() -> String {
    let version = dotted(LINKER_VERSION);
    format!(
        "cargo install bpf-linker --version {version} --locked --force --no-default-features --features llvm-{LINKER_LLVM}"
    )
}

fn linker_version() -> Option<[u32; 3]> {
    let output = Command::new("bpf-linker").arg("--version").output().ok()?;
    parse_version(String::from_utf8_lossy(&output.stdout).split_whitespace().last()?)
}

/// Has apt learn what its archives offer.
pub(crate) fn update_package_lists() -> anyhow::Result<()> {
    quietly(Command::new("apt-get").args(["update", "-q"])).context("run `apt-get update` as root")
}

/// Installs those of `packages` that are missing, with apt-get.
pub(crate) fn install(packages: &[&str]) -> anyhow::Result<()> {
    if !has_packages() {
        bail!("this machine has no apt-get to install {} with", packages.join(", "));
    }
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let advice = || format!("run `apt-get install --no-install-recommends {}` as root", missing.join(" "));
    if !nix::unistd::geteuid().is_root() {
        bail!("{}", advice());
    }
    for package in &missing {
        println!("setup: installing the package {package}");
    }
    let apt_get = |arguments: &[&str]| {
        quietly(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments)).with_context(advice)
    };
    apt_get(&["update", "-q"])?;
    apt_get(&[&["install", "-q", "-y", "--no-install-recommends"][..], &missing[..]].concat())
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn has_packages() -> bool {
    find("apt-get").is_some()
}

/// The root of the rustup toolchain `name`, when it exists and its compiler runs.
fn toolchain_root(name: &str) -> Option<PathBuf> {
    let output = Command::new("rustup").args(["run", name, "rustc", "--print", "sysroot"]).output().ok()?;
    let root = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    // A linked toolchain is a symbolic link.
    output.status.success().then(|| root.canonicalize().unwrap_or(root))
}

fn has_bpf_core(root: &Path) -> bool {
    let libraries = root.join("lib/rustlib").join(BPF_TARGET).join("lib");
    fs::read_dir(libraries).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-")))
    }) && root.join("bin/rustc").is_file()
}

fn has_rust_source(root: &Path) -> bool {
    root.join("lib/rustlib/src/rust/library/core").is_dir()
}

/// A nightly that can build `core` itself and whose LLVM the linker can read.
fn nightly_with_source() -> anyhow::Result<Option<PathBuf>> {
    let output = Command::new("rustup")
        .args(["toolchain", "list"])
        .output()
        .context("run rustup, which the build of the kernel programs needs; see https://rustup.rs")?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    for name in names.lines().filter_map(|line| line.split_whitespace().next()) {
        if !name.starts_with("nightly") {
            continue;
        }
        let Some(root) = toolchain_root(name) else { continue };
        if has_rust_source(&root) && llvm_version(name).is_some_and(|version| version <= LINKER_LLVM) {
            return Ok(Some(root));
        }
    }
    Ok(None)
}

fn llvm_version(toolchain: &str) -> Option<u32> {
    let output = Command::new("rustup").args(["run", toolchain, "rustc", "-vV"]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()?.parse().ok()
}

/// Where `program` is, which something has installed before.
pub(crate) fn program(program: &str) -> anyhow::Result<PathBuf> {
    find(program).with_context(|| format!("there is no program {program} in the PATH"))
}

/// Where `program` is, looked for where root's programs are too.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Runs `command`; what it prints is shown only if it fails.
pub(crate) fn quietly(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn parse_version(text: &str) -> Option<[u32; 3]> {
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

fn dotted(version: [u32; 3]) -> String {
    version.map(|number| number.to_string()).join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(parse_version("0.9.14") < parse_version("0.13.0"));
        assert_eq!(parse_version("0.13.0"), Some(LINKER_VERSION));
        assert_eq!(parse_version("0.13"), None);
    }

    #[test]
    fn programs_are_found_in_the_path() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}

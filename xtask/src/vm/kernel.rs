//! Debian's kernels: which the package lists offer, and one of them unpacked below `target/vm`.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::setup;

/// A long-term series of Linux that the guest may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// Of Debian 12.
    #[value(name = "6.1")]
    Linux6_1,
    /// Of Debian 13, and among the security updates of Debian 12.
    #[value(name = "6.12")]
    Linux6_12,
}

impl Series {
    pub(crate) const ALL: [Self; 2] = [Self::Linux6_1, Self::Linux6_12];

    fn number(self) -> &'static str {
        match self {
            Self::Linux6_1 => "6.1",
            Self::Linux6_12 => "6.12",
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.number())
    }
}

/// A kernel, unpacked.
#[derive(Debug)]
pub(super) struct Kernel {
    /// What `uname -r` prints under it.
    pub(super) release: String,
    /// What is booted.
    pub(super) image: PathBuf,
    /// Its modules, with their index.
    pub(super) modules: PathBuf,
}

/// The newest kernel of `series` that the package lists offer, downloaded below `directory` unless it is there.
pub(super) fn obtain(series: Series, directory: &Path) -> anyhow::Result<Kernel> {
    let package = match newest(series, &offered(series)?) {
        Some(package) => package,
        None => {
            setup::update_package_lists()?;
            newest(series, &offered(series)?).with_context(|| {
                format!(
                    "the package lists offer no {}: add an archive that does to the sources of apt (Debian 12 has 6.1, \
                     its security archive 6.12) and run `apt-get update`",
                    pattern(series)
                )
            })?
        }
    };
    let unpacked = directory.join(&package);
    // Its index is made last, so what was interrupted is begun anew.
    if let Ok(kernel) = find(&unpacked)
        && kernel.modules.join(INDEX).is_file()
    {
        return Ok(kernel);
    }
    println!("vm: downloading {package}");
    let downloads = directory.join("download");
    for directory in [&unpacked, &downloads] {
        empty(directory)?;
    }
    setup::quietly(Command::new("apt-get").args(["download", "-q", &package]).current_dir(&downloads))
        .with_context(|| format!("download {package}; `apt-get update` if the package lists are old"))?;
    let package_file = only_entry(&downloads)?;
    setup::quietly(Command::new("dpkg").arg("-x").arg(&package_file).arg(&unpacked))
        .with_context(|| format!("unpack {}", package_file.display()))?;
    fs::remove_dir_all(&downloads).with_context(|| format!("remove {}", downloads.display()))?;
    let kernel = find(&unpacked)?;
    setup::quietly(Command::new(setup::program("depmod")?).arg("-b").arg(&unpacked).arg(&kernel.release))
        .with_context(|| format!("make the index of the modules of {package}"))?;
    Ok(kernel)
}

/// The index of modules by what they are asked for by.
const INDEX: &str = "modules.alias.bin";

fn pattern(series: Series) -> String {
    format!("linux-image-{series}.*-cloud-amd64")
}

/// The names of packages that start as those of `series` do.
fn offered(series: Series) -> anyhow::Result<Vec<String>> {
    let output = Command::new("apt-cache")
        .args(["pkgnames", &format!("linux-image-{series}.")])
        .output()
        .context("run apt-cache, which tells the kernels that Debian offers")?;
    if !output.status.success() {
        bail!("apt-cache failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// The newest signed kernel for virtual machines among `packages`.
fn newest(series: Series, packages: &[String]) -> Option<String> {
    let prefix = format!("linux-image-{series}.");
    let version = |name: &str| -> Option<Vec<u32>> {
        let version = name.strip_prefix(&prefix)?.strip_suffix("-cloud-amd64")?;
        let numbers = version.split(|character: char| !character.is_ascii_digit());
        Some(numbers.filter_map(|number| number.parse().ok()).collect())
    };
    packages.iter().filter_map(|name| Some((version(name)?, name))).max().map(|(_, name)| name.clone())
}

/// The kernel in an unpacked package.
fn find(unpacked: &Path) -> anyhow::Result<Kernel> {
    let modules = only_entry(&unpacked.join("lib/modules"))?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let image = unpacked.join("boot").join(format!("vmlinuz-{release}"));
    if !image.is_file() {
        bail!("{} has no kernel image {}", unpacked.display(), image.display());
    }
    Ok(Kernel { release, image, modules })
}

fn only_entry(directory: &Path) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("read the directory {}", directory.display()))?;
    let paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    match <[PathBuf; 1]>::try_from(paths) {
        Ok([path]) => Ok(path),
        Err(paths) => bail!("{} should hold one entry, and holds {}", directory.display(), paths.len()),
    }
}

fn empty(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", directory.display()));
        }
        _ => {}
    }
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_signed_kernel_is_taken() {
        let packages = [
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.100+deb12-cloud-amd64",
            "linux-image-6.12.118+deb12-cloud-amd64-unsigned",
            "linux-image-6.12.118+deb12-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
        ]
        .map(str::to_owned);
        let newest = |series| newest(series, &packages);
        assert_eq!(newest(Series::Linux6_12).as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest(Series::Linux6_1).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
    }
}

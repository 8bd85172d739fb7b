//! Services, EndpointSlices, the own Node and ServiceCIDRs from a Kubernetes API server, by list and watch.
//!
//! It does not know what the objects are for. While the server is away nothing is sent, so whatever was
//! built from the last state stays.
//!
//! kube's watcher lists and watches. Around it stands what it leaves to others: `answers` sees the responses
//! on their way to it, for it tells nobody that a broken watch works again, waits for ever for an answer, and
//! restarts a watch that is ended at once without a pause; `watch` backs off after its errors, and makes a new
//! one when the version to watch from is lost, for it tries a version that is refused with HTTP 410 for ever;
//! `object` is what it carries, small and tolerant; `known` lets the last good version of a malformed object
//! stay. A watch whose connection breaks is resumed by it without a word: it counts as a failure when it cannot
//! be resumed.

use std::{path::Path, path::PathBuf, sync::Arc, time::Duration};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use thiserror::Error;

use self::{health::Health, watch::Watch};
use super::{EventSender, SourceStatus};
use crate::model::{EndpointSlice, Node, Service, ServiceCidr};

mod answers;
mod error;
mod health;
mod known;
mod object;
mod watch;

/// How long the source waits for what.
#[derive(Clone, Debug)]
pub struct Pace {
    /// The first delay before a retry; it doubles with each failure in a row, and has jitter.
    pub first_retry: Duration,
    /// The longest delay while the server cannot be reached. Trying costs the server nothing then.
    pub longest_retry_unreachable: Duration,
    /// The longest delay while the server refuses, unless it asks for more.
    pub longest_retry_refused: Duration,
    /// How long the server may take to answer a list, or to start a watch.
    pub answer: Duration,
    /// How long a watch is asked to last, in whole seconds. The server then ends it and a new one follows.
    /// A watch that is silent for 5 seconds longer is given up: its connection died without a word.
    pub watch: Duration,
    /// A watch that the server ends sooner than this, and without a word, is a failure.
    pub shortest_watch: Duration,
    /// How long until a kind that the server does not have, or keeps from us, is asked for again, where nothing depends
    /// on it.
    pub withheld: Duration,
    /// The number of objects in one page of a list.
    pub page_size: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_retry: Duration::from_millis(200),
            longest_retry_unreachable: Duration::from_secs(5),
            longest_retry_refused: Duration::from_secs(30),
            answer: Duration::from_secs(60),
            watch: Duration::from_secs(150),
            shortest_watch: Duration::from_secs(1),
            withheld: Duration::from_secs(60),
            page_size: 500,
        }
    }
}

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

/// A client for the API server that `kubeconfig` names, else for the cluster this process is a pod of, else
/// for the one in `KUBECONFIG`. No connection is made yet.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    connect_to(None, kubeconfig).await
}

/// [`connect`] to the server at the URL `master`, with the credentials for the one that would be reached without it, if
/// there is one.
pub async fn connect_to(master: Option<&str>, kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let Some(url) = master else { return client(find(kubeconfig).await?) };
    let parsed = url.parse::<http::Uri>().map_err(|source| ConnectError::Master { url: url.to_owned(), source })?;
    let mut config = match find(kubeconfig).await {
        Err(ConnectError::Nowhere) => Config::new(parsed.clone()),
        found => found?,
    };
    config.cluster_url = parsed;
    client(config)
}

async fn find(kubeconfig: Option<&Path>) -> Result<Config, ConnectError> {
    Ok(match kubeconfig {
        Some(path) => from_file(path).await?,
        None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            Config::incluster().map_err(ConnectError::InCluster)?
        }
        None => match std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            Some(path) => from_file(Path::new(&path)).await?,
            None => return Err(ConnectError::Nowhere),
        },
    })
}

async fn from_file(path: &Path) -> Result<Config, ConnectError> {
    let failed = |source| ConnectError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)
}

fn client(mut config: Config) -> Result<Client, ConnectError> {
    // Retries are ours: the client's own would hide a refusing server from the status.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(10));
    let url = config.cluster_url.to_string();
    Client::try_from(config).map_err(|source| ConnectError::Client { url, source: Box::new(source) })
}

/// Lists and watches for the proxy of the node `node` until nobody listens to `events` any more.
pub async fn run(client: Client, node: String, events: EventSender, status: Arc<SourceStatus>) {
    run_at(client, node, events, status, Pace::default()).await;
}

/// [`run`] with other waiting times.
pub async fn run_at(client: Client, node: String, events: EventSender, status: Arc<SourceStatus>, pace: Pace) {
    let health = Health::new(Arc::clone(&status));
    let services = Watch::<Service>::new(&client, &node, &events, &status, &health, &pace);
    let slices = Watch::<EndpointSlice>::new(&client, &node, &events, &status, &health, &pace);
    let nodes = Watch::<Node>::new(&client, &node, &events, &status, &health, &pace);
    let service_cidrs = Watch::<ServiceCidr>::new(&client, &node, &events, &status, &health, &pace);
    tokio::join!(services.run(), slices.run(), nodes.run(), service_cidrs.run());
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
            connect(Some(file.path())).await.expect("a client");
        }
    }

    #[tokio::test]
    async fn a_missing_kubeconfig_is_named_with_its_flag() {
        let Err(error) = connect(Some(Path::new("/nowhere/kubeconfig"))).await else {
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
        let error = connect(Some(file.path())).await.err().expect("an error");
        assert!(matches!(error, ConnectError::Kubeconfig { .. }), "{error}");
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }

    #[tokio::test]
    async fn a_certificate_authority_that_is_missing_is_named() {
        let file = kubeconfig("{server: 'https://192.0.2.1', certificate-authority: /nowhere/ca.crt}");
        let error = connect(Some(file.path())).await.err().expect("an error");
        assert!(error.to_string().contains("certificate authority"), "{error}");
    }
}

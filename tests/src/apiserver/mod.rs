//! An API server for tests: it lists and watches as the real one does, and fails as told.
//!
//! It knows nothing of the proxy. Whatever it is asked that it does not understand is refused and fails
//! the test, so that no test passes because something was quietly ignored.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

mod answer;
pub mod certificates;
mod connection;
mod faults;
pub mod network;
mod own;
mod request;
mod select;
mod store;
mod stream;

use self::{
    certificates::{Authority, Identity},
    store::Store,
    stream::OpenStreams,
};
pub use self::{
    faults::{Fault, Faults, Gone, Matching, Refusal},
    own::{NAME as OWN_NAME, NAMESPACE as OWN_NAMESPACE, objects as own_objects},
    request::{Request, Verb},
    store::Resource,
    stream::StreamAct,
};

/// The token that the server knows.
const TOKEN: &str = "the-token-of-the-tests";

/// The server, which listens until it is stopped or dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Bound to that address, and never listening: while the server is gone, clients are refused, and none gets its port for its own end of
    /// a connection.
    _claim: TcpSocket,
    listening: Option<Listening>,
}

struct Listening {
    listener: Arc<TcpListener>,
    accept: JoinHandle<()>,
    /// Turns true when all connections are to be reset.
    reset: watch::Sender<bool>,
}

/// What requests and tests see of one server.
struct Shared {
    store: Mutex<Store>,
    faults: Faults,
    requests: Mutex<Vec<Request>>,
    events: Mutex<Vec<Value>>,
    streams: OpenStreams,
    /// What clients without a certificate have to show.
    token: Mutex<String>,
    /// How connections are secured, if they are.
    tls: Mutex<Option<TlsAcceptor>>,
    /// Requests that were not understood.
    bewildering: Mutex<Vec<String>>,
    /// Moves with everything that a test may wait for.
    progress: watch::Sender<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn moved(&self) {
        self.progress.send_modify(|progress| *progress += 1);
    }
}

impl ApiServer {
    /// A server without objects but its own, on the IPv4 loopback address.
    pub async fn start() -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST.into()).await
    }

    /// A server without objects but its own, on some port of this address.
    pub async fn start_on(address: IpAddr) -> Self {
        let claim = match address {
            IpAddr::V4(_) => TcpSocket::new_v4(),
            IpAddr::V6(_) => TcpSocket::new_v6(),
        }
        .expect("a socket");
        claim.set_reuseaddr(true).expect("room for a listener beside it");
        claim.bind(SocketAddr::new(address, 0)).expect("a port");
        let address = claim.local_addr().expect("the address of the port");
        let mut server = Self {
            shared: Arc::new(Shared {
                store: Mutex::new(Store::new(1000)),
                faults: Faults::default(),
                requests: Mutex::default(),
                events: Mutex::default(),
                streams: OpenStreams::default(),
                token: Mutex::new(TOKEN.to_owned()),
                tls: Mutex::default(),
                bewildering: Mutex::default(),
                progress: watch::Sender::new(0),
            }),
            address,
            _claim: claim,
            listening: None,
        };
        server.restart().await;
        server
    }

    /// A kubeconfig that leads to the server.
    pub fn kubeconfig(&self) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
        });
        file.write_all(kubeconfig.to_string().as_bytes()).expect("write the kubeconfig");
        file
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes this token alone from now on.
    pub fn set_token(&self, token: &str) {
        token.clone_into(&mut *lock(&self.shared.token));
    }

    /// Secures the connections to come with the server's certificate, and takes clients with those of another authority.
    pub fn secure(&self, server: &Identity, clients: &Authority) {
        *lock(&self.shared.tls) = Some(certificates::acceptor(server, clients));
    }

    /// Stops listening and resets all connections. Objects can be changed meanwhile.
    pub async fn stop(&mut self) {
        let Some(Listening { listener, accept, reset }) = self.listening.take() else {
            return;
        };
        accept.abort();
        // Its end; a task that was aborted ends with an error.
        let _ = accept.await;
        // Closed alone it would go on to listen in every process that another test has just forked and that has not called exec(2).
        socket2::SockRef::from(&*listener).shutdown(Shutdown::Both).expect("listening ends");
        reset.send_replace(true);
        // Until the last connection has dropped its receiver.
        reset.closed().await;
    }

    /// Listens again, on the same port and with the same history.
    pub async fn restart(&mut self) {
        self.stop().await;
        let listener = Arc::new(TcpListener::bind(self.address).await.expect("listen"));
        let (reset, _) = watch::channel(false);
        let accept = connection::accept(Arc::clone(&listener), Arc::clone(&self.shared), reset.clone());
        self.listening = Some(Listening { listener, accept: tokio::spawn(accept), reset });
    }

    /// Listens again as a server that was restored from a backup: the same objects, a history that begins
    /// now, and versions from `first_version` on.
    pub async fn restart_with_other_history(&mut self, first_version: u64) {
        self.stop().await;
        lock(&self.shared.store).begin_other_history(first_version);
        self.restart().await;
    }

    /// Creates or changes an object and returns its version.
    pub fn put(&self, object: Value) -> u64 {
        let version = lock(&self.shared.store).put(object);
        self.shared.moved();
        version
    }

    /// Deletes an object that exists.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) {
        lock(&self.shared.store).delete(resource, namespace, name);
        self.shared.moved();
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        lock(&self.shared.store).version()
    }

    /// Forgets what happened up to now: watches from before are too old.
    pub fn compact(&self) {
        lock(&self.shared.store).compact();
    }

    /// What goes wrong with requests to come.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Does something to the watches of a resource that are open now, after they were sent what happened
    /// up to now.
    pub fn act_on_watches(&self, resource: Resource, act: &StreamAct) {
        let acted_on = self.shared.streams.act(resource, act);
        assert!(acted_on > 0, "no watch of {resource:?} is open");
    }

    /// The requests up to now.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// How often something was asked for up to now.
    pub fn count(&self, verb: Verb, resource: Resource) -> usize {
        let asked = |request: &&Request| request.verb == verb && request.resource == resource;
        lock(&self.shared.requests).iter().filter(asked).count()
    }

    /// The Events that it was told of.
    pub fn events(&self) -> Vec<Value> {
        lock(&self.shared.events).clone()
    }

    /// Waits until a condition on this server holds.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let mut progress = self.shared.progress.subscribe();
        let holds = async {
            while !holds(self) {
                progress.changed().await.expect("the server is there");
            }
        };
        let within = std::time::Duration::from_secs(20);
        assert!(tokio::time::timeout(within, holds).await.is_ok(), "waited in vain for {what}");
    }

    /// Waits until all resources are watched.
    pub async fn until_watched(&self) {
        self.until("open watches", |server| Resource::ALL.iter().all(|&resource| server.open_watches(resource) > 0))
            .await;
    }

    /// Waits until a resource was watched this often.
    pub async fn until_watches(&self, resource: Resource, times: usize) {
        self.until("one more watch", |server| server.count(Verb::Watch, resource) >= times).await;
    }

    /// The number of watches of a resource that are open.
    pub fn open_watches(&self, resource: Resource) -> usize {
        self.shared.streams.count(resource)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(Listening { accept, reset, .. }) = self.listening.take() {
            accept.abort();
            reset.send_replace(true);
        }
        let bewildering = lock(&self.shared.bewildering);
        if !std::thread::panicking() {
            assert!(bewildering.is_empty(), "the server did not understand {bewildering:?}");
        }
    }
}

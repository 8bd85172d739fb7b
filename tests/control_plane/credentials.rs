//! Certificates and tokens are rotated while the source is at work: it goes by what is on disk, without a restart.

use std::{fs, net::Ipv4Addr, path::Path};

use dsproxy::source::{
    Delta, Trouble,
    kubernetes::{EarlierRun, Pace},
};
use dsproxy_tests::apiserver::{
    ApiServer, Resource, StreamAct, Verb,
    certificates::{Authority, Identity},
    network,
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    harness::{Source, pace},
    objects::{model_service, service},
};

/// A kubeconfig with its files: what the daemon has on disk.
struct Disk(TempDir);

impl Disk {
    /// A kubeconfig that leads to `server` and names `user`'s credentials.
    fn new(server: &ApiServer, user: &serde_json::Value) -> Self {
        let disk = Self(tempfile::tempdir().expect("a directory"));
        let address = server.address();
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{address}"), "certificate-authority": "ca.crt",
            }}],
            "users": [{"name": "test", "user": user}],
        });
        disk.write("kubeconfig", &kubeconfig.to_string());
        disk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Replaces a file in one step, as the kubelet does.
    fn write(&self, name: &str, content: &str) {
        let new = self.path().join("new");
        fs::write(&new, content).expect("write the file");
        fs::rename(&new, self.path().join(name)).expect("replace the file");
    }

    fn write_identity(&self, Identity { certificate, key }: &Identity) {
        self.write("client.crt", certificate);
        self.write("client.key", key);
    }

    async fn source(&self, pace: Pace) -> Source {
        Source::by(&self.path().join("kubeconfig"), EarlierRun::default(), pace).await
    }
}

/// A source that follows `server` with what is on `disk`, and has heard of the one Service that there is.
async fn follow(server: &ApiServer, disk: &Disk) -> Source {
    server.put(service("web", 1));
    let mut source = disk.source(pace()).await;
    assert_eq!(source.snapshot_of_services().await, [model_service("web", 1)]);
    source.snapshot_of_slices().await;
    source.until_connected().await;
    source
}

/// Asserts that the source has heard of what happens now.
async fn hears(source: &mut Source, server: &ApiServer, number: u8) {
    server.put(service("web", number));
    assert_eq!(source.service().await, Delta::Apply(model_service("web", number)));
    source.until_connected().await;
    assert_eq!(source.status.watches().iter().find_map(|watch| watch.trouble), None);
    assert_eq!(server.count(Verb::List, Resource::Services), 1, "the watch goes on where it was");
    source.assert_silent();
}

#[test]
fn a_server_with_a_certificate_of_another_authority_is_trusted_when_the_file_says_so() {
    network::run(|| async {
        let [old, new, clients] = ["old", "new", "clients"].map(Authority::new);
        let mut server = ApiServer::start().await;
        server.secure(&old.for_server(Ipv4Addr::LOCALHOST.into()), &clients);
        let disk = Disk::new(&server, &json!({"tokenFile": "token"}));
        disk.write("ca.crt", old.certificate());
        disk.write("token", "one");
        server.set_token("one");
        let mut source = follow(&server, &disk).await;

        server.secure(&new.for_server(Ipv4Addr::LOCALHOST.into()), &clients);
        server.restart().await;
        source.until_trouble("services", Some(Trouble::Certificate)).await;
        let error = source.status.last_error().expect("an error");
        assert!(error.contains("certificate authority"), "{error}");
        source.until_failed_again(5).await;
        source.assert_silent();
        // Half a file is no reason to forget what was known.
        disk.write("ca.crt", &new.certificate()[..100]);
        source.until_failed_again(5).await;
        source.until_trouble("services", Some(Trouble::Certificate)).await;
        disk.write("ca.crt", new.certificate());
        hears(&mut source, &server, 2).await;
    });
}

#[test]
fn a_clients_certificate_is_read_again() {
    network::run(|| async {
        let [authority, old, new] = ["servers", "old", "new"].map(Authority::new);
        let mut server = ApiServer::start().await;
        let identity = authority.for_server(Ipv4Addr::LOCALHOST.into());
        server.secure(&identity, &old);
        let disk = Disk::new(&server, &json!({"client-certificate": "client.crt", "client-key": "client.key"}));
        disk.write("ca.crt", authority.certificate());
        disk.write_identity(&old.for_client("node-a"));
        let mut source = follow(&server, &disk).await;

        server.secure(&identity, &new);
        server.restart().await;
        source.until_trouble("services", Some(Trouble::Certificate)).await;
        source.assert_silent();
        let rotated = new.for_client("node-a");
        // For a moment the key does not belong to the certificate.
        disk.write("client.crt", &rotated.certificate);
        source.until_failed_again(5).await;
        disk.write("client.key", &rotated.key);
        hears(&mut source, &server, 2).await;
    });
}

#[test]
fn a_token_is_read_again_as_soon_as_it_has_changed() {
    network::run(|| async {
        let [authority, clients] = ["servers", "clients"].map(Authority::new);
        let server = ApiServer::start().await;
        server.secure(&authority.for_server(Ipv4Addr::LOCALHOST.into()), &clients);
        let disk = Disk::new(&server, &json!({"tokenFile": "token"}));
        disk.write("ca.crt", authority.certificate());
        disk.write("token", "one");
        server.set_token("one");
        let mut source = follow(&server, &disk).await;

        // A watch that is open stays so; the next one needs the new token.
        server.set_token("two");
        for number in 2..4 {
            server.put(service("web", number));
            assert_eq!(source.service().await, Delta::Apply(model_service("web", number)));
        }
        server.act_on_watches(Resource::Services, &StreamAct::End);
        source.until_trouble("services", Some(Trouble::Unauthorized)).await;
        let error = source.status.last_error().expect("an error");
        assert!(error.contains("check the token"), "{error}");
        disk.write("token", "two");
        hears(&mut source, &server, 4).await;
    });
}

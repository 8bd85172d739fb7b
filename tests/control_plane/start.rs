//! What a cluster is told of a daemon that starts.

use dsproxy::{source::kubernetes::Connection, start_event};
use dsproxy_tests::apiserver::{ApiServer, network};

use crate::harness::NODE;

#[test]
fn an_event_about_the_node_tells_of_the_start() {
    network::run(|| async {
        let mut server = ApiServer::start().await;
        let kubeconfig = server.kubeconfig();
        let connection = Connection::open(None, Some(kubeconfig.path())).await.expect("a client");
        let client = connection.client().await;
        // It is away at first.
        server.stop().await;
        let telling = tokio::spawn(start_event::tell(client, NODE.to_owned()));
        server.restart().await;
        server.until("the event", |server| !server.events().is_empty()).await;
        telling.await.expect("it is told");
        let [event] = server.events().try_into().expect("one event");
        assert_eq!(event["regarding"]["kind"], "Node");
        assert_eq!(event["regarding"]["name"], NODE);
        assert_eq!((&event["action"], &event["reason"]), (&"StartKubeProxy".into(), &"Starting".into()));
        assert_eq!(event["type"], "Normal");
    });
}

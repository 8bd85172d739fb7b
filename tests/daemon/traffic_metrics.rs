//! The traffic of service ports as metrics and `services` tell it, against what was sent: in which direction, how many packets, how
//! many bytes.

use std::net::UdpSocket;

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{DualStack, ServiceManifest, TcpSession, UdpSession, eventually};
use serde_json::Value;

use crate::{
    cluster::{Cluster, PORT, SOON, TARGET},
    process::Daemon,
};

/// A port whose datagrams are taken and never answered, so that the directions differ.
const ONE_WAY: u16 = 81;
const SINK: u16 = 8081;

/// What a packet has before its UDP payload on an Ethernet device.
fn headers(family: IpFamily) -> u64 {
    let ip = match family {
        IpFamily::V4 => 20,
        IpFamily::V6 => 40,
    };
    14 + ip + 8
}

/// Connections, packets and bytes to the backend, packets and bytes to the client.
type Traffic = [u64; 5];

/// What the metrics say of a port of the Service.
fn measured(daemon: &Daemon<'_>, protocol: Protocol, port: u16) -> Traffic {
    let name = format!("{protocol}-{port}").to_lowercase();
    let labels = format!("namespace=\"default\",service=\"echo\",port=\"{name}\",protocol=\"{protocol}\"");
    let sample = |of: &str, direction: &str| {
        let sample = format!("dsproxy_service_{of}_total{{{labels}{direction}}}");
        daemon.metric(&sample).unwrap_or_else(|| panic!("no {sample}:\n{}", daemon.beside_metrics("/metrics").1)) as u64
    };
    let (to_backend, to_client) = (",direction=\"to_backend\"", ",direction=\"to_client\"");
    [
        sample("connections", ""),
        sample("packets", to_backend),
        sample("bytes", to_backend),
        sample("packets", to_client),
        sample("bytes", to_client),
    ]
}

/// What `services` says of it, on each of its frontends: it counts both families together.
fn listed(daemon: &Daemon<'_>, protocol: Protocol, port: u16, vip: DualStack) -> Option<[Traffic; 2]> {
    let rows = daemon.json("services");
    let rows = rows.as_array().expect("rows");
    let of_family = |family| {
        let frontend = vip.socket(family, port).to_string();
        let is_it = |row: &&Value| row["frontend"] == *frontend && row["protocol"] == *protocol.to_string();
        let row = rows.iter().find(is_it)?;
        let number = |field: &str| row[field].as_u64().unwrap_or_else(|| panic!("{field}: {row}"));
        Some(["connections", "packets", "bytes", "replyPackets", "replyBytes"].map(number))
    };
    Some([of_family(IpFamily::V4)?, of_family(IpFamily::V6)?])
}

/// Waits until both say `expected` of a port, or what is as `expected` wants it.
fn await_traffic(
    daemon: &Daemon<'_>,
    (protocol, port): (Protocol, u16),
    vip: DualStack,
    expected: impl Fn(Traffic) -> bool,
) {
    let told = || {
        let (measured, listed) = (measured(daemon, protocol, port), listed(daemon, protocol, port, vip));
        if expected(measured) && listed == Some([measured; 2]) {
            Ok(())
        } else {
            Err(format!("measured {measured:?}, listed {listed:?}"))
        }
    };
    eventually(&format!("the traffic of {protocol} {port}"), SOON, told).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_traffic_of_a_service_port_is_told_as_it_was_sent() {
    let cluster = Cluster::build();
    let vip = DualStack::cluster_ip(1);
    let client = cluster.client.namespace();
    let backend = cluster.find("local");
    let echo = ServiceManifest::new("default", "echo")
        .dual_stack(vip)
        .port(Protocol::Tcp, PORT, TARGET)
        .port(Protocol::Udp, PORT, TARGET)
        .port(Protocol::Udp, ONE_WAY, SINK)
        .backends([backend.pod.addresses()]);
    cluster.write(&echo);
    let manifests = cluster.manifests.directory().display().to_string();
    let daemon = Daemon::new(&cluster.lab, &["--manifests", &manifests]).started();
    let ports = [(Protocol::Tcp, PORT), (Protocol::Udp, PORT), (Protocol::Udp, ONE_WAY)];
    for port in ports {
        await_traffic(&daemon, port, vip, |traffic| traffic == [0; 5]);
    }

    let (mut asked, mut sent, mut streamed) = ([0; 5], [0; 5], [0_u64; 2]);
    // As many and as long that neither a family nor a port can be taken for another.
    for (family, questions, length) in [(IpFamily::V4, 7, 100), (IpFamily::V6, 5, 333)] {
        let mut session = UdpSession::open(client, vip.socket(family, PORT), true).expect("a socket");
        for _ in 0..questions {
            let length = usize::try_from(length).expect("it is small");
            assert_eq!(session.ask_at_length(length).expect("it is answered"), "local");
        }
        let answer = length + "local\n".len() as u64;
        let all =
            [1, questions, questions * (headers(family) + length), questions, questions * (headers(family) + answer)];
        asked = std::array::from_fn(|index| asked[index] + all[index]);
        await_traffic(&daemon, (Protocol::Udp, PORT), vip, |traffic| traffic == asked);

        let address = backend.pod.addresses().socket(family, SINK);
        let sink = backend.pod.namespace().run(|| UdpSocket::bind(address)).expect("the pod is there");
        let sink = sink.expect("the port is free");
        let datagram = [0; 50];
        let send = || {
            let socket = UdpSocket::bind(match family {
                IpFamily::V4 => "0.0.0.0:0",
                IpFamily::V6 => "[::]:0",
            })?;
            socket.connect(vip.socket(family, ONE_WAY))?;
            (0..2 * questions).try_for_each(|_| socket.send(&datagram).map(drop))
        };
        client.run(send).expect("the pod is there").expect("they are sent");
        sink.set_read_timeout(Some(SOON)).expect("it is set");
        for _ in 0..2 * questions {
            assert_eq!(sink.recv(&mut [0; 100]).expect("it arrives"), datagram.len());
        }
        let all = [1, 2 * questions, 2 * questions * (headers(family) + datagram.len() as u64), 0, 0];
        sent = std::array::from_fn(|index| sent[index] + all[index]);
        await_traffic(&daemon, (Protocol::Udp, ONE_WAY), vip, |traffic| traffic == sent);

        let mut session = TcpSession::open(client, vip.socket(family, PORT)).expect("the Service is served");
        for _ in 0..questions {
            session.exchange(&vec![7; usize::try_from(length).expect("it is small")]).expect("it is answered");
        }
        // How many acknowledgements go by themselves is the kernel's to choose.
        streamed = [streamed[0] + 1, streamed[1] + questions];
        let [connections, exchanges] = streamed;
        let payload = asked[2] - exchanges * 8;
        await_traffic(&daemon, (Protocol::Tcp, PORT), vip, |[opened, packets, bytes, reply_packets, reply_bytes]| {
            let is_plausible = |packets: u64, bytes: u64| {
                (exchanges..4 * exchanges + 10 * connections).contains(&packets)
                    && (payload..3 * payload).contains(&bytes)
            };
            opened == connections && is_plausible(packets, bytes) && is_plausible(reply_packets, reply_bytes)
        });
    }
    for (port, expected) in [((Protocol::Udp, PORT), asked), ((Protocol::Udp, ONE_WAY), sent)] {
        await_traffic(&daemon, port, vip, |traffic| traffic == expected);
    }
}

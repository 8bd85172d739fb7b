//! The builder against the parser, and both against bytes worked out by hand.

use std::net::{IpAddr, SocketAddr};

use super::*;

fn ends(family: &str) -> (SocketAddr, SocketAddr) {
    let (client, server) = match family {
        "v4" => ("192.0.2.7:40000", "198.51.100.9:80"),
        _ => ("[2001:db8::7]:40000", "[2001:db8:1::9]:80"),
    };
    (client.parse().expect("an address"), server.parse().expect("an address"))
}

fn dissected(packet: &Packet) -> Dissection {
    let bytes = packet.clone().on(Link::None).to_bytes();
    verify(Link::None, &bytes).expect("right checksums");
    Dissection::of(Link::None, &bytes)
}

#[test]
fn every_kind_of_packet_has_right_checksums_and_loses_them_with_any_byte() {
    for family in ["v4", "v6"] {
        let (client, server) = ends(family);
        let (from, to) = (server.ip(), client.ip());
        let inner = Packet::udp(client, server).payload(b"0123456789");
        for packet in [
            Packet::tcp(client, server).tcp_options(&[2, 4, 5, 0xb4]),
            Packet::udp(client, server),
            Packet::sctp(client, server).payload(b"hello"),
            Packet::icmp(from, to, Message::EchoRequest { identifier: 7, sequence: 1 }),
            Packet::icmp(from, to, Message::EchoReply { identifier: 7, sequence: 1 }),
            Packet::icmp(from, to, Message::PortUnreachable).quoting(&inner, usize::MAX),
            Packet::icmp(from, to, Message::TooBig { mtu: 1_400 }).quoting(&inner, 28),
        ] {
            let bytes = packet.on(Link::None).to_bytes();
            assert_eq!(verify(Link::None, &bytes), Ok(()));
            let Network { body: (start, end), .. } = Dissection::of(Link::None, &bytes).network.expect("IP");
            // The last byte of SCTP here is padding, which is covered as well.
            for at in start..end {
                let mut changed = bytes.to_vec();
                changed[at] ^= 0x10;
                let was_error = Dissection::of(Link::None, &bytes).quoted.is_some();
                let is_error = Dissection::of(Link::None, &changed).quoted.is_some();
                assert!(verify(Link::None, &changed).is_err() || was_error != is_error, "{family} byte {at}");
            }
        }
    }
}

#[test]
fn an_icmp_message_is_what_the_rfcs_say() {
    let bytes = |message| {
        let (from, to): (IpAddr, IpAddr) = ("192.0.2.1".parse().expect("one"), "192.0.2.2".parse().expect("two"));
        Packet::icmp(from, to, message).payload(&[]).on(Link::None).to_bytes().slice(20..)
    };
    // RFC 1191, section 4: the MTU in the last two bytes. The sum is that of 0x0304 and 0x0578.
    assert_eq!(bytes(Message::TooBig { mtu: 1_400 })[..], [3, 4, 0xf7, 0x83, 0, 0, 5, 0x78]);
    // RFC 792: the pointer in the first byte.
    assert_eq!(bytes(Message::ParameterProblem { pointer: 20 })[..], [12, 0, 0xdf, 0xff, 20, 0, 0, 0]);
    assert_eq!(bytes(Message::EchoRequest { identifier: 1, sequence: 2 })[..], [8, 0, 0xf7, 0xfc, 0, 1, 0, 2]);
    let (from, to): (IpAddr, IpAddr) = ("::1".parse().expect("one"), "::2".parse().expect("two"));
    let v6 = Packet::icmp(from, to, Message::TooBig { mtu: 1_400 }).payload(&[]).on(Link::None).to_bytes().slice(40..);
    // RFC 4443, section 3.2. The sum is that of 1, 2, the length 8, the next header 58, 0x0200 and 0x0578.
    assert_eq!(v6[..], [2, 0, 0xf8, 0x42, 0, 0, 5, 0x78]);
}

#[test]
fn what_an_error_quotes_is_told_apart_from_the_error() {
    for family in ["v4", "v6"] {
        let (client, server) = ends(family);
        let inner = Packet::tcp(client, server).payload(&[7; 100]);
        let header = if family == "v4" { 20 } else { 40 };
        for length in [header + 8, header + 20, usize::MAX] {
            let error = Packet::icmp(server.ip(), client.ip(), Message::TimeExceeded).quoting(&inner, length);
            let Dissection { network, transport, quoted, .. } = dissected(&error);
            assert_eq!(network.map(|network| network.source), Some(server.ip()));
            assert!(transport.is_some_and(|transport| transport.checksum.is_some()));
            let quoted = quoted.expect("a packet in the error");
            let found = quoted.transport.expect("ports");
            assert_eq!((found.source, found.destination), (client.port(), server.port()));
            assert_eq!(found.checksum.is_some(), length == usize::MAX, "only a whole packet can be summed up");
        }
        let wrong = inner.overwrite(Part::Transport, 30, &[8]);
        let error = Packet::icmp(server.ip(), client.ip(), Message::TimeExceeded).quoting(&wrong, usize::MAX);
        assert!(matches!(
            verify(Link::None, &error.on(Link::None).to_bytes()),
            Err(ChecksumError::Wrong { layer: "transport", is_quoted: true, .. })
        ));
    }
}

#[test]
fn fragments_put_together_are_the_packet() {
    for family in ["v4", "v6"] {
        let (client, server) = ends(family);
        let payload: Vec<u8> = (0..100).collect();
        let whole = Packet::udp(client, server).payload(&payload);
        let mut together = Vec::new();
        let pieces = whole.fragments(48);
        assert_eq!(pieces.len(), 3);
        for piece in &pieces {
            let bytes = piece.clone().on(Link::None).to_bytes();
            let network = dissected(piece).network.expect("IP");
            assert!(network.is_fragment);
            together.extend_from_slice(&bytes[network.body.0..network.body.1]);
        }
        let bytes = whole.clone().on(Link::None).to_bytes();
        assert_eq!(together, bytes[whole.on(Link::None).offset(Part::Transport)..]);
    }
}

#[test]
fn a_packet_that_is_cut_off_is_not_right() {
    let (client, server) = ends("v4");
    let bytes = Packet::udp(client, server).on(Link::None).to_bytes();
    assert_eq!(verify(Link::None, &bytes[..bytes.len() - 1]), Err(ChecksumError::CutOff));
}

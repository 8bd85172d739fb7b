//! What a packet that nobody takes is answered with.

use std::net::SocketAddr;

use super::{
    Message, Packet,
    build::{Ip, NetworkLayer, TransportLayer, flags},
};

impl Packet {
    /// The answer that makes `connect` fail: "port unreachable" with as much of this packet as may be quoted (RFC 1812, section
    /// 4.3.2.3; RFC 4443, section 2.4), and in IPv6 a reset for a segment that opens a connection.
    pub fn refusal(&self) -> Self {
        let Ip { source, destination, .. } = *self.ip_header();
        let opens = matches!(self.transport, TransportLayer::Tcp { flags, .. } if flags & (flags::SYN | flags::ACK) == flags::SYN);
        if source.is_ipv6() && opens {
            return self.reset();
        }
        let error = Self::icmp(destination, source, Message::PortUnreachable);
        let error = if source.is_ipv4() {
            error.traffic_class(0xc0).identification(0).dont_fragment().quoting(self, 576 - 20 - Message::HEADER)
        } else {
            error.quoting(self, 1_280 - 40 - Message::HEADER)
        };
        Self { tags: self.tags.clone(), ..error.turned_round() }
    }

    /// The reset that a TCP segment without a connection is answered with (RFC 9293, section 3.10.7.1).
    pub fn reset(&self) -> Self {
        let Ip { source: from, destination: to, .. } = *self.ip_header();
        let TransportLayer::Tcp { source, destination, sequence, acknowledgement, flags: sent, .. } = self.transport
        else {
            panic!("a reset for {self:?}");
        };
        let reset = Self::tcp(SocketAddr::new(to, destination), SocketAddr::new(from, source))
            .payload(&[])
            .window(0)
            .identification(0)
            .dont_fragment()
            .turned_round();
        let reset = if sent & flags::ACK != 0 {
            reset.flags(flags::RST).numbers(acknowledgement, 0)
        } else {
            let controls = [flags::SYN, flags::FIN].into_iter().filter(|flag| sent & flag != 0).count();
            let length = (self.payload.len() + controls) as u32;
            reset.flags(flags::RST | flags::ACK).numbers(0, sequence.wrapping_add(length))
        };
        Self { tags: self.tags.clone(), ..reset }
    }

    fn ip_header(&self) -> &Ip {
        match &self.network {
            NetworkLayer::Ip(ip) => ip,
            NetworkLayer::Other { .. } => panic!("an answer to {self:?}"),
        }
    }
}

//! Connected UDP sockets whose backend has gone: the kernel is asked to end them, so that their programs hear of it
//! (`ECONNABORTED` where they wait for an answer, `EDESTADDRREQ` where they send) and connect anew, to a backend that is there.
//!
//! A socket that is not connected finds its way with the next datagram, and TCP is left to its two ends. Sockets of other
//! network namespaces than the host's are not reached from here.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use dsproxy_common::{IpFamily, Protocol};
use thiserror::Error;
use tokio::{sync::Notify, time};
use tracing::{debug, info, warn};

use crate::{
    maps::{
        MapError,
        kernel::{KernelMaps, SocketRecord},
    },
    netlink::{BlockingSocket, Message, NetlinkError, Request},
};

/// Backends go in groups; they are taken together.
const TOGETHER: Duration = Duration::from_millis(50);

/// When it is tried again to end those that could not be.
const AGAIN: Duration = Duration::from_secs(10);

/// Requests (include/uapi/linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// The one state of UDP sockets that counts here (include/net/tcp_states.h).
const ESTABLISHED: u8 = 1;

/// Where the id of a socket stands in a message about it, and its length: ports, addresses, device and cookie, as `struct
/// inet_diag_sockid` has them (include/uapi/linux/inet_diag.h).
const ID: usize = 4;
const ID_LENGTH: usize = 48;

/// Why sockets were not ended.
#[derive(Debug, Error)]
enum SocketsError {
    /// The table could not be read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The kernel did not list its sockets, or did not end one.
    #[error("{operation}: {source}")]
    Netlink { operation: &'static str, source: NetlinkError },
}

impl SocketsError {
    /// Whether the kernel can never do it.
    fn is_hopeless(&self) -> bool {
        matches!(self, Self::Netlink { source, .. } if source.errno() == Some(libc::EOPNOTSUPP))
    }
}

/// A connected socket, as the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connected {
    family: u8,
    id: [u8; ID_LENGTH],
}

impl Connected {
    fn read(message: &Message<'_>) -> Option<Self> {
        let [family, state, ..] = *message.payload else { return None };
        let id = message.payload.get(ID..ID + ID_LENGTH)?.try_into().ok()?;
        (state == ESTABLISHED).then_some(Self { family, id })
    }

    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.id[offset..offset + N]);
        bytes
    }

    /// The other end; an IPv4 address in an IPv6 one counts as what it is.
    fn peer(&self) -> SocketAddr {
        let address = if i32::from(self.family) == libc::AF_INET {
            IpAddr::V4(Ipv4Addr::from(self.bytes::<4>(20)))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.bytes::<16>(20))).to_canonical()
        };
        SocketAddr::new(address, u16::from_be_bytes(self.bytes(2)))
    }

    fn cookie(&self) -> u64 {
        let half = |offset| u64::from(u32::from_ne_bytes(self.bytes(offset)));
        half(40) | half(44) << 32
    }

    /// A request about this very socket, or with an id of zeros about all of a family: `struct inet_diag_req_v2`.
    fn request(&self) -> Vec<u8> {
        let mut request = vec![self.family, Protocol::Udp.number(), 0, 0];
        request.extend((1u32 << ESTABLISHED).to_ne_bytes());
        request.extend(self.id);
        request
    }
}

/// The UDP sockets, by cookie and other end, whose backend is gone.
fn left_behind(sockets: &[SocketRecord]) -> HashSet<(u64, SocketAddr)> {
    sockets
        .iter()
        .filter(|socket| socket.protocol == Protocol::Udp && !socket.is_served)
        .map(|socket| (socket.cookie, socket.peer))
        .collect()
}

/// Ends sockets whenever `gone` says that a UDP backend has gone, and those that an earlier run has left. Returns only when the kernel
/// cannot do it.
pub async fn end_those_left_behind(maps: KernelMaps, gone: Arc<Notify>) {
    loop {
        // Maps and sockets are read by system calls, which the other tasks of this thread should not wait for.
        match tokio::task::block_in_place(|| pass(&maps)) {
            Ok(0) => debug!("no connected socket was left behind"),
            Ok(ended) => info!(ended, "ended connected UDP sockets whose backend has gone"),
            Err(error) if error.is_hopeless() => {
                warn!(
                    %error,
                    "this kernel ends no sockets (CONFIG_INET_DIAG_DESTROY): programs on this node with connected UDP sockets \
                     hear nothing when a backend goes"
                );
                return;
            }
            Err(error) => {
                warn!(%error, again_in = ?AGAIN, "connected UDP sockets may be left with a backend that has gone");
                time::sleep(AGAIN).await;
                continue;
            }
        }
        gone.notified().await;
        time::sleep(TOGETHER).await;
    }
}

/// The result is how many sockets were ended.
fn pass(maps: &KernelMaps) -> Result<usize, SocketsError> {
    let left_behind = left_behind(&maps.sockets()?);
    if left_behind.is_empty() {
        return Ok(0);
    }
    let failed = |operation| move |source| SocketsError::Netlink { operation, source };
    let mut netlink = BlockingSocket::open_to(libc::NETLINK_SOCK_DIAG as isize).map_err(failed("list UDP sockets"))?;
    let mut found = Vec::new();
    for family in IpFamily::ALL {
        let family = match family {
            IpFamily::V4 => libc::AF_INET,
            IpFamily::V6 => libc::AF_INET6,
        };
        let all = Connected { family: family as u8, id: [0; ID_LENGTH] };
        netlink
            .exchange(Request::dump(SOCK_DIAG_BY_FAMILY, &all.request()), |message| {
                let connected = Connected::read(&message);
                found.extend(connected.filter(|socket| left_behind.contains(&(socket.cookie(), socket.peer()))));
            })
            .map_err(failed("list UDP sockets"))?;
    }
    let (mut ended, mut failure) = (0, None);
    for socket in found {
        match netlink.exchange(Request::change(SOCK_DESTROY, 0, &socket.request()), |_| {}) {
            Ok(()) => ended += 1,
            // Closed or connected elsewhere meanwhile.
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            // The others can be ended all the same.
            Err(source) => failure = failure.or(Some(failed("end a UDP socket")(source))),
        }
    }
    failure.map_or(Ok(ended), Err)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn record(cookie: u64, protocol: Protocol, is_served: bool) -> SocketRecord {
        SocketRecord { cookie, peer: "10.0.0.1:53".parse().expect("address"), protocol, backend: 1, is_served }
    }

    #[test]
    fn only_udp_without_its_backend_is_left_behind() {
        let records = [
            record(1, Protocol::Udp, true),
            record(2, Protocol::Udp, false),
            record(3, Protocol::Tcp, false),
            record(4, Protocol::Sctp, false),
        ];
        assert_eq!(left_behind(&records), HashSet::from([(2, records[1].peer)]));
        assert!(left_behind(&[]).is_empty());
    }

    #[test]
    fn the_kernel_lists_sockets_as_they_are_read() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let peer = server.local_addr().expect("its address");
        let plain = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        plain.connect(peer).expect("connected");
        let mut netlink = BlockingSocket::open_to(libc::NETLINK_SOCK_DIAG as isize).expect("a netlink socket");
        let all = Connected { family: libc::AF_INET as u8, id: [0; ID_LENGTH] };
        let mut found = Vec::new();
        let request = Request::dump(SOCK_DIAG_BY_FAMILY, &all.request());
        netlink.exchange(request, |message| found.extend(Connected::read(&message))).expect("a list");
        let of_ours: Vec<_> = found.iter().filter(|socket| socket.peer() == peer).collect();
        let [socket] = of_ours.as_slice() else { panic!("one socket is connected there: {of_ours:?}") };
        assert_eq!(u16::from_be_bytes(socket.bytes(0)), plain.local_addr().expect("its address").port());
        assert_ne!(socket.cookie(), 0);
    }

    #[test]
    fn a_mapped_address_is_an_ipv4_one() {
        let mut id = [0; ID_LENGTH];
        id[2..4].copy_from_slice(&53u16.to_be_bytes());
        id[20..36].copy_from_slice(&Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets());
        let socket = Connected { family: libc::AF_INET6 as u8, id };
        assert_eq!(socket.peer(), "10.0.0.1:53".parse().expect("address"));
    }
}

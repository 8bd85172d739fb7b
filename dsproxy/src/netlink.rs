//! Netlink, as far as it is needed: requests, answers, attributes and the socket of events.
//!
//! Messages are taken apart attribute by attribute, by whoever knows what they mean: an attribute
//! that a newer kernel adds, or whose length it changes, then costs nothing and hides nothing.
//! Nothing here knows what a link, a route or a filter is.

use std::{io, ops::RangeInclusive};

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
        NlasIterator,
    },
    sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use thiserror::Error;

/// Larger than any datagram of the kernel: it builds answers in at most 32 KiB.
const DATAGRAM: usize = 64 * 1024;

/// What the events socket may hold while the daemon is busy, some 20 000 route changes.
const EVENT_BUFFER: usize = 8 * 1024 * 1024;

const NETLINK_HEADER_LEN: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Why a netlink exchange failed.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The socket could not be made; the limits on open files are the usual reason.
    #[error("open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The request could not be sent.
    #[error("send a netlink request: {0}")]
    Send(#[source] io::Error),
    /// The answer could not be read.
    #[error("read from the netlink socket: {0}")]
    Receive(#[source] io::Error),
    /// The kernel refused the request.
    #[error("the kernel refused: {source}{}", note(.message))]
    Refused {
        /// The error number.
        #[source]
        source: io::Error,
        /// The kernel's own words, when it had any.
        message: Option<String>,
    },
    /// What was being listed changed meanwhile; the list has to be asked for again.
    #[error("the list changed while the kernel was sending it")]
    Interrupted,
    /// Events were lost: the state has to be read afresh.
    #[error("the kernel dropped events because they were not read fast enough")]
    Overrun,
    /// The bytes are no netlink message.
    #[error("a malformed netlink message")]
    Malformed,
}

fn note(message: &Option<String>) -> String {
    message.as_ref().map(|text| format!(" ({text})")).unwrap_or_default()
}

impl NetlinkError {
    /// The error number with which the kernel refused, if it did.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A request under construction.
pub(crate) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request to list everything of a kind; `fixed` is the kind's own fixed header.
    pub(crate) fn dump(kind: u16, fixed: &[u8]) -> Self {
        Self::new(kind, NLM_F_DUMP, fixed)
    }

    /// A request that is answered with an acknowledgement or an error.
    pub(crate) fn change(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        Self::new(kind, NLM_F_ACK | flags, fixed)
    }

    /// A request that is one of a batch: only an error is answered.
    pub(crate) fn batched(kind: u16, fixed: &[u8]) -> Self {
        Self::new(kind, 0, fixed)
    }

    fn acknowledged(mut self) -> Self {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | NLM_F_ACK;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self
    }

    fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; NETLINK_HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    /// Adds an attribute.
    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.start(kind);
        let at = self.bytes.len() - 4;
        self.bytes.extend_from_slice(value);
        self.finish(at)
    }

    /// Adds an attribute made of attributes.
    pub(crate) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        self.start(kind | libc::NLA_F_NESTED as u16);
        let at = self.bytes.len() - 4;
        fill(self).finish(at)
    }

    fn start(&mut self, kind: u16) {
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
    }

    fn finish(mut self, at: usize) -> Self {
        let length = (self.bytes.len() - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn numbered(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// What it is about (`RTM_*`).
    pub(crate) kind: u16,
    /// The flags of its header.
    pub(crate) flags: u16,
    /// What it says: a fixed header, then attributes.
    pub(crate) payload: &'a [u8],
    sequence: u32,
}

/// The messages of a datagram. The first malformed one ends it: where the next one would begin
/// cannot be known.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, NetlinkError>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let Ok(buffer) = NetlinkBuffer::new_checked(datagram) else {
            datagram = &[];
            return Some(Err(NetlinkError::Malformed));
        };
        let length = (buffer.length() as usize).next_multiple_of(4).min(datagram.len());
        datagram = &datagram[length..];
        Some(Ok(Message {
            kind: buffer.message_type(),
            flags: buffer.flags(),
            payload: buffer.payload(),
            sequence: buffer.sequence_number(),
        }))
    })
}

/// The attributes that follow a fixed header of `skip` bytes: kind, without the flags, and value.
pub(crate) fn attributes(payload: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let bytes = payload.get(skip..).unwrap_or_default();
    NlasIterator::new(bytes).map_while(move |attribute| {
        let attribute = attribute.ok()?;
        let kind = attribute.kind();
        // `value` borrows from the iterator's item; the bytes themselves live in `payload`.
        let length = attribute.value_length();
        let inner: &[u8] = attribute.into_inner();
        inner.get(4..4 + length).map(|value| (kind, value))
    })
}

/// A number of four bytes in the machine's order.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// A text, with or without the final NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// The answer to one request, or to all of a batch, as far as it has arrived.
struct Answer {
    sequences: RangeInclusive<u32>,
    interrupted: bool,
}

impl Answer {
    fn to(sequence: u32) -> Self {
        Self::to_all(sequence..=sequence)
    }

    fn to_all(sequences: RangeInclusive<u32>) -> Self {
        Self { sequences, interrupted: false }
    }

    /// Hands the messages of a datagram that belong to the answer to `take`. True at its end.
    ///
    /// An interrupted list is read to its end all the same: the kernel starts no other before.
    fn continues(&mut self, datagram: &[u8], take: &mut impl FnMut(Message<'_>)) -> Result<bool, NetlinkError> {
        for message in messages(datagram) {
            let message = message?;
            // What an earlier, abandoned request left in the socket.
            if !self.sequences.contains(&message.sequence) {
                continue;
            }
            self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_ERROR | NLMSG_DONE => {
                    let code = number(message.payload).map_or(0, |code| code as i32);
                    if code < 0 {
                        let source = io::Error::from_raw_os_error(-code);
                        return Err(NetlinkError::Refused { source, message: kernel_words(&message) });
                    }
                    return if self.interrupted { Err(NetlinkError::Interrupted) } else { Ok(true) };
                }
                _ => take(message),
            }
        }
        Ok(false)
    }
}

fn kernel_words(message: &Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    // The error number, then the request: only its header when the kernel was asked to be brief.
    let echoed = match (message.kind, message.flags & NLM_F_CAPPED) {
        (NLMSG_DONE, _) => 0,
        (_, 0) => number(message.payload.get(4..)?)? as usize,
        _ => NETLINK_HEADER_LEN,
    };
    attributes(message.payload, 4 + echoed.next_multiple_of(4))
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, value)| text(value))
}

fn prepare(socket: &mut Socket) -> Result<(), NetlinkError> {
    socket.bind_auto().map_err(NetlinkError::Open)?;
    // Errors that repeat the header of a request only, and say why in words.
    socket.set_cap_ack(true).and_then(|()| socket.set_ext_ack(true)).map_err(NetlinkError::Open)
}

/// A socket for requests that the kernel answers at once, within the calling thread.
///
/// It speaks to the network namespace that the thread was in when it was opened.
pub(crate) struct BlockingSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl BlockingSocket {
    /// A socket of route netlink.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        Self::open_to(NETLINK_ROUTE)
    }

    /// A socket of another protocol of netlink's.
    pub(crate) fn open_to(protocol: isize) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocol).map_err(NetlinkError::Open)?;
        prepare(&mut socket)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Sends requests between `begin` and `end`, all of which the kernel does, or none; waits for its word.
    pub(crate) fn exchange_batch(
        &mut self,
        begin: Request,
        mut requests: Vec<Request>,
        end: Request,
    ) -> Result<(), NetlinkError> {
        let Some(last) = requests.pop() else { return Ok(()) };
        let mut datagram = Vec::new();
        let first = self.sequence.wrapping_add(1);
        // Errors come in order, and the acknowledgement of the last after them.
        for request in std::iter::once(begin).chain(requests).chain([last.acknowledged(), end]) {
            self.sequence = self.sequence.wrapping_add(1);
            datagram.extend(request.numbered(self.sequence));
        }
        self.socket.send(&datagram, 0).map_err(NetlinkError::Send)?;
        self.receive(Answer::to_all(first..=self.sequence), |_| {})
    }

    /// Sends a request and hands each message of the answer to `take`.
    pub(crate) fn exchange(&mut self, request: Request, take: impl FnMut(Message<'_>)) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&request.numbered(self.sequence), 0).map_err(NetlinkError::Send)?;
        self.receive(Answer::to(self.sequence), take)
    }

    fn receive(&mut self, mut answer: Answer, mut take: impl FnMut(Message<'_>)) -> Result<(), NetlinkError> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) if answer.continues(&self.buffer, &mut take)? => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NetlinkError::Receive(error)),
            }
        }
    }
}

/// A socket for the daemon's event loop: either for requests or subscribed to events.
pub(crate) struct EventLoopSocket {
    socket: TokioSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl EventLoopSocket {
    /// A socket for requests.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(NetlinkError::Open)?;
        prepare(socket.socket_mut())?;
        Ok(Self::with(socket))
    }

    /// A socket that receives the events of the multicast groups (bit mask).
    pub(crate) fn subscribe(groups: u32) -> Result<Self, NetlinkError> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(NetlinkError::Open)?;
        // Beyond the system's limit; without the privilege an overrun costs a fresh dump, no more.
        if setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &EVENT_BUFFER).is_err() {
            tracing::debug!(bytes = EVENT_BUFFER, "the events socket keeps the system's buffer size");
        }
        socket.socket_mut().bind(&SocketAddr::new(0, groups)).map_err(NetlinkError::Open)?;
        Ok(Self::with(socket))
    }

    fn with(socket: TokioSocket) -> Self {
        Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) }
    }

    /// Sends a request and hands each message of the answer to `take`.
    pub(crate) async fn exchange(
        &mut self,
        request: Request,
        mut take: impl FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let request = request.numbered(sequence);
        self.socket.send(&request).await.map_err(NetlinkError::Send)?;
        let mut answer = Answer::to(sequence);
        while !answer.continues(self.receive().await?, &mut take)? {}
        Ok(())
    }

    /// The next datagram. Cancel safe: nothing is lost when the future is dropped.
    pub(crate) async fn receive(&mut self) -> Result<&[u8], NetlinkError> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer).await {
            Ok(()) => Ok(&self.buffer),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Err(NetlinkError::Overrun),
            Err(error) => Err(NetlinkError::Receive(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back_as_written() {
        let request = Request::dump(18, &[0; 16])
            .attribute(3, b"eth0\0")
            .nested(18, |inner| inner.attribute(1, b"veth"))
            .numbered(7);
        let all: Vec<_> = messages(&request).collect::<Result<_, _>>().expect("well formed");
        let [message] = all.as_slice() else { panic!("one message, got {all:?}") };
        assert_eq!((message.kind, message.sequence), (18, 7));
        let found: Vec<_> = attributes(message.payload, 16).collect();
        assert_eq!(found[0], (3, b"eth0\0".as_slice()));
        assert_eq!(found[1].0, 18);
        assert_eq!(attributes(found[1].1, 0).collect::<Vec<_>>(), [(1, b"veth".as_slice())]);
    }

    #[test]
    fn malformed_bytes_end_the_datagram_and_no_more() {
        let mut bytes = Request::dump(18, &[]).numbered(1);
        bytes.extend_from_slice(&[200, 0, 0, 0, 1]);
        let results: Vec<_> = messages(&bytes).collect();
        assert!(matches!(results.as_slice(), [Ok(_), Err(NetlinkError::Malformed)]));
        // An attribute longer than what is left ends the list.
        assert_eq!(attributes(&[5, 0, 1, 0, 9, 0, 0, 0, 99, 0, 2, 0], 0).count(), 1);
        assert_eq!(attributes(&[1], 4).count(), 0);
    }

    #[test]
    fn an_error_carries_number_and_words() {
        let mut payload = (-22i32).to_ne_bytes().to_vec();
        payload.extend_from_slice(&[0; NETLINK_HEADER_LEN]);
        let mut answer = Request::new(NLMSG_ERROR, NLM_F_CAPPED | NLM_F_ACK_TLVS, &payload)
            .attribute(NLMSGERR_ATTR_MSG, b"no such thing\0")
            .numbered(3);
        let error = Answer::to(3).continues(&answer, &mut |_| {}).expect_err("refused");
        assert_eq!(error.errno(), Some(22));
        assert!(error.to_string().ends_with("(no such thing)"), "{error}");
        // An answer to another request is none.
        assert!(matches!(Answer::to(4).continues(&answer, &mut |_| {}), Ok(false)));
        // Zero is an acknowledgement.
        answer[NETLINK_HEADER_LEN..NETLINK_HEADER_LEN + 4].copy_from_slice(&[0; 4]);
        assert!(matches!(Answer::to(3).continues(&answer, &mut |_| {}), Ok(true)));
    }

    #[test]
    fn an_interrupted_list_is_read_to_its_end() {
        let mut answer = Answer::to(1);
        let mut taken = 0;
        let part = Request::new(16, NLM_F_DUMP_INTR, &[0; 16]).numbered(1);
        assert!(matches!(answer.continues(&part, &mut |_| taken += 1), Ok(false)));
        let rest = Request::new(16, 0, &[0; 16]).numbered(1);
        assert!(matches!(answer.continues(&rest, &mut |_| taken += 1), Ok(false)));
        let end = Request::new(NLMSG_DONE, 0, &[0; 4]).numbered(1);
        let ended = answer.continues(&end, &mut |_| taken += 1);
        assert!(matches!(ended, Err(NetlinkError::Interrupted)));
        assert_eq!(taken, 2);
    }

    #[test]
    fn the_kernel_answers() {
        let mut socket = BlockingSocket::open().expect("socket");
        let mut seen = 0;
        socket.exchange(Request::dump(libc::RTM_GETLINK, &[0; 16]), |_| seen += 1).expect("dump");
        assert!(seen >= 1, "at least lo");
        let mut nowhere = [0u8; 16];
        nowhere[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let error = socket.exchange(Request::change(libc::RTM_GETLINK, 0, &nowhere), |_| {}).expect_err("no such link");
        assert_eq!(error.errno(), Some(libc::ENODEV));
    }
}

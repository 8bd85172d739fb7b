//! Sends the demo's requests and notes who answered, and how fast.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::eventually;

use crate::{service::Frontend, stage::Stage};

/// Requests to each frontend.
const REQUESTS: usize = 300;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the Services may take to be served after the daemon called itself healthy.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// What came of the requests to one frontend.
pub(crate) struct Outcome {
    pub(crate) frontend: Frontend,
    pub(crate) sent: usize,
    /// Answers, by the backend's name.
    pub(crate) answers: BTreeMap<String, usize>,
    /// Answers that saw another client address than the client's own.
    pub(crate) masqueraded: usize,
    pub(crate) first_failure: Option<String>,
    pub(crate) median: Duration,
    /// The median of requests that go straight to a backend's address.
    pub(crate) median_direct: Duration,
}

impl Outcome {
    pub(crate) fn answered(&self) -> usize {
        self.answers.values().sum()
    }
}

/// Sends to every frontend, and for comparison straight to the backends.
pub(crate) fn measure(stage: &Stage, frontends: &[Frontend]) -> anyhow::Result<Vec<Outcome>> {
    frontends.iter().map(|frontend| Ok(stage.client.namespace().run(|| measure_one(stage, frontend))?)).collect()
}

fn measure_one(stage: &Stage, frontend: &Frontend) -> Outcome {
    let Frontend { protocol, vip, target_port, .. } = frontend;
    let family = IpFamily::of(vip.ip());
    let client = stage.client.addresses().of(family);
    // A failure here shows in the requests that follow.
    let _ = eventually("waiting for the first answer", FIRST_ANSWER, || ask(*protocol, *vip));

    let direct: Vec<SocketAddr> = stage
        .backends
        .iter()
        .map(|backend| SocketAddr::new(backend.pod.addresses().of(family), *target_port))
        .collect();
    let mut outcome = Outcome {
        frontend: frontend.clone(),
        sent: 0,
        answers: BTreeMap::new(),
        masqueraded: 0,
        first_failure: None,
        median: Duration::ZERO,
        median_direct: Duration::ZERO,
    };
    let (mut through_vip, mut straight) = (Vec::new(), Vec::new());
    // Turn by turn, so that both see the same machine.
    for direct in direct.iter().cycle().take(REQUESTS) {
        let started = Instant::now();
        outcome.sent += 1;
        match ask(*protocol, *vip) {
            Ok(Answer { backend, seen_client }) => {
                through_vip.push(started.elapsed());
                *outcome.answers.entry(backend).or_default() += 1;
                if seen_client != client {
                    outcome.masqueraded += 1;
                }
            }
            Err(error) => {
                outcome.first_failure.get_or_insert(error.to_string());
            }
        }
        let started = Instant::now();
        if ask(*protocol, *direct).is_ok() {
            straight.push(started.elapsed());
        }
    }
    outcome.median = median(through_vip);
    outcome.median_direct = median(straight);
    outcome
}

struct Answer {
    backend: String,
    seen_client: IpAddr,
}

/// One request over a new connection or socket.
fn ask(protocol: Protocol, target: SocketAddr) -> io::Result<Answer> {
    let text = match protocol {
        Protocol::Tcp => {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            text
        }
        Protocol::Udp | Protocol::Sctp => {
            let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(b"hello?", target)?;
            let mut answer = [0; 2048];
            let (length, source) = socket.recv_from(&mut answer)?;
            if source != target {
                return Err(io::Error::other(format!("asked {target}, but {source} answered")));
            }
            String::from_utf8_lossy(&answer[..length]).into_owned()
        }
    };
    read_answer(&text).ok_or_else(|| io::Error::other(format!("an answer that is none: {text:?}")))
}

/// `NAME answers ADDRESS`, the last line of whatever a backend says.
fn read_answer(text: &str) -> Option<Answer> {
    let (backend, seen_client) = text.lines().last()?.split_once(" answers ")?;
    Some(Answer { backend: backend.to_owned(), seen_client: seen_client.parse().ok()? })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

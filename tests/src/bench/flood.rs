//! A flood: openings and datagrams from sources that are nobody's, as fast as one processor makes them. Stays within network
//! namespaces of a lab.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use dsproxy_common::{IpFamily, Protocol, count::Reason};

use super::{
    BenchError,
    path::{Path, Range},
    traffic::live::Live,
};
use crate::lab::{DualStack, Lab, Namespace, Outside, Side, link_address};

/// How many packets are made before it is looked whether they are enough.
const BATCH: u32 = 50_000;

/// The first port of the sources.
const FIRST_PORT: u16 = 32_768;

/// From how many sources packets come: four million.
const SOURCES: Range = Range { ports: 15, addresses: 7 };

/// A flood that goes on until it is ended.
pub struct Flood {
    over: Arc<AtomicBool>,
    sender: JoinHandle<Result<Flooded, BenchError>>,
}

/// What a flood was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flooded {
    /// How many packets were sent.
    pub packets: u64,
    /// How long it went on.
    pub took: Duration,
}

impl Flooded {
    /// Packets a second.
    pub fn rate(&self) -> f64 {
        self.packets as f64 / self.took.as_secs_f64()
    }
}

impl Flood {
    /// Sends packets to `targets` in turn, out of the device of the host `outside`, from the address `first` of its network and
    /// the 127 after it.
    ///
    /// # Errors
    ///
    /// When the programs cannot be loaded or attached.
    pub fn start(
        lab: &Lab,
        outside: &Outside,
        targets: Vec<(Protocol, SocketAddr)>,
        first: DualStack,
    ) -> Result<Self, BenchError> {
        let gateway = link_address(lab.node(Side::A).namespace(), Outside::GATEWAY_INTERFACE)?;
        let paths = targets.into_iter().map(|(protocol, target)| {
            let source = first.socket(IpFamily::of(target.ip()), FIRST_PORT);
            let path = Path::new("flood", protocol, (source, SOURCES), (target, Range::ONE), Reason::Opened);
            path.towards(gateway)
        });
        let paths: Vec<Path> = paths.collect();
        let mut live = Live::load()?;
        live.take_at(outside.namespace(), Outside::INTERFACE)?;
        live.take_at(lab.node(Side::A).namespace(), Outside::GATEWAY_INTERFACE)?;
        let over = Arc::new(AtomicBool::new(false));
        let (is_over, namespace) = (Arc::clone(&over), outside.namespace().clone());
        let sender = std::thread::spawn(move || flood(&mut live, &namespace, &paths, &is_over));
        Ok(Self { over, sender })
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// When packets could not be made.
    ///
    /// # Panics
    ///
    /// When the sender did.
    pub fn end(self) -> Result<Flooded, BenchError> {
        self.over.store(true, Ordering::Relaxed);
        self.sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn flood(live: &mut Live, namespace: &Namespace, paths: &[Path], over: &AtomicBool) -> Result<Flooded, BenchError> {
    let started = Instant::now();
    let (mut packets, mut first) = (0, 0_u32);
    while !over.load(Ordering::Relaxed) {
        for path in paths {
            let sent = live.send_from(first, namespace, Outside::INTERFACE, path, BATCH)?;
            packets += u64::from(sent.sent);
        }
        first = first.wrapping_add(BATCH);
    }
    Ok(Flooded { packets, took: started.elapsed() })
}

//! The kernel's packet generator (Documentation/networking/pktgen.rst of the kernel), which hands packets to a device as a driver's
//! user does: told through files of the network namespace that it sends from.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    super::BenchError,
    live::{Live, Sent},
    rate::Course,
};
use crate::lab::Namespace;

/// Its files, of the namespace of the thread that looks: `/proc/net` would be that of the process.
const DIRECTORY: &str = "/proc/thread-self/net/pktgen";

/// Its thread on the first processor, and what starts all of them.
const THREAD: &str = "kpktgend_0";
const CONTROL: &str = "pgctrl";

/// The least frame in which UDP over IPv6 has room for the generator's own mark.
const SIZE: u16 = 78;

/// A device that packets are sent by.
pub(super) struct Pktgen {
    interface: &'static str,
}

impl Pktgen {
    /// Takes `interface` of `namespace`; no other may be taken there.
    pub(super) fn take(namespace: &Namespace, interface: &'static str) -> Result<Self, BenchError> {
        namespace.run(|| {
            if !Path::new(DIRECTORY).exists() {
                return Err(BenchError::NoPktgen { path: DIRECTORY.into() });
            }
            tell(THREAD, "rem_device_all")?;
            tell(THREAD, &format!("add_device {interface}"))
        })??;
        Ok(Self { interface })
    }

    /// Sends `packets` packets along `course`, and waits until they have arrived at what `counted` counts, or are lost.
    pub(super) fn send(
        &self,
        namespace: &Namespace,
        course: &Course,
        packets: u32,
        counted: &Live,
    ) -> Result<Sent, BenchError> {
        let interface = self.interface;
        let before = counted.count()?;
        let result = namespace.run(|| {
            for command in commands(course, packets) {
                tell(interface, &command)?;
            }
            // Returns when all are sent.
            tell(CONTROL, "start")?;
            let path = file(interface);
            let text =
                fs::read_to_string(&path).map_err(|source| BenchError::Machine { path: path.clone(), source })?;
            result_of(&text).ok_or_else(|| BenchError::Pktgen {
                path,
                command: "start".to_owned(),
                reason: format!("no result in {text:?}"),
            })
        })??;
        // What the other processor still has in hand.
        std::thread::sleep(Duration::from_millis(20));
        Ok(Sent { sent: result.sent, arrived: counted.count()? - before, elapsed: result.elapsed })
    }
}

/// What the device is told, in this order.
fn commands(course: &Course, packets: u32) -> Vec<String> {
    let Course { source, flows, target, gateway } = course;
    let mac = gateway.map(|octet| format!("{octet:02x}")).join(":");
    let last_port = source.port() + (flows.len() - 1) as u16;
    let (destination, source_address) = match target.is_ipv4() {
        // Ranges of addresses, each of one.
        true => (
            vec![format!("dst_min {}", target.ip()), format!("dst_max {}", target.ip())],
            vec![format!("src_min {}", source.ip()), format!("src_max {}", source.ip())],
        ),
        false => (vec![format!("dst6 {}", target.ip())], vec![format!("src6 {}", source.ip())]),
    };
    let mut commands = vec![
        format!("count {packets}"),
        "delay 0".to_owned(),
        // Each is a packet of its own, for what it meets changes it.
        "clone_skb 0".to_owned(),
        format!("pkt_size {SIZE}"),
        format!("dst_mac {mac}"),
    ];
    // An address of IPv6 sets it, and it stays.
    if target.is_ipv4() {
        commands.push("flag !IPV6".to_owned());
    }
    commands.extend(destination);
    commands.extend(source_address);
    commands.extend([
        format!("udp_src_min {}", source.port()),
        format!("udp_src_max {last_port}"),
        format!("udp_dst_min {}", target.port()),
        format!("udp_dst_max {}", target.port()),
        "flag UDPSRC_RND".to_owned(),
        // IPv6 takes no datagram without one.
        "flag UDPCSUM".to_owned(),
    ]);
    commands
}

fn file(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn tell(name: &str, command: &str) -> Result<(), BenchError> {
    let path = file(name);
    // One of the files takes the last character for the end of a line, whatever it is.
    fs::write(&path, format!("{command}\n")).map_err(|error| BenchError::Pktgen {
        path,
        command: command.to_owned(),
        reason: error.to_string(),
    })
}

/// What one run came to.
#[derive(Debug, PartialEq, Eq)]
struct RunResult {
    sent: u32,
    elapsed: Duration,
}

/// Reads what a device's file says of the run before.
fn result_of(text: &str) -> Option<RunResult> {
    let number_after = |mark: &str| -> Option<u64> {
        let rest = text.split_once(mark)?.1.trim_start();
        rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
    };
    let sent = number_after("pkts-sofar:")?.try_into().ok()?;
    Some(RunResult { sent, elapsed: Duration::from_micros(number_after("Result: OK:")?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::path::Range;

    #[test]
    fn a_result_is_read_from_the_devices_file() {
        let text = "Params: count 1000  min_pkt_size: 78  max_pkt_size: 78\nCurrent:\n     pkts-sofar: 1000  errors: 0\n     \
                    started: 5us  stopped: 25us idle: 1us\nResult: OK: 2500(c2400+d100) usec, 1000 (78byte,0frags)\n  \
                    400000pps 249Mb/sec (249600000bps) errors: 0\n";
        assert_eq!(result_of(text), Some(RunResult { sent: 1000, elapsed: Duration::from_micros(2500) }));
        assert_eq!(result_of("Result: Idle\n"), None);
    }

    #[test]
    fn both_families_are_told_their_addresses() {
        let course = |source: &str, target: &str| Course {
            source: source.parse().expect("an address"),
            flows: Range { ports: 12, addresses: 0 },
            target: target.parse().expect("an address"),
            gateway: [2, 0, 0, 0, 0, 0x1a],
        };
        let v4 = commands(&course("192.0.2.2:20000", "172.30.0.1:30003"), 5);
        assert!(
            v4.contains(&"dst_min 172.30.0.1".to_owned()) && v4.contains(&"udp_src_max 24095".to_owned()),
            "{v4:?}"
        );
        let v6 = commands(&course("[2001:db8::2]:20000", "[fd00::1]:30003"), 5);
        assert!(
            v6.contains(&"dst6 fd00::1".to_owned()) && v6.contains(&"dst_mac 02:00:00:00:00:1a".to_owned()),
            "{v6:?}"
        );
    }
}

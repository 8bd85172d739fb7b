//! A large transfer over one connection, compared byte by byte with what was sent.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use super::{ExchangeError, Namespace, TcpSession};

/// The content repeats after this many bytes, a prime: no chunk of the transfer looks like its neighbour.
const PERIOD: usize = 1_000_003;

const CHUNK: usize = 1 << 18;

/// A transfer of this many bytes through an echo server.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    /// How much is sent, and has to come back.
    pub bytes: usize,
}

/// What a transfer did.
#[derive(Clone, Copy, Debug)]
pub struct BulkReport {
    /// How many bytes came back equal.
    pub intact: usize,
    /// From connect to the last byte.
    pub took: Duration,
}

impl Bulk {
    /// Sends from `namespace` to the echo server behind `target` while reading back what it echoes.
    pub fn run(self, namespace: &Namespace, target: SocketAddr) -> Result<BulkReport, ExchangeError> {
        let started = Instant::now();
        let mut receiving = TcpSession::open(namespace, target)?.into_stream();
        let no_answer = |source| ExchangeError::NoAnswer { target, source };
        let mut sending = receiving.try_clone().map_err(no_answer)?;
        let content = content();
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                for_chunks(self.bytes, &content, |chunk| sending.write_all(chunk))
                    .and_then(|()| sending.shutdown(Shutdown::Write))
            });
            let mut intact = 0;
            let mut buffer = vec![0; CHUNK];
            let received = for_chunks(self.bytes, &content, |expected| {
                let answer = &mut buffer[..expected.len()];
                receiving.read_exact(answer)?;
                if answer != expected {
                    return Err(std::io::Error::other("the content was changed on the way"));
                }
                intact += expected.len();
                Ok(())
            });
            if received.is_err() {
                // Otherwise the sender would wait for a reader that is gone.
                let _ = receiving.shutdown(Shutdown::Both);
            }
            let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            received.and(sent).map_err(no_answer)?;
            Ok(BulkReport { intact, took: started.elapsed() })
        })
    }
}

/// One period of pseudo-random bytes, the same in every run.
fn content() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..PERIOD)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        })
        .collect()
}

/// Calls `with` for consecutive pieces of the endless repetition of `content`, `total` bytes in all.
fn for_chunks(total: usize, content: &[u8], mut with: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut done = 0;
    while done < total {
        let at = done % content.len();
        let length = CHUNK.min(content.len() - at).min(total - done);
        with(&content[at..at + length])?;
        done += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_total_in_order() {
        let content = content();
        let total = 2 * PERIOD + 17;
        let mut seen = Vec::new();
        for_chunks(total, &content, |chunk| {
            seen.extend_from_slice(chunk);
            Ok(())
        })
        .expect("nothing fails");
        assert_eq!(seen.len(), total);
        assert!(seen.iter().enumerate().all(|(at, byte)| *byte == content[at % PERIOD]));
    }
}

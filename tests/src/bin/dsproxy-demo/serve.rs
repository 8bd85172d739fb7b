//! A backend of the demo: it tells its name and who asked, over HTTP and over UDP, on one port of both
//! families.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::Context as _;

/// A client that says nothing for this long is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until the process is ended.
pub(crate) fn run(name: &str, port: u16) -> anyhow::Result<()> {
    // An IPv6 socket on the unspecified address takes IPv4 too.
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let tcp = TcpListener::bind(any).with_context(|| format!("listen on TCP {any}"))?;
    let udp = UdpSocket::bind(any).with_context(|| format!("listen on UDP {any}"))?;
    thread::scope(|scope| {
        let udp_server = scope.spawn(|| -> anyhow::Result<()> {
            let mut question = [0; 2048];
            loop {
                let (_, client) = udp.recv_from(&mut question).context("receive over UDP")?;
                // An answer that cannot be delivered is the client's loss, not the server's end.
                let _ = udp.send_to(answer(name, client.ip()).as_bytes(), client);
            }
        });
        loop {
            let (stream, client) = tcp.accept().context("accept a connection")?;
            scope.spawn(move || answer_http(&stream, name, client.ip()));
            if udp_server.is_finished() {
                anyhow::bail!("the UDP server ended");
            }
        }
    })
}

fn answer(name: &str, client: IpAddr) -> String {
    format!("{name} answers {}\n", client.to_canonical())
}

/// Reads one request and answers it; whatever goes wrong ends this connection only.
fn answer_http(stream: &TcpStream, name: &str, client: IpAddr) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let end_of_head = |line: &std::io::Result<String>| !line.as_ref().is_ok_and(|line| !line.is_empty());
    BufReader::new(stream).lines().find(end_of_head)?.ok()?;
    let body = answer(name, client);
    let head = format!("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut stream = stream;
    stream.write_all((head + &body).as_bytes()).ok()
}

//! A network of its own for each test: a namespace with nothing but loopback.
//!
//! It knows nothing of servers. Two tests may listen on one port, and no packet leaves the namespace.

use std::io;

use nix::sched::{CloneFlags, unshare};

/// Runs a test in a network namespace of its own, on a runtime of one thread.
///
/// Needs the right to make namespaces, and fails without it.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    let outcome = std::thread::scope(|scope| {
        let name = std::thread::current().name().unwrap_or("test").to_owned();
        let thread = std::thread::Builder::new().name(name).spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNET).expect("make a network namespace (run as root)");
            bring_loopback_up().expect("bring loopback up");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("make a runtime");
            runtime.block_on(test());
        });
        thread.expect("start a thread").join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn bring_loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use std::os::fd::AsRawFd;

    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an ifreq is plain bytes, and all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads an ifreq from the pointer during the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

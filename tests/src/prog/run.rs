//! One system call: `BPF_PROG_TEST_RUN`, for programs at tc hooks and at XDP.
//!
//! aya has it too, but without the flags for socket buffers. Knows nothing of what the program does.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    time::Duration,
};

use aya::programs::ProgramFd;
use bytes::Bytes;

use super::LOOPBACK;

/// What a program asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next program decides (`TC_ACT_UNSPEC`), or the stack (`XDP_PASS`).
    Pass,
    /// The packet ends here (`TC_ACT_SHOT`, `XDP_DROP`).
    Drop,
    /// It leaves by the device that the program has named (`TC_ACT_REDIRECT`, `XDP_REDIRECT`).
    Redirect,
    /// It leaves by the device it came by (`XDP_TX`).
    Transmit,
    /// Anything else.
    Other(u32),
}

impl Verdict {
    /// What a program at a tc hook means by `value`.
    pub fn of_tc(value: u32) -> Self {
        match value.cast_signed() {
            -1 => Self::Pass,
            2 => Self::Drop,
            7 => Self::Redirect,
            _ => Self::Other(value),
        }
    }

    /// What a program at XDP means by `value`.
    pub fn of_xdp(value: u32) -> Self {
        match value {
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Transmit,
            4 => Self::Redirect,
            _ => Self::Other(value),
        }
    }
}

/// How the program gets the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// At a tc hook, in a buffer of these properties.
    Buffer(SkBuff),
    /// At XDP, as a frame that came by the loopback device.
    Frame,
}

/// Properties of the buffer that the packet comes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkBuff {
    /// An aggregate of segments of this size, so many of them.
    pub segments: Option<(u32, u32)>,
    /// The device has summed up the whole packet (`CHECKSUM_COMPLETE`); a run fails if the sum is wrong afterwards.
    pub summed: bool,
    /// The index of the device that it comes by; zero: the loopback device.
    pub device: u32,
}

/// What a run has given.
#[derive(Clone, Debug)]
pub struct TestRun {
    /// What the program returned, the last time.
    pub verdict: Verdict,
    /// The packet afterwards.
    pub packet: Bytes,
    /// The time that one repetition took.
    pub duration: Duration,
}

/// `BPF_PROG_TEST_RUN` in `enum bpf_cmd`.
const BPF_PROG_TEST_RUN: libc::c_long = 10;

/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE` (include/uapi/linux/bpf.h, 6.16).
const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;

/// The member `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// `struct __sk_buff`, of which the kernel takes a few members in and wants all others zero.
#[repr(C)]
struct Context {
    words: [u32; 48],
}

/// Where members stand in it, in words.
const INGRESS_IFINDEX: usize = 9;
const IFINDEX: usize = 10;
const GSO_SEGS: usize = 41;
const GSO_SIZE: usize = 44;

/// The longest packet that comes back.
const ROOM: usize = 16 * 1024;

pub(super) fn test_run(program: &ProgramFd, packet: &[u8], input: Input, repeat: u32) -> io::Result<TestRun> {
    let mut context = Context { words: [0; 48] };
    let mut output = vec![0u8; ROOM];
    let mut attributes = Attributes {
        prog_fd: program.as_fd().as_raw_fd().cast_unsigned(),
        data_size_in: packet.len() as u32,
        data_size_out: output.len() as u32,
        data_in: packet.as_ptr() as u64,
        data_out: output.as_mut_ptr() as u64,
        repeat,
        ..Attributes::default()
    };
    match input {
        Input::Buffer(SkBuff { segments, summed, device }) => {
            attributes.flags = if summed { BPF_F_TEST_SKB_CHECKSUM_COMPLETE } else { 0 };
            // Everything comes by the device that frames come by.
            context.words[INGRESS_IFINDEX] = if device == 0 { LOOPBACK } else { device };
            context.words[IFINDEX] = device;
            if let Some((size, count)) = segments {
                context.words[GSO_SIZE] = size;
                context.words[GSO_SEGS] = count;
            }
            attributes.ctx_in = (&raw const context) as u64;
            attributes.ctx_size_in = size_of::<Context>() as u32;
        }
        Input::Frame => {}
    }
    // SAFETY: the attributes are laid out as the kernel defines them, and every address in them is that of a buffer that
    // outlives the call, with its length beside it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<Attributes>() as libc::c_ulong)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    output.truncate(attributes.data_size_out as usize);
    Ok(TestRun {
        verdict: match input {
            Input::Buffer(_) => Verdict::of_tc(attributes.retval),
            Input::Frame => Verdict::of_xdp(attributes.retval),
        },
        packet: output.into(),
        duration: Duration::from_nanos(attributes.duration.into()),
    })
}

//! The benchmark's kernel programs: each puts a packet's headers back to what they were, and goes on with the program that
//! is measured.
//!
//! The kernel runs a program over and over on one packet, with whatever it made of it the last time. Without these,
//! a program that translates would be measured once and then see packets that are not for it. What they cost is
//! measured too, with a program behind them that does nothing.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
// On the host the crate is only checked: nothing calls the programs there.
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code))]
// The program attribute makes public functions without documentation around ours.
#![allow(missing_docs, unreachable_pub)]

#[path = "../../../dsproxy-ebpf/src/wire.rs"]
#[allow(dead_code, reason = "headers are written here, never read")]
mod wire;

use aya_ebpf::{
    bindings::{TC_ACT_STOLEN, TC_ACT_UNSPEC},
    btf_maps::{Array, ProgramArray},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use dsproxy_bench_ebpf::{End, Plan};

use crate::wire::Wire;

/// The program that is measured.
#[btf_map]
static TARGET: ProgramArray<1> = ProgramArray::new();
#[btf_map]
static PLAN: Array<Plan, 1> = Array::new();
/// The number of the next run.
#[btf_map]
static SEQUENCE: Array<u32, 1> = Array::new();

const ETHERNET: usize = 14;

/// Where the fields stand in the packets of one shape: Ethernet, no tags, no options.
trait Shape {
    const WORDS: usize;
    const SOURCE: usize;
    const DESTINATION: usize;
    const HEADER_CHECKSUM: Option<usize>;
    const SOURCE_PORT: usize;
    const TRANSPORT_CHECKSUM: usize;
    const LENGTH: usize;
}

macro_rules! shapes {
    ($($program:ident = $shape:ident: $words:literal words at $source:literal, checksum $checksum:expr,
        transport at $transport:literal, checksum at $transport_checksum:literal of $length:literal;)+) => {
        $(
            enum $shape {}

            impl Shape for $shape {
                const WORDS: usize = $words;
                const SOURCE: usize = ETHERNET + $source;
                const DESTINATION: usize = Self::SOURCE + $words * 4;
                const HEADER_CHECKSUM: Option<usize> = $checksum;
                const SOURCE_PORT: usize = ETHERNET + $transport;
                const TRANSPORT_CHECKSUM: usize = Self::SOURCE_PORT + $transport_checksum;
                const LENGTH: usize = Self::SOURCE_PORT + $length;
            }

            #[classifier]
            pub fn $program(context: TcContext) -> i32 {
                run::<$shape>(&context)
            }
        )+
    };
}

shapes! {
    tcp_v4 = TcpV4: 1 words at 12, checksum Some(ETHERNET + 10), transport at 20, checksum at 16 of 20;
    udp_v4 = UdpV4: 1 words at 12, checksum Some(ETHERNET + 10), transport at 20, checksum at 6 of 8;
    tcp_v6 = TcpV6: 4 words at 8, checksum None, transport at 40, checksum at 16 of 20;
    udp_v6 = UdpV6: 4 words at 8, checksum None, transport at 40, checksum at 6 of 8;
}

/// What the programs above cost by themselves is measured with this one behind them.
#[classifier]
pub fn empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[inline(always)]
fn run<S: Shape>(context: &TcContext) -> i32 {
    if restore::<S>(context).is_some() {
        // SAFETY: nothing here needs to be dropped.
        unsafe { TARGET.tail_call(context, 0) };
    }
    // The packet is too short, or there is no program to measure.
    TC_ACT_STOLEN
}

#[inline(always)]
fn restore<S: Shape>(context: &TcContext) -> Option<()> {
    let plan = PLAN.get(0)?;
    let counter = SEQUENCE.get_ptr_mut(0)?;
    // SAFETY: a map value, valid until the program ends; one program runs at a time.
    let sequence = unsafe { *counter };
    // SAFETY: as above.
    unsafe { *counter = sequence.wrapping_add(1) };

    let start = context.data();
    if start + S::LENGTH > context.data_end() {
        return None;
    }
    let start = start as *mut u8;
    let Plan { source, destination, header_checksum, transport_checksum } = plan;
    // SAFETY: every offset of a shape lies within its length, which was just compared with that of the packet.
    unsafe {
        write_end::<S>(start, S::SOURCE, S::SOURCE_PORT, source, sequence);
        write_end::<S>(start, S::DESTINATION, S::SOURCE_PORT + 2, destination, sequence);
        if let Some(offset) = S::HEADER_CHECKSUM {
            u16::store::<0>(start.add(offset), *header_checksum as u16);
        }
        u16::store::<0>(start.add(S::TRANSPORT_CHECKSUM), *transport_checksum as u16);
    }
    Some(())
}

/// Puts an end in place, field by field as the programs that are measured read it: a processor that finds two stores
/// behind one load has to wait.
///
/// # Safety
///
/// The fields must lie within the packet.
#[inline(always)]
unsafe fn write_end<S: Shape>(start: *mut u8, address: usize, port: usize, end: &End, sequence: u32) {
    let mut word = 0;
    while word + 1 < S::WORDS {
        // SAFETY: given by the caller.
        unsafe { u32::store::<0>(start.add(address + word * 4), end.prefix[word]) };
        word += 1;
    }
    // SAFETY: as above.
    unsafe {
        u32::store::<0>(start.add(address + word * 4), end.address_in(sequence).to_be());
        u16::store::<0>(start.add(port), end.port_in(sequence).to_be());
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing in the programs panics; the verifier would refuse an endless loop.
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}

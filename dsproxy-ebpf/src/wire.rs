//! Integers in packets, at any alignment, with one instruction each.
//!
//! Rust's `read_unaligned` becomes one load a byte on this architecture, whose code generator assumes the worst of
//! the machine; an aligned read of an unaligned field is undefined behaviour. The instruction itself is fine
//! with either: the verifier checks alignment on the machines that need it.

/// An integer that stands in packets.
pub(crate) trait Wire: Copy {
    /// Reads the integer at `start + OFFSET`.
    ///
    /// # Safety
    ///
    /// The bytes must be readable.
    unsafe fn load<const OFFSET: usize>(start: *const u8) -> Self;

    /// Writes the integer at `start + OFFSET`.
    ///
    /// # Safety
    ///
    /// The bytes must be writable.
    unsafe fn store<const OFFSET: usize>(start: *mut u8, value: Self);
}

macro_rules! wire {
    ($($integer:ty: $size:literal),+) => {
        $(
            impl Wire for $integer {
                #[cfg(target_arch = "bpf")]
                #[inline(always)]
                unsafe fn load<const OFFSET: usize>(start: *const u8) -> Self {
                    let value: u64;
                    // SAFETY: one load, of bytes that the caller vouches for.
                    unsafe {
                        core::arch::asm!(
                            concat!("{value} = *(", $size, " *)({start} + {offset})"),
                            value = lateout(reg) value,
                            start = in(reg) start,
                            offset = const OFFSET,
                            options(readonly, nostack, preserves_flags),
                        );
                    }
                    value as Self
                }

                #[cfg(target_arch = "bpf")]
                #[inline(always)]
                unsafe fn store<const OFFSET: usize>(start: *mut u8, value: Self) {
                    // SAFETY: one store, to bytes that the caller vouches for.
                    unsafe {
                        core::arch::asm!(
                            concat!("*(", $size, " *)({start} + {offset}) = {value}"),
                            value = in(reg) u64::from(value),
                            start = in(reg) start,
                            offset = const OFFSET,
                            options(nostack, preserves_flags),
                        );
                    }
                }

                #[cfg(not(target_arch = "bpf"))]
                unsafe fn load<const OFFSET: usize>(start: *const u8) -> Self {
                    // SAFETY: bytes that the caller vouches for.
                    unsafe { start.add(OFFSET).cast::<Self>().read_unaligned() }
                }

                #[cfg(not(target_arch = "bpf"))]
                unsafe fn store<const OFFSET: usize>(start: *mut u8, value: Self) {
                    // SAFETY: bytes that the caller vouches for.
                    unsafe { start.add(OFFSET).cast::<Self>().write_unaligned(value) };
                }
            }
        )+
    };
}

wire!(u8: "u8", u16: "u16", u32: "u32");

//! What the kernel's verifier is better off not knowing.
//!
//! The verifier follows every way through a program. Where two ways meet again it follows the second no further if all it
//! knows there is known to be harmless from the first; offsets that differ are enough to keep them apart, and ways multiply.
//! Before headers of every length lead to the same few lines, it is made to forget how long they were.

/// `value`, of which the verifier knows afterwards only that it is at most `most`; none if it is more. It must be less than
/// twice as much.
///
/// `noise` is any number that the verifier knows nothing of, so read from the packet or its buffer.
#[inline(always)]
pub(crate) fn forget(value: usize, noise: u32, most: usize) -> Option<usize> {
    // A comparison bounds one copy of a value: verifiers before 6.8 learn nothing from it about another that the compiler has put
    // on the stack. A mask bounds all of them, and so closely that they may still be offsets in a packet.
    let value = blur(value, noise) & ((2 * most + 1).next_power_of_two() - 1);
    (value <= most).then_some(value)
}

/// `value`, of which the verifier knows nothing afterwards. `noise` is as for `forget`.
#[inline(always)]
pub(crate) fn blurred(value: u32, noise: u32) -> u32 {
    blur(value as usize, noise) as u32
}

/// `value`, or `MOST` if it is more.
///
/// What is compared is what is returned, in one register. The compiler may compare one copy and use another from the stack, and
/// a verifier before 6.8 does not see that they are the same.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) fn at_most<const MOST: u32>(value: u32) -> u32 {
    let mut value = u64::from(value);
    // SAFETY: arithmetic on a register alone.
    unsafe {
        core::arch::asm!(
            "if {value} <= {most} goto +1",
            "{value} = {most}",
            value = inout(reg) value,
            most = const MOST,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    value as u32
}

#[cfg(not(target_arch = "bpf"))]
pub(crate) fn at_most<const MOST: u32>(value: u32) -> u32 {
    value.min(MOST)
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
fn blur(mut value: usize, noise: u32) -> usize {
    // SAFETY: arithmetic on registers alone. The sum less the noise is the value, which the verifier, who looks at one
    // instruction at a time, does not see.
    unsafe {
        core::arch::asm!(
            "{value} += {noise}",
            "{value} -= {noise}",
            value = inout(reg) value,
            noise = in(reg) u64::from(noise),
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    value
}

#[cfg(not(target_arch = "bpf"))]
fn blur(value: usize, _: u32) -> usize {
    value
}

//! What every object of kernel programs has beside them.

/// The end of a kernel object's source: licence and panic handler, and an empty `main` where it is not compiled for the kernel.
#[macro_export]
macro_rules! kernel_object {
    () => {
        #[cfg(target_arch = "bpf")]
        #[panic_handler]
        fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
            // Nothing in the programs panics; the verifier would refuse an endless loop.
            loop {}
        }

        /// The programs may use helpers that the kernel reserves for GPL-compatible code.
        #[cfg(target_arch = "bpf")]
        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

        #[cfg(not(target_arch = "bpf"))]
        fn main() {}
    };
}

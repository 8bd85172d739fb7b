//! How the process keeps memory that it has given back, and when it gives it back to the system.

use tracing::warn;

/// How many arenas the C library may keep. By default it keeps one for each thread that has ever met another in the allocator, up to
/// eight for each processor, and memory that one has given back is no use to the others: what is listed again after an outage of the
/// API server then comes on top each time. Of the daemon's threads hardly two allocate at once.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 1;

/// Has memory that is given back be used again. To be called before there are threads.
pub fn share_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: a function of the C library that takes integers, called before there are other threads.
        if unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) } != 1 {
            warn!("the C library does not take a number of arenas: memory may grow");
        }
    }
}

/// How many bytes are in use, of all that was asked for; none where the C library does not tell.
pub fn in_use() -> Option<usize> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: a function of the C library without arguments that may be called at any time, by any thread.
        let told = unsafe { libc::mallinfo2() };
        Some(told.uordblks + told.hblkhd)
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

/// Gives the system the pages back that nothing is in any more: of a list of everything, what it took to read it and to bring it into the
/// maps. It looks at all of the heap, and so is for rare occasions.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: a function of the C library that takes an integer and may be called at any time, by any thread.
        unsafe { libc::malloc_trim(0) };
    }
}

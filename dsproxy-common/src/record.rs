//! The rule for everything that is stored in a map.

/// Declares that types are stored in maps: plain integers, no padding, any bytes valid.
///
/// Each entry names a type and the sizes of its fields; the sum is checked against the size of the type, so a
/// padding byte, whose content would be undefined in a map key, fails the build. With the feature `user` the
/// type may be passed to aya's maps.
macro_rules! record {
    ($($name:ty = [$($field:expr),+ $(,)?];)+) => {
        $(
            const _: () = assert!(
                size_of::<$name>() == 0 $(+ $field)+,
                "a map record must not have padding",
            );

            // SAFETY: the type is `repr(C)`, made of integers only, and the assertion above shows that it
            // has no padding.
            #[cfg(feature = "user")]
            unsafe impl aya::Pod for $name {}
        )+
    };
}

pub(crate) use record;

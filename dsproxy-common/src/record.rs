//! The rule for everything that is stored in a map: plain integers, no padding, any bytes valid.

/// Declares that types are stored in maps.
///
/// Each entry names a type and the sizes of its fields; the sum is checked against the size of the type, so that a
/// padding byte, whose content would be undefined in a map key, fails the build. With the feature `user` the type
/// may be passed to aya's maps.
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

/// As `record`, for types that hold a number of addresses of either family and other fields.
macro_rules! family_record {
    ($($name:ident = [$addresses:literal addresses $(, $field:expr)* $(,)?];)+) => {
        $(
            const _: () = assert!(
                size_of::<$name<crate::Addr4>>() == $addresses * 4 $(+ $field)*
                    && size_of::<$name<crate::Addr6>>() == $addresses * 16 $(+ $field)*,
                "a map record must not have padding",
            );

            // SAFETY: as for `record`; the assertion holds for the two types that are addresses.
            #[cfg(feature = "user")]
            unsafe impl<A: crate::Address + aya::Pod> aya::Pod for $name<A> {}
        )+
    };
}

pub(crate) use {family_record, record};

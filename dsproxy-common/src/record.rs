//! The rule for everything that is stored in a map: plain integers, no padding, any bytes valid; and every field has a name, by which
//! another version finds it again.

/// A field of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name. What it means never changes: another meaning, or another type within it, takes another name. That it is zero means
    /// what it meant before there was such a field.
    pub name: &'static str,
    /// Where it begins, in bytes.
    pub offset: usize,
    /// How many bytes it has.
    pub size: usize,
}

/// A type that is stored in maps.
pub trait Record {
    /// Its fields, in the order in which they stand.
    const FIELDS: &'static [Field];
}

macro_rules! integer_record {
    ($($name:ty)+) => {
        $(
            impl Record for $name {
                const FIELDS: &'static [Field] = &[Field { name: "value", offset: 0, size: size_of::<Self>() }];
            }
        )+
    };
}

integer_record! { u32 u64 }

/// The size of what a pointer points to.
pub(crate) const fn size_behind<T>(_: *const T) -> usize {
    size_of::<T>()
}

/// The fields of a type, and the check that there is nothing beside them.
macro_rules! fields {
    ($name:ty { $($field:tt),+ }) => {
        const FIELDS: &'static [crate::record::Field] = &[$(
            crate::record::Field {
                name: stringify!($field),
                offset: core::mem::offset_of!($name, $field),
                size: {
                    let value = core::mem::MaybeUninit::<$name>::uninit();
                    // SAFETY: only the place of a field within the value is named; nothing is read.
                    crate::record::size_behind(unsafe { &raw const (*value.as_ptr()).$field })
                },
            },
        )+];
    };
}

/// The bytes that all fields have together.
pub(crate) const fn size_of_fields(fields: &[Field]) -> usize {
    let mut sum = 0;
    let mut index = 0;
    while index < fields.len() {
        sum += fields[index].size;
        index += 1;
    }
    sum
}

/// Declares that types are stored in maps.
///
/// Each entry names a type and all of its fields; the sum of their sizes is checked against the size of the type, so that a
/// padding byte, whose content would be undefined in a map key, fails the build. With the feature `user` the type
/// may be passed to aya's maps.
macro_rules! record {
    ($($name:ident { $($field:tt),+ $(,)? })+) => {
        $(
            impl crate::record::Record for $name {
                crate::record::fields!($name { $($field),+ });
            }

            const _: () = assert!(
                size_of::<$name>() == crate::record::size_of_fields(<$name as crate::record::Record>::FIELDS),
                "a map record must not have padding",
            );

            // SAFETY: the type is `repr(C)`, made of integers only, and the assertion above shows that it
            // has no padding.
            #[cfg(feature = "user")]
            unsafe impl aya::Pod for $name {}
        )+
    };
}

/// As `record`, for types that hold addresses of either family.
macro_rules! family_record {
    ($($name:ident { $($field:tt),+ $(,)? })+) => {
        $(
            impl<A: crate::Address> crate::record::Record for $name<A> {
                crate::record::fields!($name<A> { $($field),+ });
            }

            const _: () = assert!(
                size_of::<$name<crate::Addr4>>()
                    == crate::record::size_of_fields(<$name<crate::Addr4> as crate::record::Record>::FIELDS)
                    && size_of::<$name<crate::Addr6>>()
                        == crate::record::size_of_fields(<$name<crate::Addr6> as crate::record::Record>::FIELDS),
                "a map record must not have padding",
            );

            // SAFETY: as for `record`; the assertion holds for the two types that are addresses.
            #[cfg(feature = "user")]
            unsafe impl<A: crate::Address + aya::Pod> aya::Pod for $name<A> {}
        )+
    };
}

pub(crate) use {family_record, fields, record};

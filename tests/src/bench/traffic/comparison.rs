//! What is compared: which variants, by what measures, and on which ways.

use super::{
    client::Measure,
    stage::Way,
    variant::{FORWARDING_VARIANTS, VARIANTS, Variant},
};

/// A set of variants that take turns.
pub(super) struct Comparison {
    /// The floor first: the others are held against it.
    pub(super) variants: &'static [Variant],
    pub(super) measures: &'static [Measure],
    pub(super) ways: &'static [Way],
    /// Whether devices are what hardware is to XDP: with checksums finished by whoever sends.
    pub(super) is_like_hardware: bool,
    /// What figures add to the way for that.
    pub(super) devices: &'static str,
    /// Whether figures have aims. They are for devices as they come.
    pub(super) has_aims: bool,
}

/// All of them, one after the other.
pub(super) static COMPARISONS: [Comparison; 2] = [
    Comparison {
        variants: &VARIANTS,
        measures: &Measure::ALL,
        ways: &Way::ALL,
        is_like_hardware: false,
        devices: "",
        has_aims: true,
    },
    // A veth leaves the checksum to whoever is last, and XDP leaves such packets to the stack. What is sent with its checksum costs more, with
    // every variant alike.
    Comparison {
        variants: &FORWARDING_VARIANTS,
        measures: &[Measure::Requests, Measure::Datagrams, Measure::Bulk],
        ways: &[Way::NodePort],
        is_like_hardware: true,
        devices: ", devices like hardware",
        has_aims: false,
    },
];

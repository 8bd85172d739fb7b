//! ICMP and ICMPv6: what is numbered differently, and where the fields stand that both have (RFC 792, RFC 4443).

/// The header, in bytes: type, code, checksum, and four bytes whose meaning depends on the type.
pub(crate) const HEADER: usize = 8;
/// Where its fields stand.
pub(crate) const TYPE: usize = 0;
pub(crate) const CODE: usize = 1;
pub(crate) const CHECKSUM: usize = 2;
pub(crate) const REST: usize = 4;

/// The numbers of one family.
pub(crate) struct Numbers {
    /// The protocol number in the IP header.
    pub(crate) protocol: u8,
    /// The types of echo messages.
    pub(crate) echo_request: u8,
    pub(crate) echo_reply: u8,
    /// Type and code of "destination unreachable, port unreachable".
    pub(crate) port_unreachable: (u8, u8),
    /// The lowest and the highest type of those errors that quote a packet and are translated with it.
    pub(crate) errors: (u8, u8),
    /// Types in between that are not.
    pub(crate) not_errors: (u8, u8),
    /// Whether the checksum covers a pseudo-header, and with it the addresses.
    pub(crate) has_pseudo_header: bool,
    /// The longest error with its IP header, in bytes: what every host takes in one piece.
    pub(crate) longest_error: usize,
    /// The type of service or traffic class of errors.
    pub(crate) error_class: u8,
    /// Whether a `connect` that is still going on takes an error for a mere hint, and goes on for a second.
    pub(crate) error_is_hint: bool,
}

/// ICMP. Errors take as much as RFC 1812, section 4.3.2.3, lets them, with the precedence of section 4.3.2.5. Destination
/// unreachable, time exceeded and parameter problem are translated; source quench and redirects are no concern of anybody behind
/// a translation, nor are echo and router discovery (4 to 10).
pub(crate) const V4: Numbers = Numbers {
    protocol: 1,
    echo_request: 8,
    echo_reply: 0,
    port_unreachable: (3, 3),
    errors: (3, 12),
    not_errors: (4, 10),
    has_pseudo_header: false,
    longest_error: 576,
    error_class: 0xc0,
    error_is_hint: false,
};

/// ICMPv6. Errors are as long as the smallest MTU (RFC 4443, section 2.4, c). All types that are known as errors are translated.
pub(crate) const V6: Numbers = Numbers {
    protocol: 58,
    echo_request: 128,
    echo_reply: 129,
    port_unreachable: (1, 4),
    errors: (1, 4),
    not_errors: (0, 0),
    has_pseudo_header: true,
    longest_error: 1280,
    error_class: 0,
    error_is_hint: true,
};

impl Numbers {
    /// Whether messages of this type are errors that may be about a translated packet.
    #[inline(always)]
    pub(crate) const fn is_error(&self, kind: u8) -> bool {
        let is_between = kind >= self.not_errors.0 && kind <= self.not_errors.1;
        kind >= self.errors.0 && kind <= self.errors.1 && !is_between
    }
}

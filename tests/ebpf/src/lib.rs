//! What the benchmark and the tests share with their kernel programs. Knows nothing of the programs that are measured or
//! tested.

#![no_std]

/// The headers as they are to be before each run, and how they change from one run to the next.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The source.
    pub source: End,
    /// The destination.
    pub destination: End,
    /// The checksum of the IPv4 header, as it stands in the packet.
    pub header_checksum: u32,
    /// The checksum of the transport header, as it stands in the packet. It is right for one of the runs only, and no
    /// program looks whether it is.
    pub transport_checksum: u32,
}

/// How much of a packet that the kernel makes is put in place each time, in words of 32 bits: all headers of either family.
pub const TEMPLATE_WORDS: usize = 16;

/// One end of a packet: its port counts up through a range, and its address does each time the ports are through.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The address but for its last 32 bits, as it stands in the packet. Not used for IPv4.
    pub prefix: [u32; 3],
    /// The lowest last 32 bits of the address, as a number.
    pub address: u32,
    /// Which of them change, counted from the lowest: a power of two, less one.
    pub address_mask: u32,
    /// After how many runs they do: a power of two, of which this is the logarithm.
    pub address_shift: u32,
    /// The lowest port, as a number.
    pub port: u32,
    /// Which of its bits change, counted from the lowest: a power of two, less one.
    pub port_mask: u32,
}

impl End {
    /// The last 32 bits of the address in run number `sequence`, as a number.
    #[inline(always)]
    pub const fn address_in(&self, sequence: u32) -> u32 {
        self.address.wrapping_add((sequence >> (self.address_shift & 31)) & self.address_mask)
    }

    /// The port in run number `sequence`, as a number.
    #[inline(always)]
    pub const fn port_in(&self, sequence: u32) -> u16 {
        self.port.wrapping_add(sequence & self.port_mask) as u16
    }
}

/// Which keys a program makes whose calls are measured: numbers, in rotation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Keys {
    /// The lowest.
    pub first: u32,
    /// How many, a power of two, less one.
    pub mask: u32,
}

impl Keys {
    /// The number of the key of run number `sequence`.
    #[inline(always)]
    pub const fn number(&self, sequence: u32) -> u32 {
        self.first.wrapping_add(sequence & self.mask)
    }
}

/// A program of somebody else's; its number is its place among the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bystander {
    /// Of packets that come in by an interface.
    Ingress,
    /// Of packets that go out.
    Egress,
    /// Of sockets that are connected to an IPv4 address.
    Connect4,
    /// To an IPv6 address.
    Connect6,
    /// Of frames, before they are packets.
    Frame,
}

/// All of them, in the order of their numbers.
pub const BYSTANDERS: [Bystander; 5] =
    [Bystander::Ingress, Bystander::Egress, Bystander::Connect4, Bystander::Connect6, Bystander::Frame];

impl Bystander {
    /// The name of the program, as the kernel keeps it.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Ingress => "seen_ingress",
            Self::Egress => "seen_egress",
            Self::Connect4 => "seen_connect4",
            Self::Connect6 => "seen_connect6",
            Self::Frame => "seen_frame",
        }
    }
}

// SAFETY: made of 32-bit integers only, so there is no padding and any bytes are valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Plan {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Keys {}

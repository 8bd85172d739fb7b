//! Where a program's pointers lead: a packet, a context, a stack and the values of maps, each a region of an address space of its own.

use super::Fault;

/// How far apart regions begin. All addresses are below 2^32, for a context has room for no more.
const STRIDE: u64 = 1 << 16;

/// Regions of bytes, each found by the upper part of an address.
#[derive(Default)]
pub(super) struct Memory {
    regions: Vec<Vec<u8>>,
}

impl Memory {
    /// Adds `bytes`, at most 64 KiB, and says where they begin.
    pub(super) fn add(&mut self, bytes: Vec<u8>) -> Result<u64, Fault> {
        let address = (self.regions.len() as u64 + 1) * STRIDE;
        if bytes.len() as u64 > STRIDE || address > u64::from(u32::MAX) - STRIDE {
            return Err(Fault::NoRoom);
        }
        self.regions.push(bytes);
        Ok(address)
    }

    /// The `length` bytes at `address`.
    pub(super) fn bytes(&self, address: u64, length: usize) -> Result<&[u8], Fault> {
        let (region, offset) = place(address).ok_or(Fault::Outside { address })?;
        let bytes = self.regions.get(region).and_then(|bytes| bytes.get(offset..offset.checked_add(length)?));
        bytes.ok_or(Fault::Outside { address })
    }

    /// As `bytes`, to be written to.
    pub(super) fn bytes_mut(&mut self, address: u64, length: usize) -> Result<&mut [u8], Fault> {
        let (region, offset) = place(address).ok_or(Fault::Outside { address })?;
        let bytes = self.regions.get_mut(region).and_then(|bytes| bytes.get_mut(offset..offset.checked_add(length)?));
        bytes.ok_or(Fault::Outside { address })
    }

    /// The integer of `size` bytes, 8 at most, at `address`, in this machine's order.
    pub(super) fn load(&self, address: u64, size: usize) -> Result<u64, Fault> {
        let mut value = [0; 8];
        value[..size].copy_from_slice(self.bytes(address, size)?);
        Ok(u64::from_le_bytes(value))
    }

    /// Puts the lowest `size` bytes of `value`, 8 at most, at `address`.
    pub(super) fn store(&mut self, address: u64, size: usize, value: u64) -> Result<(), Fault> {
        self.bytes_mut(address, size)?.copy_from_slice(&value.to_le_bytes()[..size]);
        Ok(())
    }
}

fn place(address: u64) -> Option<(usize, usize)> {
    let region = (address / STRIDE).checked_sub(1)?;
    Some((usize::try_from(region).ok()?, (address % STRIDE) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded_and_nothing_beyond_a_region() {
        let mut memory = Memory::default();
        let (one, other) = (memory.add(vec![0; 8]).expect("there is room"), memory.add(vec![7; 2]).expect("and here"));
        memory.store(one + 2, 4, 0x1122_3344_5566).expect("it lies within");
        assert_eq!(memory.load(one, 8), Ok(0x3344_5566_0000));
        assert_eq!(memory.load(other, 2), Ok(0x0707));
        for (address, size) in [(one + 5, 4), (other + 1, 2), (other - 1, 1), (0, 1)] {
            assert_eq!(memory.load(address, size), Err(Fault::Outside { address }));
        }
    }
}

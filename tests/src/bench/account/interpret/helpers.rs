//! The kernel's functions that programs call (`enum bpf_func_id` in include/uapi/linux/bpf.h): those that packets meet in the account, each
//! done as the kernel does it.

use dsproxy_common::checksum;

use super::{
    Fault, Interpreter,
    tables::Kind,
    work::{Call, Work},
};

mod id {
    pub(super) const MAP_LOOKUP_ELEM: i32 = 1;
    pub(super) const MAP_UPDATE_ELEM: i32 = 2;
    pub(super) const MAP_DELETE_ELEM: i32 = 3;
    pub(super) const GET_PRANDOM_U32: i32 = 7;
    pub(super) const GET_SMP_PROCESSOR_ID: i32 = 8;
    pub(super) const L4_CSUM_REPLACE: i32 = 11;
    pub(super) const TAIL_CALL: i32 = 12;
    pub(super) const REDIRECT: i32 = 23;
    pub(super) const SKB_PULL_DATA: i32 = 39;
    pub(super) const GET_SOCKET_COOKIE: i32 = 46;
    pub(super) const JIFFIES64: i32 = 118;
    pub(super) const GET_NETNS_COOKIE: i32 = 122;
}

/// `BPF_F_MARK_MANGLED_0`: a sum of zero is written as its complement.
const MANGLED_ZERO: u64 = 1 << 5;
/// The size of the field that changes; none if the change itself is given.
const FIELD_SIZE: u64 = 0xf;

impl Interpreter {
    /// Calls the helper `id` with `arguments`, and notes it in `work`.
    pub(super) fn call(&mut self, id: i32, arguments: [u64; 5], work: &mut Work) -> Result<u64, Fault> {
        let [first, second, third, fourth, fifth] = arguments;
        match id {
            id::MAP_LOOKUP_ELEM => self.look_up(first, second, work),
            id::MAP_UPDATE_ELEM => {
                let place = super::map_place(first)?;
                let (result, was_there) = self.tables.update(&self.memory, place, [second, third, fourth])?;
                let name = self.tables.get(place)?.name.clone();
                work.add(if was_there { Call::Replaced(name) } else { Call::Inserted(name) });
                Ok(result.cast_unsigned())
            }
            id::MAP_DELETE_ELEM => {
                let place = super::map_place(first)?;
                let result = self.tables.remove(&self.memory, place, second)?;
                let name = self.tables.get(place)?.name.clone();
                work.add(if result == 0 { Call::Removed(name) } else { Call::RemovedNothing(name) });
                Ok(result.cast_unsigned())
            }
            id::L4_CSUM_REPLACE => {
                work.add(Call::Checksum);
                self.replace_checksum(second, [third, fourth], fifth)
            }
            id::GET_PRANDOM_U32 => {
                work.add(Call::Random);
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                Ok(self.random >> 32)
            }
            id::TAIL_CALL => {
                work.add(Call::NoProgram);
                Ok((-i64::from(libc::ENOENT)).cast_unsigned())
            }
            id::REDIRECT => {
                work.add(Call::Redirect);
                Ok(self.redirects_to)
            }
            // All of a packet is in one piece here.
            id::SKB_PULL_DATA => {
                work.add(Call::Pull);
                Ok(0)
            }
            id::GET_SOCKET_COOKIE => {
                work.add(Call::Cookie);
                Ok(self.cookies.socket)
            }
            id::GET_NETNS_COOKIE => {
                work.add(Call::Cookie);
                Ok(self.cookies.namespace)
            }
            // What a CPU has for itself is kept for this one alone.
            id::GET_SMP_PROCESSOR_ID => {
                work.add(Call::Processor);
                Ok(0)
            }
            id::JIFFIES64 => {
                work.add(Call::Jiffies);
                Ok(self.now.into())
            }
            other => Err(Fault::Helper { id: other }),
        }
    }

    fn look_up(&mut self, map: u64, key: u64, work: &mut Work) -> Result<u64, Fault> {
        let place = super::map_place(map)?;
        let found = self.tables.look_up(&mut self.memory, place, key)?;
        let table = self.tables.get(place)?;
        work.add(match table.kind {
            Kind::Flows => Call::Flows,
            Kind::Array | Kind::PerCpuArray => Call::Array,
            Kind::Trie => Call::Trie,
            Kind::Hash | Kind::Other if found == 0 => Call::Missed(table.name.clone()),
            Kind::Hash | Kind::Other => Call::Found(table.name.clone()),
        });
        Ok(found)
    }

    /// `bpf_l4_csum_replace` for a packet whose checksum is complete in its header: to that a change of the pseudo-header is one like any
    /// other.
    fn replace_checksum(&mut self, offset: u64, [from, to]: [u64; 2], flags: u64) -> Result<u64, Fault> {
        let address = self.packet.wrapping_add(offset);
        let held = self.memory.load(address, 2)? as u16;
        let (mangles, is_whole) = (flags & MANGLED_ZERO != 0, flags & FIELD_SIZE == 0);
        if mangles && held == 0 {
            return Ok(0);
        }
        let difference = if is_whole { to as u16 } else { checksum::word_difference(from as u16, to as u16) };
        let mut sum = checksum::update(held, difference);
        if mangles && sum == 0 {
            sum = u16::MAX;
        }
        self.memory.store(address, 2, sum.into())?;
        Ok(0)
    }
}

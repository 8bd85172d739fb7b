//! The kernel programs followed instruction by instruction outside the kernel, on the kernel's own maps, to see what a packet takes:
//! how many instructions, and which calls. What is followed is the object that the daemon loads.
//!
//! The kernel can be asked for neither. Whether a packet is followed rightly is seen by what becomes of it: verdict and packet have to be those
//! of `BPF_PROG_TEST_RUN`.

mod helpers;
mod memory;
mod tables;
mod work;

use std::collections::HashSet;

use aya::programs::ProgramInfo;
use aya_obj::{Object, generated::bpf_insn};
use bytes::Bytes;
use dsproxy::datapath::load::OBJECT;
use thiserror::Error;

use self::{
    memory::Memory,
    tables::{Table, Tables},
};
pub(in crate::bench) use work::{Call, Work};

/// Why a program could not be followed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// The object is not what it should be.
    #[error("the object has no program {name} that can be linked: {reason}")]
    Object {
        /// The program.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A map of the loaded program could not be used.
    #[error("use the map {name}: {reason}")]
    Map {
        /// Its name, or number.
        name: String,
        /// What went wrong.
        reason: String,
    },
    /// The program names a map that there is not.
    #[error("there is no map at place {place}")]
    NoMap {
        /// Which.
        place: usize,
    },
    /// The program reads or writes where nothing is.
    #[error("there is nothing at {address:#x}")]
    Outside {
        /// Where.
        address: u64,
    },
    /// More was asked for than is followed.
    #[error("there is no room for another value")]
    NoRoom,
    /// An instruction that is not known here.
    #[error("the instruction {code:#04x} at {place} is not known")]
    Instruction {
        /// Its operation.
        code: u8,
        /// Its number in the program.
        place: usize,
    },
    /// A helper that is not known here.
    #[error("the helper {id} is not known")]
    Helper {
        /// Its number.
        id: i32,
    },
    /// The program does not end.
    #[error("the program does not end within {MOST_INSTRUCTIONS} instructions")]
    Endless,
}

/// More than any packet takes.
const MOST_INSTRUCTIONS: u64 = 1_000_000;

/// What a pointer to a map is here: its place, and this bit.
const MAP: u64 = 1 << 40;

/// The stack of a frame, in bytes, and how many frames there may be.
const STACK: u64 = 512;
const FRAMES: usize = 8;

/// How much of a map's name the kernel keeps (`BPF_OBJ_NAME_LEN`, with the zero at the end).
const KEPT_NAME: usize = 15;

/// How a load of 64 bits says that it is one of a map (`BPF_PSEUDO_MAP_FD` in include/uapi/linux/bpf.h).
const PSEUDO_MAP: u8 = 1;
/// How a call says that it is one of another function of the program (`BPF_PSEUDO_CALL`).
const PSEUDO_CALL: u8 = 1;

/// `struct __sk_buff` in words, and where members stand in it.
mod buffer {
    pub(super) const WORDS: usize = 48;
    pub(super) const LENGTH: usize = 0;
    pub(super) const INGRESS_DEVICE: usize = 9;
    pub(super) const DEVICE: usize = 10;
    pub(super) const DATA: usize = 19;
    pub(super) const DATA_END: usize = 20;
}

/// `struct xdp_md` likewise.
mod frame {
    pub(super) const WORDS: usize = 6;
    pub(super) const DATA: usize = 0;
    pub(super) const DATA_END: usize = 1;
    pub(super) const INGRESS_DEVICE: usize = 3;
}

/// What sockets and network namespaces are called.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::bench) struct Cookies {
    pub(in crate::bench) socket: u64,
    pub(in crate::bench) namespace: u64,
}

/// A program, and what it works on.
pub(in crate::bench) struct Interpreter {
    instructions: Vec<bpf_insn>,
    memory: Memory,
    tables: Tables,
    /// Where the packet begins.
    packet: u64,
    /// The low half of the jiffies.
    now: u32,
    random: u64,
    cookies: Cookies,
    /// What a redirection returns.
    redirects_to: u64,
}

/// What the context of a packet looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Shape {
    /// A socket buffer's, that came by this device.
    Buffer { device: u32 },
    /// A frame's.
    Frame { device: u32 },
}

/// What has become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::bench) struct Followed {
    /// What the program returned.
    pub(in crate::bench) verdict: u32,
    /// The packet afterwards.
    pub(in crate::bench) packet: Bytes,
    /// What it took.
    pub(in crate::bench) work: Work,
}

impl Interpreter {
    /// The program `name`, which the kernel has loaded as `loaded`, with the maps of that.
    pub(in crate::bench) fn of(name: &'static str, loaded: &ProgramInfo) -> Result<Self, Fault> {
        let wrong = |reason: String| Fault::Object { name, reason };
        let ids = loaded.map_ids().map_err(|error| wrong(error.to_string()))?.unwrap_or_default();
        let tables = ids.iter().map(|id| Table::open(*id)).collect::<Result<Vec<_>, _>>()?;
        let mut object = Object::parse(OBJECT).map_err(|error| wrong(error.to_string()))?;
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let maps = object.maps.clone();
        // The kernel keeps the first 15 characters of a name. What this program does not use is at no place.
        let place = |name: &str| tables.iter().position(|table| name.starts_with(&table.name) && is_whole(name, table));
        let places = maps.iter().map(|(name, map)| {
            (name.as_str(), place(name).and_then(|place| i32::try_from(place).ok()).unwrap_or(-1), map)
        });
        object.relocate_maps(places, &text).map_err(|error| wrong(error.to_string()))?;
        object.relocate_calls(&text).map_err(|error| wrong(error.to_string()))?;
        let function = object.programs.get(name).and_then(|program| object.functions.get(&program.function_key()));
        let instructions = function.ok_or_else(|| wrong("it is not there".to_owned()))?.instructions.clone();
        Ok(Self {
            instructions,
            memory: Memory::default(),
            tables: Tables::of(tables),
            packet: 0,
            now: 0,
            random: 1,
            cookies: Cookies::default(),
            redirects_to: 0,
        })
    }

    /// Follows `packet` at the time `now`, in jiffies.
    pub(in crate::bench) fn follow(&mut self, packet: &[u8], shape: Shape, now: u32) -> Result<Followed, Fault> {
        self.now = now;
        self.packet = self.memory.add(packet.to_vec())?;
        let ends = [self.packet as u32, self.packet as u32 + packet.len() as u32];
        let context = match shape {
            Shape::Buffer { device } => {
                let mut words = vec![0; buffer::WORDS];
                words[buffer::LENGTH] = packet.len() as u32;
                (words[buffer::INGRESS_DEVICE], words[buffer::DEVICE]) = (device, device);
                [words[buffer::DATA], words[buffer::DATA_END]] = ends;
                words
            }
            Shape::Frame { device } => {
                let mut words = vec![0; frame::WORDS];
                words[frame::INGRESS_DEVICE] = device;
                [words[frame::DATA], words[frame::DATA_END]] = ends;
                words
            }
        };
        let context = self.memory.add(context.iter().flat_map(|word: &u32| word.to_le_bytes()).collect())?;
        let mut work = Work::default();
        let verdict = self.run(context, &mut work)? as u32;
        self.tables.settle(&self.memory)?;
        let packet = Bytes::copy_from_slice(self.memory.bytes(self.packet, packet.len())?);
        Ok(Followed { verdict, packet, work })
    }

    /// Runs the program on the context at `context`, and says what it returns.
    fn run(&mut self, context: u64, work: &mut Work) -> Result<u64, Fault> {
        let stack = self.memory.add(vec![0; STACK as usize * FRAMES])?;
        let mut registers = [0u64; 11];
        (registers[1], registers[10]) = (context, stack + STACK);
        let mut callers: Vec<(usize, [u64; 4], u64)> = Vec::new();
        let mut place = 0usize;
        loop {
            let instruction = *self.instructions.get(place).ok_or(Fault::Instruction { code: 0, place })?;
            let unknown = Fault::Instruction { code: instruction.code, place };
            work.instructions += 1;
            if work.instructions > MOST_INSTRUCTIONS {
                return Err(Fault::Endless);
            }
            let (to, from) = (usize::from(instruction.dst_reg()), usize::from(instruction.src_reg()));
            if to.max(from) >= registers.len() {
                return Err(unknown);
            }
            let offset = i64::from(instruction.off).cast_unsigned();
            place += 1;
            match instruction.code {
                // A load of 64 bits, in two instructions.
                0x18 => {
                    let upper = self.instructions.get(place).ok_or(unknown)?.imm;
                    place += 1;
                    registers[to] = match instruction.src_reg() {
                        0 => u64::from(instruction.imm.cast_unsigned()) | u64::from(upper.cast_unsigned()) << 32,
                        PSEUDO_MAP => MAP | u64::from(instruction.imm.cast_unsigned()),
                        _ => return Err(Fault::Instruction { code: instruction.code, place }),
                    };
                }
                // Loads and stores of 1 to 8 bytes.
                code @ (0x61 | 0x69 | 0x71 | 0x79) => {
                    registers[to] = self.memory.load(registers[from].wrapping_add(offset), size(code))?;
                }
                code @ (0x62 | 0x6a | 0x72 | 0x7a) => {
                    let value = i64::from(instruction.imm).cast_unsigned();
                    self.memory.store(registers[to].wrapping_add(offset), size(code), value)?;
                }
                code @ (0x63 | 0x6b | 0x73 | 0x7b) => {
                    self.memory.store(registers[to].wrapping_add(offset), size(code), registers[from])?;
                }
                // An atomic addition.
                code @ (0xc3 | 0xdb) if instruction.imm == 0 => {
                    let address = registers[to].wrapping_add(offset);
                    let sum = self.memory.load(address, size(code))?.wrapping_add(registers[from]);
                    self.memory.store(address, size(code), sum)?;
                }
                // A call.
                0x85 if instruction.src_reg() == PSEUDO_CALL => {
                    if callers.len() + 1 == FRAMES {
                        return Err(unknown);
                    }
                    let saved = [registers[6], registers[7], registers[8], registers[9]];
                    callers.push((place, saved, registers[10]));
                    registers[10] += STACK;
                    place = jump(place, instruction.imm.into()).ok_or(unknown)?;
                }
                0x85 => {
                    let arguments = [registers[1], registers[2], registers[3], registers[4], registers[5]];
                    registers[0] = self.call(instruction.imm, arguments, work)?;
                }
                // The end.
                0x95 => {
                    let Some((back, saved, frame)) = callers.pop() else { return Ok(registers[0]) };
                    [registers[6], registers[7], registers[8], registers[9]] = saved;
                    (place, registers[10]) = (back, frame);
                }
                code => {
                    let value =
                        if code & 8 == 0 { i64::from(instruction.imm).cast_unsigned() } else { registers[from] };
                    match code & 7 {
                        4 | 7 => {
                            registers[to] = computed(code, registers[to], value, instruction.imm).ok_or(unknown)?;
                        }
                        5 | 6 => {
                            if is_taken(code, registers[to], value).ok_or(unknown.clone())? {
                                place = jump(place, instruction.off.into()).ok_or(unknown)?;
                            }
                        }
                        _ => return Err(unknown),
                    }
                }
            }
        }
    }
}

/// Whether `name` is that of `table`, of which the kernel keeps no more than 15 characters.
fn is_whole(name: &str, table: &Table) -> bool {
    name.len() == table.name.len() || table.name.len() == KEPT_NAME
}

/// The place of the map that `pointer` leads to.
fn map_place(pointer: u64) -> Result<usize, Fault> {
    if pointer & MAP == 0 { Err(Fault::Outside { address: pointer }) } else { Ok((pointer & !MAP) as usize) }
}

fn jump(place: usize, by: i64) -> Option<usize> {
    usize::try_from(i64::try_from(place).ok()?.checked_add(by)?).ok()
}

/// How many bytes a load or store with this operation moves.
fn size(code: u8) -> usize {
    match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

/// The result of an arithmetic operation on `left` and `right`; of a change of byte order, `bits` say how wide it is.
fn computed(code: u8, left: u64, right: u64, bits: i32) -> Option<u64> {
    let is_wide = code & 7 == 7;
    if code & 0xf0 == 0xd0 {
        let to_network = code & 8 != 0;
        return match (is_wide, to_network, bits) {
            (false, true, 16) => Some((left as u16).swap_bytes().into()),
            (false, true, 32) => Some((left as u32).swap_bytes().into()),
            (false, true, 64) => Some(left.swap_bytes()),
            (false, false, 16) => Some(left & 0xffff),
            (false, false, 32) => Some(left & 0xffff_ffff),
            (false, false, 64) => Some(left),
            _ => None,
        };
    }
    let (short_left, short_right) = (left as u32, right as u32);
    let narrow = |value: u32| Some(u64::from(value));
    match (code & 0xf0, is_wide) {
        (0x00, true) => Some(left.wrapping_add(right)),
        (0x00, false) => narrow(short_left.wrapping_add(short_right)),
        (0x10, true) => Some(left.wrapping_sub(right)),
        (0x10, false) => narrow(short_left.wrapping_sub(short_right)),
        (0x20, true) => Some(left.wrapping_mul(right)),
        (0x20, false) => narrow(short_left.wrapping_mul(short_right)),
        (0x30, true) => Some(left.checked_div(right).unwrap_or(0)),
        (0x30, false) => narrow(short_left.checked_div(short_right).unwrap_or(0)),
        (0x40, true) => Some(left | right),
        (0x40, false) => narrow(short_left | short_right),
        (0x50, true) => Some(left & right),
        (0x50, false) => narrow(short_left & short_right),
        (0x60, true) => Some(left << (right & 63)),
        (0x60, false) => narrow(short_left << (short_right & 31)),
        (0x70, true) => Some(left >> (right & 63)),
        (0x70, false) => narrow(short_left >> (short_right & 31)),
        (0x80, true) => Some(left.wrapping_neg()),
        (0x80, false) => narrow(short_left.wrapping_neg()),
        (0x90, true) => Some(left.checked_rem(right).unwrap_or(left)),
        (0x90, false) => narrow(short_left.checked_rem(short_right).unwrap_or(short_left)),
        (0xa0, true) => Some(left ^ right),
        (0xa0, false) => narrow(short_left ^ short_right),
        (0xb0, true) => Some(right),
        (0xb0, false) => narrow(short_right),
        (0xc0, true) => Some((left.cast_signed() >> (right & 63)).cast_unsigned()),
        (0xc0, false) => narrow((short_left.cast_signed() >> (short_right & 31)).cast_unsigned()),
        _ => None,
    }
}

/// Whether a jump by comparing `left` and `right` is taken.
fn is_taken(code: u8, left: u64, right: u64) -> Option<bool> {
    let is_wide = code & 7 == 5;
    let (signed_left, signed_right) = if is_wide {
        (left.cast_signed(), right.cast_signed())
    } else {
        ((left as u32).cast_signed().into(), (right as u32).cast_signed().into())
    };
    let (left, right) = if is_wide { (left, right) } else { (left & 0xffff_ffff, right & 0xffff_ffff) };
    match code & 0xf0 {
        0x00 if is_wide => Some(true),
        0x10 => Some(left == right),
        0x20 => Some(left > right),
        0x30 => Some(left >= right),
        0x40 => Some(left & right != 0),
        0x50 => Some(left != right),
        0x60 => Some(signed_left > signed_right),
        0x70 => Some(signed_left >= signed_right),
        0xa0 => Some(left < right),
        0xb0 => Some(left <= right),
        0xc0 => Some(signed_left < signed_right),
        0xd0 => Some(signed_left <= signed_right),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_as_wide_as_the_operation_says() {
        const ADD64: u8 = 0x07;
        const ADD32: u8 = 0x04;
        const SHIFT_SIGNED: u8 = 0xc4;
        assert_eq!(computed(ADD64, u64::from(u32::MAX), 1, 0), Some(1 << 32));
        assert_eq!(computed(ADD32, u64::from(u32::MAX), 1, 0), Some(0));
        assert_eq!(computed(SHIFT_SIGNED, 0x8000_0000, 31, 0), Some(u64::from(u32::MAX)));
        assert_eq!(computed(0xdc, 0x1122_3344, 0, 16), Some(0x4433), "to network order, 16 bits");
        assert_eq!(computed(0xe7, 1, 1, 0), None);
    }

    #[test]
    fn jumps_compare_signed_and_unsigned_and_half_registers() {
        const GREATER: u8 = 0x25;
        const GREATER_SIGNED: u8 = 0x65;
        const EQUAL_SHORT: u8 = 0x16;
        assert_eq!(is_taken(GREATER, u64::MAX, 1), Some(true));
        assert_eq!(is_taken(GREATER_SIGNED, u64::MAX, 1), Some(false));
        assert_eq!(is_taken(EQUAL_SHORT, 1 << 32 | 5, 5), Some(true));
        assert_eq!(is_taken(0xe5, 0, 0), None);
    }
}

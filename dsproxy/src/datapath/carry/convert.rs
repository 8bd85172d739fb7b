//! One version's records made of another's, field by field, by their names. Pure.
//!
//! A field that the other version does not have is zero, one that only it has is let go. One that both have is the same in both,
//! or the record is not to be carried over: `dsproxy_common::record::Field` says what a name promises.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A field of a record of any version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) offset: usize,
    pub(super) size: usize,
}

/// Why records cannot be made of another version's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Misfit {
    #[error("the field {0} has another size")]
    Size(String),
    #[error("the fields of the key are others")]
    Key,
    #[error("the other version's description is not of its records")]
    Description,
}

/// How to make records of another version's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conversion {
    /// From where, to where, and how many bytes.
    moves: Vec<(usize, usize, usize)>,
    from: usize,
    to: usize,
}

impl Conversion {
    /// Of values: `to` has `size` bytes.
    pub(super) fn of_values(from: (&[Field], usize), to: (&[Field], usize)) -> Result<Self, Misfit> {
        let ((from, from_size), (to, to_size)) = (from, to);
        let mut moves = Vec::new();
        for field in to {
            let Some(held) = from.iter().find(|held| held.name == field.name) else { continue };
            if held.size != field.size {
                return Err(Misfit::Size(field.name.clone()));
            }
            if held.offset.checked_add(held.size).is_none_or(|end| end > from_size)
                || field.offset + field.size > to_size
            {
                return Err(Misfit::Description);
            }
            moves.push((held.offset, field.offset, field.size));
        }
        Ok(Self { moves, from: from_size, to: to_size })
    }

    /// Of keys, which have to have the same fields: two entries must not become one.
    pub(super) fn of_keys(from: (&[Field], usize), to: (&[Field], usize)) -> Result<Self, Misfit> {
        let conversion = Self::of_values(from, to)?;
        if from.0.len() == to.0.len() && conversion.moves.len() == to.0.len() {
            Ok(conversion)
        } else {
            Err(Misfit::Key)
        }
    }

    /// The record made of `record`; for values of each CPU, of all of them.
    pub(super) fn convert(&self, record: &[u8]) -> Vec<u8> {
        if record.len() <= self.from {
            return self.convert_one(record);
        }
        // The kernel rounds the values of a CPU up.
        let convert = |record: &[u8]| {
            let mut converted = self.convert_one(record);
            converted.resize(self.to.next_multiple_of(8), 0);
            converted
        };
        record.chunks(self.from.next_multiple_of(8)).flat_map(convert).collect()
    }

    fn convert_one(&self, record: &[u8]) -> Vec<u8> {
        let mut converted = vec![0; self.to];
        for (from, to, size) in &self.moves {
            if let Some(bytes) = record.get(*from..from + size) {
                converted[*to..to + size].copy_from_slice(bytes);
            }
        }
        converted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(all: &[(&str, usize, usize)]) -> Vec<Field> {
        all.iter()
            .map(|(name, offset, size)| Field { name: (*name).to_owned(), offset: *offset, size: *size })
            .collect()
    }

    #[test]
    fn fields_are_found_by_their_names() {
        let old = fields(&[("a", 0, 2), ("b", 2, 1), ("gone", 3, 1)]);
        let new = fields(&[("new", 0, 4), ("b", 4, 1), ("a", 5, 2), ("c", 7, 1)]);
        let there = Conversion::of_values((&old, 4), (&new, 8)).expect("they fit");
        assert_eq!(there.convert(&[1, 2, 3, 4]), [0, 0, 0, 0, 3, 1, 2, 0]);
        let back = Conversion::of_values((&new, 8), (&old, 4)).expect("they fit");
        assert_eq!(back.convert(&[9, 9, 9, 9, 3, 1, 2, 9]), [1, 2, 3, 0]);
    }

    #[test]
    fn values_of_every_cpu_are_converted() {
        let old = fields(&[("a", 0, 8), ("b", 8, 4)]);
        let new = fields(&[("b", 0, 4), ("a", 4, 8), ("c", 12, 8)]);
        let conversion = Conversion::of_values((&old, 12), (&new, 20)).expect("they fit");
        let of_cpu = |number: u8| [[number; 8].as_slice(), &[number + 1; 4], &[0; 4]].concat();
        let converted = conversion.convert(&[of_cpu(1), of_cpu(3)].concat());
        let expected = |number: u8| [[number + 1; 4].as_slice(), &[number; 8], &[0; 8], &[0; 4]].concat();
        assert_eq!(converted, [expected(1), expected(3)].concat());
    }

    #[test]
    fn what_cannot_be_known_is_not_guessed() {
        let one = fields(&[("a", 0, 2), ("b", 2, 2)]);
        let wider = fields(&[("a", 0, 4), ("b", 4, 2)]);
        assert_eq!(Conversion::of_values((&one, 4), (&wider, 6)), Err(Misfit::Size("a".to_owned())));
        let more = fields(&[("a", 0, 2), ("b", 2, 2), ("c", 4, 2)]);
        assert_eq!(Conversion::of_keys((&one, 4), (&more, 6)), Err(Misfit::Key));
        assert_eq!(Conversion::of_keys((&more, 6), (&one, 4)), Err(Misfit::Key));
        let swapped = fields(&[("b", 0, 2), ("a", 2, 2)]);
        let keys = Conversion::of_keys((&one, 4), (&swapped, 4)).expect("the same fields");
        assert_eq!(keys.convert(&[1, 2, 3, 4]), [3, 4, 1, 2]);
        for beyond in [fields(&[("a", 3, 2)]), fields(&[("a", usize::MAX, 2)])] {
            assert_eq!(Conversion::of_values((&beyond, 4), (&one, 4)), Err(Misfit::Description));
        }
    }
}

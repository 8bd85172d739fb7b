//! Ports of masqueraded connections while programs of two layouts give them: to each its own.

use std::path::Path;

use dsproxy_common::{
    layout,
    settings::{SettingFlags, Settings},
};

use super::{CarryError, description::Description};
use crate::datapath::raw_map::RawMap;

/// The first and the last port of a range.
type Range = [u16; 2];

/// The ports that programs which are told `settings` give to new connections when nobody has told them to make room.
pub(super) fn of_new_connections(settings: &Settings) -> Range {
    if settings.flags & SettingFlags::BESIDE_OTHERS == 0 { settings.snat_ports } else { settings.offered_ports }
}

/// Parts of two ranges that have no port in common, each with what the other range does not have at its side: what programs that leave
/// offer from now on, of `theirs`, and what those that come offer until the others are gone, of `ours`. A port that both ranges consist
/// of stays in both.
pub(super) fn apart(theirs: Range, ours: Range) -> (Range, Range) {
    let first = theirs[0].max(ours[0]);
    let last = theirs[1].min(ours[1]);
    if first > last {
        return (theirs, ours);
    }
    if first < last {
        let middle = first.midpoint(last);
        let ours_are_below = theirs[1] > ours[1] || theirs[1] == ours[1] && ours[0] < theirs[0];
        return if ours_are_below {
            ([middle + 1, theirs[1]], [ours[0], middle])
        } else {
            ([theirs[0], middle], [middle + 1, ours[1]])
        };
    }
    match (without(ours, first), without(theirs, first)) {
        (Some(others), _) => (theirs, others),
        (None, Some(others)) => (others, ours),
        (None, None) => (theirs, ours),
    }
}

/// A part of `range` that `port`, which is of it, is not in.
fn without([first, last]: Range, port: u16) -> Option<Range> {
    if first < port { Some([first, port - 1]) } else { (port < last).then(|| [port + 1, last]) }
}

/// Has the programs whose maps are pinned in `maps` offer the ports of `range` to new connections, and no others. Those of layouts that
/// are older than this setting go on with all they have. Returns whether they obey.
pub(super) fn offer(maps: &Path, range: Range) -> Result<bool, CarryError> {
    let [first, last] = range.map(u16::to_ne_bytes);
    change_setting(maps, "offered_ports", |bytes: &mut [u8; 4]| *bytes = [first[0], first[1], last[0], last[1]])
}

/// Changes the field `name` of the settings in `maps`, whatever layout those are of. Returns whether there is such a field.
pub(super) fn change_setting<const N: usize>(
    maps: &Path,
    name: &str,
    change: impl FnOnce(&mut [u8; N]),
) -> Result<bool, CarryError> {
    let path = maps.join(layout::SETTINGS);
    let failed = CarryError::on("tell the programs of", &path);
    let (Some(map), Some(description)) =
        (RawMap::pinned(&path).map_err(&failed)?, Description::pinned(maps).map_err(&failed)?)
    else {
        return Ok(false);
    };
    let fields = description.maps.get(layout::SETTINGS).into_iter().flat_map(|entry| &entry.value);
    let Some(field) = fields.into_iter().find(|field| field.name == name && field.size == N) else { return Ok(false) };
    let Some(mut settings) = map.get(&[0; 4]).map_err(&failed)? else { return Ok(false) };
    let Some(bytes) = settings.get_mut(field.offset..).and_then(|rest| rest.first_chunk_mut::<N>()) else {
        return Ok(false);
    };
    change(bytes);
    map.set(&[0; 4], &settings).map_err(&failed)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_no_port_in_common_and_none_is_empty() {
        let ranges = |to: u16| (1..=to).flat_map(move |first| (first..=to).map(move |last| [first, last]));
        for (theirs, ours) in ranges(9).flat_map(|theirs| ranges(9).map(move |ours| (theirs, ours))) {
            let (left, right) = apart(theirs, ours);
            for (part, whole) in [(left, theirs), (right, ours)] {
                assert!(part[0] <= part[1] && whole[0] <= part[0] && part[1] <= whole[1], "{theirs:?} {ours:?}");
            }
            let are_one_port = theirs == ours && theirs[0] == theirs[1];
            assert_eq!(left[0] <= right[1] && right[0] <= left[1], are_one_port, "{theirs:?} {ours:?}");
        }
    }

    #[test]
    fn of_one_range_each_gets_half_and_otherwise_what_the_other_does_not_have() {
        let whole = [49_152, 65_535];
        assert_eq!(apart(whole, whole), ([49_152, 57_343], [57_344, 65_535]));
        assert_eq!(apart(whole, [49_152, 49_161]), ([49_157, 65_535], [49_152, 49_156]));
        assert_eq!(apart([60_000, 65_535], whole), ([62_768, 65_535], [49_152, 62_767]));
    }
}

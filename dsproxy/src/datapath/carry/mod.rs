//! One version's data path in the place of another's, whose maps have another layout, newer or older, without a packet that is not
//! served.
//!
//! Programs of two layouts cannot share connections, and hooks cannot all be changed at one moment. So both sets of programs are
//! attached at every hook, and the moment is one of the maps, not of the hooks:
//!
//! 1. Maps of this version are made beside those in use, with what user space has written, ids and generations included, while the old
//!    programs go on serving.
//! 2. This version's programs are attached beside the old ones, the first at ingress. They see nothing: their filters are empty, and no
//!    port is one of masqueraded packets.
//! 3. The old programs are told to give new connections only some of the ports for masquerading (`ports`): these programs give others
//!    until the old ones are gone, so that neither gives one that the other has given away unseen. Then connections are carried over.
//! 4. *The opening*: the filters are written, the egress one before that of frontends. With the first bit of a frontend
//!    its new connections are this version's; TCP that goes on, and which the old programs know and these do not, is left to them
//!    (`BESIDE_OTHERS`), and they go on telling which client a masqueraded connection of theirs is answered to (`FOREIGN`),
//!    until the client's next packet makes it one of these.
//! 5. What the old programs have entered meanwhile is merged, they are detached, and their maps go.
//!
//! Each step can be repeated (`layouts` says what a kill leaves), and nothing depends on which version is the newer: maps describe
//! themselves (`description`), and records are converted by the names of their fields (`convert`).

mod convert;
mod copy;
mod description;
mod layouts;
mod ports;

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use dsproxy_common::{
    IpFamily,
    layout::{self, LAYOUT_VERSION, family_maps},
    settings::{SettingFlags, Settings},
};
use thiserror::Error;
use tracing::{debug, info, warn};

use self::{
    copy::{Pair, pairs},
    description::{Content, Description},
};
use super::{
    attach::{self, AttachError},
    batches,
    bpffs::Bpffs,
    load::{self, DatapathSettings, LoadError, Loaded, Place},
};
use crate::maps::{
    Capacities, MapError,
    kernel::{KernelMaps, network_record},
};

/// Longer than a program takes for a packet: what one was about to do by what it had read before is done by then.
pub(crate) const PACKETS_UNDER_WAY: Duration = Duration::from_millis(50);

/// The range of ports of masqueraded packets that no packet is of.
const NO_PORTS: [u16; 2] = [0, 0];

/// Why one version cannot take another's place.
#[derive(Debug, Error)]
pub enum CarryError {
    /// Something that is pinned cannot be read, written or moved.
    #[error("{operation} {}: {source}; what serves now goes on, and a start tries it again", path.display())]
    Pinned {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// This version's programs and maps cannot be had.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map of this version's cannot be read or written.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The old programs cannot be detached.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

impl CarryError {
    fn on(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Pinned { operation, path: path.clone(), source }
    }
}

/// Taking over: what of other layouts is there, and how far it has come.
pub struct Takeover {
    ours: PathBuf,
    /// The layout in use, if it is another version's.
    other: Option<u32>,
    /// What has left, and still serves.
    leaving: Vec<PathBuf>,
}

fn maps_of(layout: &Path) -> PathBuf {
    layout.join("maps")
}

fn links_of(layout: &Path) -> PathBuf {
    layout.join("links")
}

impl Takeover {
    /// Looks at what stands on `bpffs`, and puts right what a kill has left there.
    ///
    /// # Errors
    ///
    /// When it cannot be read or moved.
    pub fn begin(bpffs: &Bpffs) -> Result<Self, CarryError> {
        let ours = bpffs.ours();
        let failed = CarryError::on("look at the layouts in", &ours);
        let layouts::Standing { in_use, leaving } = layouts::settle(&ours).map_err(&failed)?;
        let mut other = None;
        if !in_use.iter().any(|(version, _)| *version == LAYOUT_VERSION) {
            for (version, path) in in_use {
                if Description::pinned(&maps_of(&path)).map_err(&failed)?.is_some() {
                    other = Some(version);
                } else {
                    warn!(
                        layout = version,
                        "the maps of an earlier version do not describe themselves: connections start anew"
                    );
                }
            }
        }
        Ok(Self { ours, other, leaving })
    }

    /// Whether programs of another layout serve as well.
    pub fn is_under_way(&self) -> bool {
        self.other.is_some() || !self.leaving.is_empty()
    }

    /// Opens the maps, pinned, and with all that the layout in use holds. Afterwards this version's layout is the one in use; the
    /// programs of another serve on, and those that are attached now see nothing until `finish`. Where there are such others, the
    /// programs of packets are loaded as well; else they are not, and what serves goes by these maps already.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or what is pinned cannot be read.
    pub fn load(&mut self, capacities: &Capacities, wanted: &DatapathSettings) -> Result<Loaded, CarryError> {
        let loaded = match self.other {
            Some(version) => self.prepare(version, capacities, wanted)?,
            None => self.go_on(capacities, wanted)?,
        };
        let own = links_of(&layouts::of(&self.ours, LAYOUT_VERSION));
        for leaving in &self.leaving {
            let theirs = links_of(leaving);
            attach::take_xdp(&theirs, &own).map_err(CarryError::on("take over the XDP links of", &theirs))?;
        }
        self.remove_those_that_never_served()?;
        Ok(loaded)
    }

    /// What was killed before its opening has nothing that others do not have, and its programs see nothing.
    fn remove_those_that_never_served(&mut self) -> Result<(), CarryError> {
        let maps = maps_of(&layouts::of(&self.ours, LAYOUT_VERSION));
        let mut served = Vec::new();
        for leaving in std::mem::take(&mut self.leaving) {
            if has_served(&pairs(&maps_of(&leaving), &maps)?)? {
                served.push(leaving);
            } else {
                attach::retire(&links_of(&leaving))?;
                fs::remove_dir_all(&leaving).map_err(CarryError::on("remove the layout", &leaving))?;
            }
        }
        self.leaving = served;
        Ok(())
    }

    /// Loads everything on the maps of this version's layout, which is the one in use, or there is none.
    fn go_on(&self, capacities: &Capacities, wanted: &DatapathSettings) -> Result<Loaded, CarryError> {
        let maps = maps_of(&layouts::of(&self.ours, LAYOUT_VERSION));
        let mut loaded = load::open_maps(Some(&Place { maps: maps.clone(), sized_like: None }), capacities, wanted)?;
        let own = Description::own();
        if Description::pinned(&maps).map_err(CarryError::on("read the description of the maps in", &maps))?
            != Some(own.clone())
        {
            let pin = maps.join(description::PIN);
            // If there is none, so much the better.
            let _ = fs::remove_file(&pin);
            own.pin(&maps).map_err(CarryError::on("pin the description", &pin))?;
        }
        if is_standing_by(&loaded.maps.settings()?) && self.serving(&maps)?.is_some() {
            // Killed before the opening.
            stand_by(&mut loaded.maps, wanted)?;
        } else {
            let beside = self.part_from_others(&maps, &loaded.maps, wanted)?;
            load::tell(&mut loaded.maps, &beside)?;
        }
        if !self.leaving.is_empty() {
            load::load_programs(&mut loaded.object)?;
            info!(
                layouts = self.leaving.len(),
                "another layout was being left, and its programs serve on: going on with it"
            );
        }
        Ok(loaded)
    }

    /// Adds to the maps in `own` what the programs of all layouts that are being left, but the one that is `mirrored` already, have written,
    /// and go by.
    fn add_what_others_hold(&self, own: &Path, mirrored: Option<&Path>) -> Result<(), CarryError> {
        for leaving in self.leaving.iter().filter(|leaving| mirrored != Some(leaving)) {
            each_written(&pairs(&maps_of(leaving), own)?, |pair| pair.merge(true))?;
        }
        Ok(())
    }

    /// The layout that left last of those that have served, and its maps, each with the one of this version in `own`: others were being
    /// prepared when they left.
    fn serving(&self, own: &Path) -> Result<Option<(&Path, Vec<Pair>)>, CarryError> {
        for leaving in self.leaving.iter().rev() {
            let pairs = pairs(&maps_of(leaving), own)?;
            if has_served(&pairs)? {
                return Ok(Some((leaving, pairs)));
            }
        }
        Ok(None)
    }

    /// Has the programs that serve give new connections ports that these do not, and carries over what they and others have written
    /// to `maps`, those in `own`: until they are gone it is theirs to go by. Returns what these programs are told meanwhile: `wanted`, but
    /// for those ports, and that there are others who know what these do not.
    fn part_from_others(
        &self,
        own: &Path,
        maps: &KernelMaps,
        wanted: &DatapathSettings,
    ) -> Result<DatapathSettings, CarryError> {
        let (mut beside, mut mirrored) = (*wanted, None);
        if let Some((layout, serving)) = self.serving(own)? {
            beside.flags |= SettingFlags::BESIDE_OTHERS;
            for theirs in told(&serving)? {
                let (left, right) = ports::apart(ports::of_new_connections(&theirs), wanted.snat_ports);
                if !ports::offer(&maps_of(layout), left)? {
                    debug!("programs of an older layout go on with all ports for masquerading");
                }
                beside.offered_ports = right;
            }
            // What they were about to give is given then.
            thread::sleep(PACKETS_UNDER_WAY);
            if is_standing_by(&maps.settings()?) {
                let connections = mirror(&serving)?;
                info!(connections, "carried over");
                mirrored = Some(layout);
            }
        }
        self.add_what_others_hold(own, mirrored)?;
        Ok(beside)
    }

    /// Loads everything on maps made beside those of layout `version`, with all that these hold.
    fn prepare(
        &mut self,
        version: u32,
        capacities: &Capacities,
        wanted: &DatapathSettings,
    ) -> Result<Loaded, CarryError> {
        let from = maps_of(&layouts::of(&self.ours, version));
        let maps = maps_of(&layouts::coming(&self.ours, LAYOUT_VERSION));
        let place = Place { maps: maps.clone(), sized_like: Some(from.clone()) };
        let mut loaded = load::open_maps(Some(&place), capacities, wanted)?;
        Description::own().pin(&maps).map_err(CarryError::on("pin a description in", &maps))?;
        let pairs = pairs(&from, &maps)?;
        let mut entries = 0;
        for pair in pairs.iter().filter(|pair| pair.held.content == Content::Table) {
            entries += pair.fill()?.len();
        }
        info!(from = version, to = LAYOUT_VERSION, entries, "the layout is another: its content is carried over");
        stand_by(&mut loaded.maps, wanted)?;
        load::load_programs(&mut loaded.object)?;
        let failed = CarryError::on("exchange the layouts in", &self.ours);
        layouts::commit(&self.ours, version, LAYOUT_VERSION).map_err(&failed)?;
        self.leaving = layouts::settle(&self.ours).map_err(&failed)?.leaving;
        self.other = None;
        info!("prepared; the programs of both layouts are loaded");
        Ok(Loaded { found: true, ..loaded })
    }

    /// Lets this version's programs, which are attached everywhere by now, serve, and those of other layouts go.
    ///
    /// # Errors
    ///
    /// When something that is pinned cannot be read, written or removed. Both serve on then, and another start goes on with it.
    pub fn finish(mut self, maps: &mut KernelMaps, wanted: &DatapathSettings) -> Result<(), CarryError> {
        if self.leaving.is_empty() {
            return Ok(());
        }
        let own = maps_of(&layouts::of(&self.ours, LAYOUT_VERSION));
        let mut all = Vec::new();
        for leaving in &self.leaving {
            all.push(pairs(&maps_of(leaving), &own)?);
        }
        let beside = self.part_from_others(&own, maps, wanted)?;
        open(&all, maps, &beside)?;
        info!("new connections are this version's; what the other programs have entered meanwhile is merged");
        thread::sleep(PACKETS_UNDER_WAY);
        for leaving in &self.leaving {
            stop_masquerading(&maps_of(leaving))?;
            attach::retire_sockets_that_lead(&links_of(leaving))?;
        }
        let mut merged = 0;
        // What left last knows best.
        for pairs in all.iter().rev() {
            merged += merge(pairs)?;
        }
        maps.mark_leaving()?;
        let mut detached = 0;
        for leaving in std::mem::take(&mut self.leaving) {
            detached += attach::retire(&links_of(&leaving))?;
            fs::remove_dir_all(&leaving).map_err(CarryError::on("remove the layout", &leaving))?;
        }
        load::tell(maps, wanted)?;
        info!(merged, detached, "the programs of the other layout are gone; this one serves alone");
        Ok(())
    }
}

/// Tells this version's programs to see nothing yet: with filters that are empty they take no packet for one of theirs.
fn stand_by(maps: &mut KernelMaps, wanted: &DatapathSettings) -> Result<(), CarryError> {
    let (services_v4, services_v6) = (network_record(None), network_record(None));
    let told = load::settings_for(maps, wanted)?;
    Ok(maps.set_settings(&Settings { flags: 0, snat_ports: NO_PORTS, services_v4, services_v6, ..told })?)
}

fn is_standing_by(settings: &Settings) -> bool {
    settings.snat_ports == NO_PORTS
}

/// Carries over what the programs have written, while none of this version's runs. Returns how many entries those are.
fn mirror(pairs: &[Pair]) -> Result<usize, CarryError> {
    each_written(pairs, Pair::mirror)
}

/// Adds what other programs have written while this version's ran as well, and no longer go by. Returns how many entries those are.
fn merge(pairs: &[Pair]) -> Result<usize, CarryError> {
    each_written(pairs, |pair| pair.merge(false))
}

/// Does `carry` for each map that the programs write to, and returns the sum. A connection that is confirmed meanwhile moves from the one
/// to the other: what is read first must be what it leaves. Ports come last: who is told of one answers to it from then on.
fn each_written(pairs: &[Pair], carry: impl Fn(&Pair) -> Result<usize, CarryError>) -> Result<usize, CarryError> {
    let of = |content| pairs.iter().filter(move |pair| pair.held.content == content);
    let (ports, others): (Vec<_>, Vec<_>) =
        of(Content::Connections).chain(of(Content::Confirmed)).partition(|pair| pair.is_of_ports());
    others.into_iter().chain(ports).map(carry).sum()
}

/// Opens the eyes of this version's programs: answers are known before anything is sent that they would be to, and what is for no
/// frontend is refused only when all frontends are known.
fn open(all: &[Vec<Pair>], maps: &mut KernelMaps, wanted: &DatapathSettings) -> Result<(), CarryError> {
    let write = |names: [&str; 2]| -> Result<(), CarryError> {
        for pair in all.iter().flatten().filter(|pair| names.contains(&pair.held.name)) {
            add_bits(pair)?;
        }
        Ok(())
    };
    let [v4, v6] = IpFamily::ALL.map(family_maps);
    write([v4.egress_filter, v6.egress_filter])?;
    // Without the services' networks, as long as those are nobody's.
    load::tell(maps, wanted)?;
    write([v4.filter, v6.filter])?;
    let mut settings = maps.settings()?;
    for pairs in all {
        for theirs in told(pairs)?.iter().filter(|theirs| !is_standing_by(theirs)) {
            settings.services_v4 = theirs.services_v4;
            settings.services_v6 = theirs.services_v6;
        }
    }
    Ok(maps.set_settings(&settings)?)
}

/// Whether the programs of another layout have ever been told to serve. Of what cannot be read nobody knows: they may have been.
fn has_served(pairs: &[Pair]) -> Result<bool, CarryError> {
    let told = told(pairs)?;
    Ok(told.is_empty() || !told.iter().all(is_standing_by))
}

/// What other programs are told.
fn told(pairs: &[Pair]) -> Result<Vec<Settings>, CarryError> {
    let mut told = Vec::new();
    for pair in pairs.iter().filter(|pair| pair.held.name == layout::SETTINGS) {
        told.extend(pair.converted()?.iter().filter_map(|(_, bytes)| batches::record::<Settings>(bytes)));
    }
    Ok(told)
}

/// Sets in a filter of this version the bits that are set in another's. Those of what has gone lately are among them.
fn add_bits(pair: &Pair) -> Result<(), CarryError> {
    for (key, theirs) in pair.converted()? {
        let failed = CarryError::on("write the filter", Path::new(pair.held.name));
        let ours = pair.to.get(&key).map_err(&failed)?.unwrap_or_default();
        let both: Vec<u8> = theirs.iter().zip(&ours).map(|(theirs, ours)| theirs | ours).collect();
        if both != ours {
            pair.to.set(&key, &both).map_err(&failed)?;
        }
    }
    Ok(())
}

/// Leaves it to this version's programs to masquerade what leaves the cluster: that is done last at a hook, where theirs come first.
fn stop_masquerading(maps: &Path) -> Result<(), CarryError> {
    ports::change_setting(maps, "flags", |flags| {
        *flags = (u32::from_ne_bytes(*flags) & !SettingFlags::MASQUERADE_EGRESS).to_ne_bytes();
    })
    .map(drop)
}

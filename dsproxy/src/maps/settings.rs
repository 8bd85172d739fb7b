//! The settings of the programs in the kernel: one record, of which several tasks change a part each.

use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{Array, MapData};
use dsproxy_common::settings::{SettingFlags, Settings};

use super::{MapError, MapKind, kernel::kernel};

/// The record, for all who change a part of it: a change that read it before another was written would take that back.
#[derive(Clone)]
pub struct SettingsMap(Arc<Mutex<Array<MapData, Settings>>>);

impl SettingsMap {
    pub(super) fn new(map: Array<MapData, Settings>) -> Self {
        Self(Arc::new(Mutex::new(map)))
    }

    /// What the programs were told.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn get(&self) -> Result<Settings, MapError> {
        read(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells the programs `settings`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set(&self, settings: &Settings) -> Result<(), MapError> {
        write(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), settings)
    }

    /// Tells the programs what `change` makes of what they were told.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn change(&self, change: impl FnOnce(&mut Settings)) -> Result<(), MapError> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut settings = read(&map)?;
        change(&mut settings);
        write(&mut map, &settings)
    }

    /// Tells the programs that others are being attached beside them, or no more.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_attaching(&self, is_under_way: bool) -> Result<(), MapError> {
        self.change(|settings| {
            settings.flags &= !SettingFlags::ATTACHING;
            if is_under_way {
                settings.flags |= SettingFlags::ATTACHING;
            }
        })
    }
}

fn read(map: &Array<MapData, Settings>) -> Result<Settings, MapError> {
    map.get(&0, 0).map_err(kernel("read", MapKind::Settings))
}

fn write(map: &mut Array<MapData, Settings>, settings: &Settings) -> Result<(), MapError> {
    map.set(0, settings, 0).map_err(kernel("write", MapKind::Settings))
}

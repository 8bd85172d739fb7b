//! The programs of an object, each loaded when it is first asked for: the verifier takes a while over each of them, and hardly any
//! test runs more than two.

use std::cell::{Cell, OnceCell, RefCell};

use aya::{
    Ebpf,
    programs::{ProgramFd, ProgramInfo, SchedClassifier, Xdp},
};
use dsproxy::datapath::load::{
    OBSERVERS, SHORTCUT, XDP_OBSERVER, XDP_PROGRAM, load_observers, load_program, load_shortcut, load_xdp_program,
};

use super::{Hook, ProgError, program_name};
use crate::packet::Link;

/// The programs that are run on packets.
pub(super) struct Programs {
    object: RefCell<Ebpf>,
    loaded: Vec<(&'static str, OnceCell<ProgramFd>)>,
    is_observed: Cell<bool>,
    has_shortcuts: Cell<bool>,
}

impl Programs {
    /// Those of `object`, none of which is loaded.
    pub(super) fn of(object: Ebpf) -> Self {
        let classifiers = Hook::ALL.into_iter().flat_map(|hook| Link::ALL.map(|link| program_name(hook, link)));
        let loaded = classifiers.chain([XDP_PROGRAM]).map(|name| (name, OnceCell::new())).collect();
        Self { object: RefCell::new(object), loaded, is_observed: Cell::new(false), has_shortcuts: Cell::new(false) }
    }

    /// The program `name`, in the kernel.
    pub(super) fn get(&self, name: &'static str) -> Result<&ProgramFd, ProgError> {
        let (_, loaded) = self.loaded.iter().find(|(known, _)| *known == name).ok_or(ProgError::NoProgram { name })?;
        if let Some(program) = loaded.get() {
            return Ok(program);
        }
        let program = self.load(name)?;
        Ok(loaded.get_or_init(|| program))
    }

    /// Has the programs of packets find those that tell of them. XDP's come with its own.
    pub(super) fn let_observe(&self) -> Result<(), ProgError> {
        if !self.is_observed.replace(true) {
            load_observers(&mut self.object.borrow_mut())?;
        }
        Ok(())
    }

    /// Has the programs of packets find those that send past the stack.
    pub(super) fn let_shorten(&self) -> Result<(), ProgError> {
        if !self.has_shortcuts.replace(true) {
            load_shortcut(&mut self.object.borrow_mut())?;
        }
        Ok(())
    }

    /// How many instructions the verifier looked at before it took each of the programs that others end in.
    pub(super) fn verified_ends(&self) -> Result<Vec<(&'static str, u32)>, ProgError> {
        let object = self.object.borrow();
        let verified = |name| {
            let program = object.program(name).ok_or(ProgError::NoProgram { name })?;
            let info = program.info().map_err(|source| ProgError::Program { name, source })?;
            Ok((name, info.verified_instruction_count().unwrap_or_default()))
        };
        OBSERVERS.into_iter().chain([XDP_OBSERVER, SHORTCUT]).map(verified).collect()
    }

    /// What the kernel says of the program `name`.
    pub(super) fn info(&self, name: &'static str) -> Result<ProgramInfo, ProgError> {
        self.get(name)?;
        let failed = |source| ProgError::Program { name, source };
        let object = self.object.borrow();
        let program = object.program(name).ok_or(ProgError::NoProgram { name })?;
        program.info().map_err(failed)
    }

    fn load(&self, name: &'static str) -> Result<ProgramFd, ProgError> {
        let failed = |source| ProgError::Program { name, source };
        let mut object = self.object.borrow_mut();
        if name == XDP_PROGRAM {
            load_xdp_program(&mut object)?;
        } else {
            load_program(&mut object, name)?;
        }
        let program = object.program(name).ok_or(ProgError::NoProgram { name })?;
        let program = if name == XDP_PROGRAM {
            <&Xdp>::try_from(program).and_then(Xdp::fd)
        } else {
            <&SchedClassifier>::try_from(program).and_then(SchedClassifier::fd)
        };
        program.map_err(failed)?.try_clone().map_err(|error| failed(error.into()))
    }
}

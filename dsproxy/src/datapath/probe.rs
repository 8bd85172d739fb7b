//! Which of the things that the data path builds on this kernel has. Asks the kernel, changes nothing.

use std::{error::Error, path::Path};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use serde::Serialize;

use super::attach;

/// Something that kernels have or have not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// Whether this kernel has it; none if it does not say.
    pub found: Option<bool>,
    /// What it is for, or what takes its place.
    pub meaning: &'static str,
    /// Why the kernel does not say.
    pub why_unknown: Option<String>,
}

/// All that are asked for.
pub fn features() -> Vec<Feature> {
    let program = |kind| is_program_supported(kind).map_err(told);
    vec![
        feature("tc programs", "what serves packets", program(ProgramType::SchedClassifier)),
        feature(
            "tcx links",
            "programs stay attached in their order beside others'; without them clsact filters do (Linux 6.6)",
            attach::kernel_has_tcx().map_err(told),
        ),
        feature(
            "XDP programs",
            "packets that only pass this node; without them tc has these too",
            program(ProgramType::Xdp),
        ),
        feature(
            "cgroup socket programs",
            "the host's own sockets, which are served by nothing else",
            program(ProgramType::CgroupSockAddr),
        ),
        feature(
            "bpf_jiffies64",
            "the programs' clock",
            is_helper_supported(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_jiffies64).map_err(told),
        ),
        feature("LRU hashes", "connections", is_map_supported(MapType::LruHash).map_err(told)),
        feature("LPM tries", "source ranges and networks", is_map_supported(MapType::LpmTrie).map_err(told)),
        feature("ring buffers", "events", is_map_supported(MapType::RingBuf).map_err(told)),
        feature("BTF", "types of the kernel's own, for tools", Ok(Path::new("/sys/kernel/btf/vmlinux").exists())),
    ]
}

fn told(error: impl Error) -> String {
    error.to_string()
}

fn feature(name: &'static str, meaning: &'static str, found: Result<bool, String>) -> Feature {
    match found {
        Ok(found) => Feature { name, found: Some(found), meaning, why_unknown: None },
        Err(why) => Feature { name, found: None, meaning, why_unknown: Some(why) },
    }
}

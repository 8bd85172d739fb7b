//! Packets at the XDP hook: frames as the device has received them (`struct xdp_md`, include/uapi/linux/bpf.h).

use aya_ebpf::{bindings::xdp_action::XDP_TX, helpers::bpf_redirect, programs::XdpContext};

use super::{FrameContext, Linear, PacketContext};

impl PacketContext for XdpContext {
    #[inline(always)]
    fn linear(&self) -> Linear {
        Linear { start: self.data(), end: self.data_end() }
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: the context that the kernel gave us.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.linear().length() as u32
    }
}

impl FrameContext for XdpContext {
    #[inline(always)]
    fn send_out(&self, device: u32) -> u32 {
        if device == self.device() {
            XDP_TX
        } else {
            // SAFETY: a helper that takes integers.
            unsafe { bpf_redirect(device, 0) as u32 }
        }
    }
}

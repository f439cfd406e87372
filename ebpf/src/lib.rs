//! Code of both objects: reads of kernel structures at offsets that the loader has set.
#![no_std]

use aya_ebpf::{Global, helpers::bpf_probe_read_kernel};

/// Declares 32-bit globals that the loader sets before the programs are verified.
#[macro_export]
macro_rules! globals {
    ($($name:ident),+ $(,)?) => {
        $(
            #[unsafe(no_mangle)]
            pub(crate) static $name: ::aya_ebpf::Global<u32> = ::aya_ebpf::Global::new(0);
        )+
    };
}

/// Reads a field of type `T`, an integer or a pointer, at an offset that the loader has set.
///
/// # Safety
///
/// `base` points to a live kernel object that has such a field there. The verifier checks the offset against BTF.
#[inline(always)]
pub unsafe fn field<T: Copy>(base: *const u8, offset: &Global<u32>) -> T {
    // SAFETY: as the caller promises.
    unsafe { base.add(offset.load() as usize).cast::<T>().read_volatile() }
}

/// As [`field`], for an object that the verifier does not track. `None` if the address is not readable.
#[inline(always)]
pub fn probe_field<T>(base: u64, offset: &Global<u32>) -> Option<T> {
    let from = base.wrapping_add(u64::from(offset.load())) as *const T;
    // SAFETY: the helper reads from any address without a fault.
    unsafe { bpf_probe_read_kernel(from) }.ok()
}

/// The programs never panic: the verifier refuses a program that could.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

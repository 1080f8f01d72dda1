//! The eBPF object that `cargo xtask ebpf` built, embedded and aligned as an ELF reader wants it.

#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../../prebuilt/pith.o"));

/// The object file with every program and map.
pub(crate) static OBJECT: &[u8] = &ALIGNED.0;

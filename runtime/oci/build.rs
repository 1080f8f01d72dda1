//! How `pith-oci` is linked: at a fixed address, and entered at `pith_sys::entry`.
//!
//! Every command of an engine is a process of its own, and those that launch are executed twice (`shield`). A static
//! program at any address has to correct 16,000 pointers each time it starts, a third of the time that it lives without
//! doing anything. Stack, heap and mappings are still placed at random.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Elsewhere the object that starts a static program is chosen by rustc, not by the linker's driver.
    let gnu = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu");
    let is_static = std::env::var("CARGO_CFG_TARGET_FEATURE")
        .is_ok_and(|features| features.split(',').any(|feature| feature == "crt-static"));
    if gnu && is_static {
        println!("cargo:rustc-link-arg-bins=-static");
        println!("cargo:rustc-link-arg-bins=-no-pie");
        println!("cargo:rustc-link-arg-bins=-Wl,-e,pith_entry");
    }
}

//! The smallest programs there are: what is measured is the runtime, not libc.

/// What a program does.
#[derive(Clone, Copy)]
pub(super) enum Does {
    /// Ends with 0.
    End,
    /// Waits to be killed.
    Wait,
}

/// An ELF file that does just that.
pub(super) fn smallest(does: Does) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let (machine, code) = code(does);
    let length = HEADERS + code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    half(&mut file, &[2, machine, 1, 0]);
    for value in [BASE + HEADERS, 64, 0] {
        file.extend(value.to_le_bytes());
    }
    half(&mut file, &[0, 0, 64, 56, 1, 0, 0, 0]);
    // One segment, readable and executable, that is the whole file.
    half(&mut file, &[1, 0, 5, 0]);
    for value in [0, BASE, BASE, length, length, 0x1000] {
        file.extend(value.to_le_bytes());
    }
    file.extend(code);
    file
}

/// The machine's number in ELF, and its instructions.
#[cfg(target_arch = "x86_64")]
fn code(does: Does) -> (u16, &'static [u8]) {
    let code: &[u8] = match does {
        // xor edi, edi; mov eax, 60 (exit); syscall
        Does::End => &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05],
        // mov eax, 34 (pause); syscall; jmp to the beginning
        Does::Wait => &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7],
    };
    (62, code)
}

/// The machine's number in ELF, and its instructions.
#[cfg(target_arch = "aarch64")]
fn code(does: Does) -> (u16, &'static [u8]) {
    let code: &[u8] = match does {
        // x0 = 0; x8 = 93 (exit); svc
        Does::End => &[0x00, 0x00, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4],
        // x0 to x3 = 0; x8 = 73 (ppoll); svc; to the beginning
        Does::Wait => &[
            0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x80, 0xd2, 0x02, 0x00, 0x80, 0xd2, 0x03, 0x00, 0x80, 0xd2,
            0x28, 0x09, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, 0xfa, 0xff, 0xff, 0x17,
        ],
    };
    (183, code)
}

//! System call numbers by architecture.

use std::collections::HashMap;
use std::sync::OnceLock;

const TABLE: &str = include_str!("syscalls.tbl");

/// An architecture whose programs a filter knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    X86_64,
    I386,
    Aarch64,
}

impl Architecture {
    /// Of this program.
    #[must_use]
    pub const fn native() -> Architecture {
        if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 }
    }

    /// This one and the 32-bit one that its kernels run beside it, as far as it is known here.
    #[must_use]
    pub fn with_compatible(self) -> Vec<Architecture> {
        match self {
            Architecture::X86_64 => vec![Architecture::X86_64, Architecture::I386],
            Architecture::I386 | Architecture::Aarch64 => vec![self],
        }
    }

    /// AUDIT_ARCH_* of <linux/audit.h>.
    pub(super) fn audit(self) -> u32 {
        match self {
            Architecture::X86_64 => 0xc000_003e,
            Architecture::I386 => 0x4000_0003,
            Architecture::Aarch64 => 0xc000_00b7,
        }
    }

    fn column(self) -> usize {
        match self {
            Architecture::X86_64 => 0,
            Architecture::I386 => 1,
            Architecture::Aarch64 => 2,
        }
    }
}

/// The number of a system call; `None` where the architecture does not have it.
#[must_use]
pub fn number(arch: Architecture, name: &str) -> Option<u32> {
    static NUMBERS: OnceLock<HashMap<&'static str, [Option<u32>; 3]>> = OnceLock::new();
    NUMBERS.get_or_init(read).get(name).and_then(|numbers| numbers[arch.column()])
}

fn read() -> HashMap<&'static str, [Option<u32>; 3]> {
    TABLE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let name = fields.next()?;
            let mut number = || fields.next().and_then(|field| field.parse().ok());
            Some((name, [number(), number(), number()]))
        })
        .collect()
}

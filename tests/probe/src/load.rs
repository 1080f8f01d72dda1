//! Ways to run into a limit.

use std::hint::black_box;
use std::time::Duration;

const MIB: usize = 1024 * 1024;
const PAGE: usize = 4096;

/// Takes memory MiB by MiB and touches each page, so that the kernel has to give it; then keeps it.
pub(crate) fn memory(mib: usize) {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    for number in 0..mib {
        let mut block = vec![0_u8; MIB];
        for page in block.chunks_mut(PAGE) {
            page[0] = 1;
        }
        taken.push(black_box(block));
        if (number + 1) % 16 == 0 {
            println!("{} MiB taken", number + 1);
        }
    }
    println!("{mib} MiB taken, all");
    loop {
        std::thread::sleep(Duration::from_secs(3600));
        black_box(&taken);
    }
}

pub(crate) fn processor() {
    let mut number = 0_u64;
    loop {
        number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

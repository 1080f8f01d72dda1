//! The program that test and demo images carry.

fn main() {}

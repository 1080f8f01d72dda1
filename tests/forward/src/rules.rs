//! Rules as text, a line each.

use std::fmt::{Arguments, Write};

pub(crate) fn line(text: &mut String, line: Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string cannot fail");
}

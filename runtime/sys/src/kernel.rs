//! The running kernel, where only its version tells what it does.

/// Whether the running kernel's version is this or a later one; false when it does not say.
pub fn is_at_least(major: u32, minor: u32) -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(a)), Some(Ok(b))) => (a, b) >= (major, minor),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared() {
        assert!(is_at_least(2, 6) && is_at_least(5, 0));
        assert!(!is_at_least(1000, 0));
    }
}

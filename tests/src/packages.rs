//! The Debian packages that the tests need, in one place: `cargo xtask test` installs what is missing.

/// A package and the program by which one sees that it is there.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// Debian's name.
    pub package: &'static str,
    /// A program of it.
    pub program: &'static str,
}

const fn package(package: &'static str, program: &'static str) -> Package {
    Package { package, program }
}

/// All of them.
pub const ALL: &[Package] = &[
    package("iproute2", "ip"),
    package("gcc", "cc"),
    package("util-linux", "setpriv"),
    package("xz-utils", "xz"),
    package("coreutils", "sort"),
    package("python3", "python3"),
    package("python3-numpy", "f2py3"),
    package("openssl", "openssl"),
    package("perl", "perl"),
    package("gawk", "gawk"),
    package("sqlite3", "sqlite3"),
    package("golang-go", "go"),
    package("default-jre-headless", "java"),
    package("default-jdk-headless", "javac"),
    package("bc", "bc"),
    package("bash", "bash"),
    package("dash", "dash"),
    package("stress-ng", "stress-ng"),
];

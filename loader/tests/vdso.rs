//! Patched and portable vDSO images, called by a real process; and hostile images, which must never panic.

use mosix_loader::vdso::{Presented, VdsoImage, patch, portable, syscall_instruction};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running tests/guests/vdso.c and its own vDSO.
struct Guest {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    base: u64,
    vdso: Vec<u8>,
    _folder: tempfile::TempDir,
}

impl Guest {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("vdso");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/vdso.c");
        assert!(
            Command::new("cc")
                .arg("-O1")
                .arg("-o")
                .arg(&program)
                .arg(source)
                .status()
                .unwrap()
                .success()
        );
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut number = || {
            let mut bytes = [0; 8];
            output.read_exact(&mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        let (base, length) = (number(), number());
        let mut vdso = vec![0; usize::try_from(length).unwrap()];
        output.read_exact(&mut vdso).unwrap();
        Self {
            child,
            input,
            output,
            base,
            vdso,
            _folder: folder,
        }
    }

    /// Hands an image over and returns what its functions answered.
    fn call(&mut self, image: &[u8]) -> BTreeMap<String, i64> {
        let parsed = VdsoImage::parse(image).unwrap();
        let at = |name: &str| {
            let wanted = format!("__vdso_{name}");
            parsed
                .exports
                .iter()
                .find(|export| export.name == wanted)
                .map_or(0, |export| export.offset as u64)
        };
        self.input.write_all(&(image.len() as u64).to_le_bytes()).unwrap();
        self.input.write_all(image).unwrap();
        for name in [
            "clock_gettime",
            "gettimeofday",
            "time",
            "clock_getres",
            "getcpu",
            "getrandom",
        ] {
            self.input.write_all(&at(name).to_le_bytes()).unwrap();
        }
        self.input.flush().unwrap();
        let mut answers = BTreeMap::new();
        loop {
            let mut line = String::new();
            assert_ne!(
                self.output.read_line(&mut line).unwrap(),
                0,
                "guest ended; so far {answers:?}"
            );
            let (name, value) = line.trim().split_once(' ').unwrap();
            if name == "end" {
                return answers;
            }
            answers.insert(name.to_owned(), value.parse().unwrap());
        }
    }

    fn addresses(&self) -> Vec<(String, u64)> {
        VdsoImage::parse(&self.vdso).unwrap().addresses(self.base)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.input.write_all(&0_u64.to_le_bytes());
        let _ = self.input.flush();
        let _ = self.child.wait();
    }
}

const HOME: Presented = Presented {
    cpus: 2,
    realtime_offset_ns: 0,
};
/// Two calls follow each other within this time even on a loaded machine.
const SLACK: i64 = 500_000_000;
/// The coarse clock moves in ticks.
const EPS: i64 = 1_000;

fn assert_answers(answers: &BTreeMap<String, i64>, offset: i64, cpus: i64) {
    for name in ["realtime", "coarse", "tai", "gettimeofday"] {
        let value = answers[name];
        assert!(
            (offset - SLACK..=offset + EPS).contains(&value),
            "{name}: {value}, offset {offset}"
        );
    }
    for name in ["monotonic", "cputime"] {
        assert!((-SLACK..=EPS).contains(&answers[name]), "{name}: {}", answers[name]);
    }
    // time() is the whole second below the clock.
    assert!(
        (offset - 1_000_000_000 - SLACK..=offset + EPS).contains(&answers["time"]),
        "time: {}",
        answers["time"]
    );
    assert_eq!(answers["badclock"], -22, "EINVAL for an unknown clock");
    assert_eq!((answers["zone"], answers["getcpu_null"]), (0, 0));
    assert!(
        (1..=10_000_000).contains(&answers["getres"]),
        "getres: {}",
        answers["getres"]
    );
    assert!((0..cpus).contains(&answers["getcpu"]), "getcpu: {}", answers["getcpu"]);
}

fn assert_random(answers: &BTreeMap<String, i64>) {
    if let Some(parameters) = answers.get("random_params") {
        assert_eq!(*parameters, -38, "libc must not get parameters for a state");
        assert_eq!((answers["random"], answers["random_filled"]), (64, 1));
        assert_eq!(answers["random_bad"], -14, "EFAULT from the system call, no crash");
    }
}

#[test]
fn the_running_kernels_vdso_is_read() {
    let guest = Guest::start();
    let image = VdsoImage::parse(&guest.vdso).unwrap();
    for name in [
        "__vdso_clock_gettime",
        "__vdso_gettimeofday",
        "__vdso_time",
        "__vdso_getcpu",
        "clock_gettime",
    ] {
        let export = image
            .exports
            .iter()
            .find(|export| export.name == name)
            .unwrap_or_else(|| panic!("{name} not found"));
        assert_eq!(export.version.as_deref(), Some("LINUX_2.6"));
        assert!(export.size >= 12 && image.text.iter().any(|range| range.contains(&export.offset)));
    }
    let at = syscall_instruction(&guest.vdso).unwrap();
    assert_eq!(guest.vdso[at..at + 2], [0x0f, 0x05]);
    assert!(image.text.iter().any(|range| range.contains(&(at + 1))));
}

#[test]
fn a_patched_copy_runs_in_the_nodes_vdso() {
    let mut guest = Guest::start();
    let mut image = guest.vdso.clone();
    let done = patch(&mut image, &guest.addresses(), HOME).unwrap();
    for name in ["clock_gettime", "gettimeofday", "time", "clock_getres", "getcpu"] {
        assert!(done.redirected.iter().any(|known| known == name), "{name}: {done:?}");
    }
    assert!(!done.redirected.iter().any(|name| name == "getrandom"));
    // The entry is exactly `movabs rax, ADDR; jmp rax`, but for clock_gettime, which first asks whether it is a clock of the node's.
    let parsed = VdsoImage::parse(&guest.vdso).unwrap();
    let place = |name: &str| parsed.exports.iter().find(|export| export.name == name).unwrap().offset;
    let at = place("__vdso_gettimeofday");
    let entry = &image[at..at + 12];
    assert_eq!((&entry[..2], &entry[10..]), (&[0x48, 0xb8][..], &[0xff, 0xe0][..]));
    assert_eq!(entry[2..10], (guest.base + at as u64).to_le_bytes());
    assert_eq!(image[place("__vdso_clock_gettime")], 0xe9, "a jump within the image");

    let answers = guest.call(&image);
    assert_answers(&answers, 0, 2);
    assert_random(&answers);
    assert!(
        syscall_instruction(&image).is_some(),
        "a patched image still serves as a gadget"
    );
}

#[test]
fn functions_absent_on_the_node_make_their_system_call() {
    let mut guest = Guest::start();
    let mut image = guest.vdso.clone();
    let done = patch::<&str>(
        &mut image,
        &[],
        Presented {
            cpus: 1,
            realtime_offset_ns: 0,
        },
    )
    .unwrap();
    assert_eq!(done.redirected, Vec::<String>::new());
    let answers = guest.call(&image);
    assert_answers(&answers, 0, 1);
    assert_random(&answers);
}

#[test]
fn a_clock_offset_shows_in_every_realtime_function() {
    let mut guest = Guest::start();
    for offset in [3_600_000_000_000, -3_600_250_000_000, 999_999_000, -1_000] {
        let mut image = guest.vdso.clone();
        patch(
            &mut image,
            &guest.addresses(),
            Presented {
                cpus: 64,
                realtime_offset_ns: offset,
            },
        )
        .unwrap();
        assert_answers(&guest.call(&image), offset, 64);
    }
}

#[test]
fn the_layout_is_the_same_on_every_node() {
    let guest = Guest::start();
    let (mut here, mut there) = (guest.vdso.clone(), guest.vdso.clone());
    let a = patch(&mut here, &guest.addresses(), HOME).unwrap();
    let b = patch(&mut there, &[("__vdso_time", 0x7e80_0010_0000)], HOME).unwrap();
    assert_eq!(a.stable, b.stable);
    for range in a.stable {
        assert_eq!(here[range.clone()], there[range]);
    }
}

#[test]
fn the_portable_vdso_serves_bare_and_patched() {
    let mut guest = Guest::start();
    let mut image = portable(HOME).unwrap();
    assert_answers(&guest.call(&image), 0, 2);
    let done = patch(&mut image, &guest.addresses(), HOME).unwrap();
    assert_eq!(done.fallbacks, Vec::<String>::new());
    assert_answers(&guest.call(&image), 0, 2);
}

/// The dynamic linker reads it as it reads the kernel's: hash table, symbols, versions.
#[test]
fn the_dynamic_linker_resolves_the_portable_vdso() {
    let folder = tempfile::tempdir().unwrap();
    let object = folder.path().join("portable.so");
    std::fs::write(&object, portable(HOME).unwrap()).unwrap();
    let source = folder.path().join("look.c");
    std::fs::write(
        &source,
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <stdio.h>\n#include <time.h>\n\
         int main(int c, char **v) { void *h = dlopen(v[1], RTLD_NOW | RTLD_LOCAL); if (!h) { puts(dlerror()); return 1; }\n\
         int (*f)(clockid_t, struct timespec *) = dlvsym(h, \"__vdso_clock_gettime\", \"LINUX_2.6\"); struct timespec t;\n\
         if (!f) { puts(dlerror()); return 2; } if (dlvsym(h, \"__vdso_time\", \"LINUX_9\")) return 3;\n\
         return f(CLOCK_MONOTONIC, &t) || t.tv_sec <= 0; }",
    )
    .unwrap();
    let program = folder.path().join("look");
    assert!(
        Command::new("cc")
            .args(["-o"])
            .arg(&program)
            .arg(&source)
            .arg("-ldl")
            .status()
            .unwrap()
            .success()
    );
    let output = Command::new(&program).arg(&object).output().unwrap();
    assert!(
        output.status.success(),
        "{:?} {}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn garbage_is_an_error() {
    for bytes in [&b""[..], b"\x7fELF", &[0; 8192], &[0xff; 4096]] {
        assert!(VdsoImage::parse(bytes).is_err());
        assert_eq!(syscall_instruction(bytes), None);
        assert!(patch::<&str>(&mut bytes.to_vec(), &[], HOME).is_err());
    }
    assert!(
        VdsoImage::parse(&vec![0; 1 << 20])
            .unwrap_err()
            .to_string()
            .contains("longer than")
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A guest may have written over its vDSO before it moved: an error or a patched image, never a panic, and an image that could
    /// not be patched is unchanged.
    #[test]
    fn mutated_images_never_panic(
        edits in prop::collection::vec((0_usize..1400, any::<u8>()), 1..24),
        words in prop::collection::vec((0_usize..170, prop_oneof![Just(u64::MAX), Just(0), Just(4096), any::<u64>()]), 0..4),
        cut in prop_oneof![Just(usize::MAX), 0_usize..8192],
    ) {
        let mut image = OWN.with(Clone::clone);
        for (at, value) in words {
            image[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in edits {
            image[at] = value;
        }
        image.truncate(cut);
        let before = image.clone();
        let _ = syscall_instruction(&image);
        if patch(&mut image, &[("__vdso_time", 0x1000)], HOME).is_err() {
            prop_assert_eq!(image, before);
        }
    }
}

thread_local! {
    static OWN: Vec<u8> = Guest::start().vdso.clone();
}

//! Inputs of the programs, made once, the same on every machine.
//!
//! Small by default, so that all of it runs in CI; MOSIX_TEST_FULL=1 makes the sizes that the project promises.

use crate::binary::work_dir;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Whether the full sizes are asked for.
pub fn full() -> bool {
    std::env::var_os("MOSIX_TEST_FULL").is_some_and(|value| value == "1")
}

/// The small or the full size.
pub fn size(small: u64, full_size: u64) -> u64 {
    if full() { full_size } else { small }
}

/// A file of about this many bytes that compresses as text does.
pub fn text(bytes: u64) -> PathBuf {
    made(&format!("text-{bytes}"), |out| {
        let mut random = Random(1);
        let mut written = 0;
        while written < bytes {
            let n = random.next();
            // Few frequent words and many rare ones, in lines.
            let word = if n.is_multiple_of(4) {
                random.next() % 50_000
            } else {
                random.next() % 300
            };
            let end = if n.is_multiple_of(11) { '\n' } else { ' ' };
            let text = format!("{}{}{end}", SYLLABLES[(word % 16) as usize], base(word));
            out.write_all(text.as_bytes())?;
            written += text.len() as u64;
        }
        Ok(())
    })
}

/// A file of this many lines in no order, some equal.
pub fn lines(count: u64) -> PathBuf {
    made(&format!("lines-{count}"), |out| {
        let mut random = Random(2);
        for _ in 0..count {
            writeln!(out, "{:x} {}", random.next() % (count * 4), random.next() % 1000)?;
        }
        Ok(())
    })
}

/// A file with this content.
pub fn script(name: &str, content: &str) -> PathBuf {
    let path = work_dir("inputs").join(name);
    if fs::read(&path).is_ok_and(|old| old == content.as_bytes()) {
        return path;
    }
    fs::write(&path, content).expect("write a script");
    path
}

fn made(name: &str, make: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> PathBuf {
    static LOCK: Mutex<()> = Mutex::new(());
    let _lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let path = work_dir("inputs").join(name);
    if !path.exists() {
        // A file of this name is always a whole one.
        let temporary = path.with_extension(std::process::id().to_string());
        let mut out = BufWriter::new(File::create(&temporary).expect("create an input"));
        make(&mut out).and_then(|()| out.flush()).expect("write an input");
        fs::rename(&temporary, &path).expect("put the input in its place");
    }
    path
}

const SYLLABLES: [&str; 16] = [
    "an", "be", "con", "de", "en", "for", "ge", "her", "in", "ka", "lo", "mo", "ne", "or", "pre", "sta",
];

fn base(mut n: u64) -> String {
    let mut text = String::new();
    while n > 0 {
        text.push(char::from(b'a' + (n % 26) as u8));
        n /= 26;
    }
    text
}

/// splitmix64: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

//! Real programs: byte-identical output, stderr and exit status plainly, at home under mosix, and with a move every 200 ms.

use mosix_tests::binary::work_dir;
use mosix_tests::{How, Lab, Program, inputs, require};
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A program, and how many moves it must have gone through at least.
type Case = (Program, u32);

/// Two plain runs alike: else the others would compare chance.
fn plain((program, _): &Case) {
    let first = program.run(How::Plain);
    assert!(first.status.success() && first.length > 0, "{first}");
    println!("{:?}: {first}", program.argv[0]);
    program.run(How::Plain).assert_same(&first);
}

fn home((program, _): &Case) {
    let plain = program.run(How::Plain);
    program.run(How::Home(Lab::home())).assert_same(&plain);
}

/// How long a moved program may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(240);

fn moving(case: Case) {
    let (done, end) = std::sync::mpsc::channel();
    let round = std::thread::spawn(move || {
        move_round(&case);
        let _ = done.send(());
    });
    match end.recv_timeout(PATIENCE) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("the moved program hangs"),
        // Its own panic, with its own words.
        _ => round.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

fn move_round((program, least): &Case) {
    let plain = program.run(How::Plain);
    let moved = program.run(How::Moving {
        lab: Lab::shared(),
        period: Duration::from_millis(200),
    });
    println!("{:?}: {moved}", program.argv[0]);
    moved.assert_same(&plain);
    moved.assert_moved(*least);
}

macro_rules! programs {
    ($($name:ident)*) => {
        mod run_plain { $(#[test] fn $name() { mosix_tests::require!(super::$name().map(|case| super::plain(&case))) })* }
        mod run_at_home { $(#[test] fn $name() { mosix_tests::require!(super::$name().map(|case| super::home(&case))) })* }
        mod run_moving { $(#[test] fn $name() { mosix_tests::require!(super::$name().map(super::moving)) })* }
    };
}

programs! {
    bc gawk java openssl perl python_big_integers python_numpy python_threads sort sqlite static_go static_rust xz xz_threads
}

/// An empty folder for the files of one run.
fn scratch(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let dir = work_dir("scratch").join(format!("{name}-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn xz() -> Result<Case, String> {
    require::program("xz")?;
    let input = inputs::text(inputs::size(6 << 20, 60 << 20));
    Ok((
        Program::new(["xz".into(), "-6".into(), "-c".into(), OsString::from(input)]),
        3,
    ))
}

fn xz_threads() -> Result<Case, String> {
    require::program("xz")?;
    let input = inputs::text(inputs::size(12 << 20, 60 << 20));
    let block = format!("--block-size={}", inputs::size(1 << 20, 4 << 20));
    Ok((
        Program::new([
            "xz".into(),
            "-6".into(),
            "-T4".into(),
            block.into(),
            "-c".into(),
            OsString::from(input),
        ]),
        2,
    ))
}

/// With little memory, so that it works in temporary files.
fn sort() -> Result<Case, String> {
    require::program("sort")?;
    let input = inputs::lines(inputs::size(2_000_000, 5_000_000));
    let folder = scratch("sort");
    let argv = [
        "sort".into(),
        "-S".into(),
        "4M".into(),
        "-T".into(),
        OsString::from(folder),
        OsString::from(input),
    ];
    Ok((Program::new(argv).env("LC_ALL", "C"), 1))
}

fn python(code: &str, least: u32) -> Result<Case, String> {
    require::program("python3")?;
    // Debian's, whatever else is in PATH.
    Ok((Program::new(["/usr/bin/python3", "-c", code]), least))
}

fn python_big_integers() -> Result<Case, String> {
    let (n, power) = (inputs::size(18_000, 40_000), inputs::size(1200, 3000));
    python(
        &format!(
            "import sys\n\
             if hasattr(sys, 'set_int_max_str_digits'): sys.set_int_max_str_digits(0)\n\
             a, b = 1, 1\n\
             for i in range({n}): a, b = b, a * 3 + b * i\n\
             print(a % 10**50, pow(3, 10**{power}, 10**4001 + 7) % 10**60)\n\
             x = 1\n\
             for i in range(1, {n} // 3): x *= i\n\
             print(str(x)[:80], len(str(x)))"
        ),
        1,
    )
}

fn python_numpy() -> Result<Case, String> {
    require::python_module("numpy")?;
    let rounds = inputs::size(60, 200);
    python(
        &format!(
            "import numpy as np, hashlib\n\
             r = np.random.default_rng(5)\n\
             a, f = r.integers(0, 1000, (300, 300)), r.random((300, 300))\n\
             h = hashlib.sha256()\n\
             for i in range({rounds}):\n\
             \x20 a = (a @ a) % 1009\n\
             \x20 f = np.sin(f @ f / 300) + f.T\n\
             \x20 h.update(a.tobytes()); h.update(f.tobytes())\n\
             print(h.hexdigest(), int(a.sum()), repr(float(f.sum())))"
        ),
        1,
    )
}

/// Eight threads with locks, conditions and queues.
fn python_threads() -> Result<Case, String> {
    let n = inputs::size(400_000, 600_000);
    python(
        &format!(
            "import threading, queue, hashlib\n\
             q, out, l, done = queue.Queue(50), {{}}, threading.Lock(), 0\n\
             c = threading.Condition(l)\n\
             def work():\n\
             \x20 global done\n\
             \x20 while True:\n\
             \x20   i = q.get()\n\
             \x20   if i is None: break\n\
             \x20   h = hashlib.md5(b'%d' % i).hexdigest()\n\
             \x20   with l: out[i] = h\n\
             \x20 with c:\n\
             \x20   done += 1; c.notify()\n\
             ts = [threading.Thread(target=work) for _ in range(8)]\n\
             for t in ts: t.start()\n\
             for i in range({n}): q.put(i)\n\
             for t in ts: q.put(None)\n\
             with c: c.wait_for(lambda: done == 8)\n\
             for t in ts: t.join()\n\
             print(len(out), hashlib.sha256(''.join(out[i] for i in sorted(out)).encode()).hexdigest())"
        ),
        1,
    )
}

fn openssl() -> Result<Case, String> {
    require::program("openssl")?;
    // One file several times: what takes long is the hashing, not making the input.
    let input = OsString::from(inputs::text(60 << 20));
    let mut argv = vec![OsString::from("openssl"), "dgst".into(), "-sha512".into()];
    argv.extend(std::iter::repeat_n(input, if inputs::full() { 20 } else { 8 }));
    Ok((Program::new(argv), 1))
}

fn perl() -> Result<Case, String> {
    require::program("perl")?;
    let input = inputs::text(inputs::size(16 << 20, 60 << 20));
    let code = "my %h; while (<>) { $h{$_}++ for split } \
                print map { \"$_ $h{$_}\\n\" } sort { $h{$b} <=> $h{$a} || $a cmp $b } keys %h;";
    Ok((
        Program::new(["perl".into(), "-e".into(), code.into(), OsString::from(input)]),
        1,
    ))
}

fn gawk() -> Result<Case, String> {
    require::program("gawk")?;
    let input = inputs::text(inputs::size(16 << 20, 60 << 20));
    let code = "{ for (i = 1; i <= NF; i++) n[$i] += length($i) * NR % 7 } \
                END { k = asorti(n, s); for (i = 1; i <= k; i++) print s[i], n[s[i]] }";
    Ok((Program::new(["gawk".into(), code.into(), OsString::from(input)]), 1))
}

/// Builds and queries a database on disk.
fn sqlite() -> Result<Case, String> {
    require::program("sqlite3")?;
    let n = inputs::size(300_000, 1_000_000);
    let sql = format!(
        "PRAGMA journal_mode=DELETE;\nDROP TABLE IF EXISTS t;\nCREATE TABLE t(id INTEGER PRIMARY KEY, a INT, b TEXT);\n\
         WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<{n}) \
         INSERT INTO t SELECT x, (x*7919)%10007, hex(x*x) FROM c;\nCREATE INDEX i ON t(a, b);\n\
         UPDATE t SET b=b||a WHERE id%3=0;\nDELETE FROM t WHERE id%17=0;\n\
         SELECT a, count(*), max(b) FROM t GROUP BY a ORDER BY 2 DESC, 1 LIMIT 200;\n\
         SELECT count(*), sum(length(b)) FROM t JOIN (SELECT a AS z FROM t LIMIT 500) ON a=z;\nPRAGMA integrity_check;\n"
    );
    let database = scratch("sqlite").join("test.db");
    let program = Program::new(["sqlite3".into(), OsString::from(database)]);
    Ok((program.stdin(inputs::script("sqlite.sql", &sql)), 1))
}

fn static_rust() -> Result<Case, String> {
    let rounds = inputs::size(200, 400).to_string();
    Ok((
        Program::new([rust_program().clone()?.into_os_string(), rounds.into()]),
        2,
    ))
}

fn static_go() -> Result<Case, String> {
    require::program("go")?;
    let rounds = inputs::size(300, 600).to_string();
    Ok((Program::new([go_program().into_os_string(), rounds.into()]), 1))
}

/// Eight threads.
fn java() -> Result<Case, String> {
    require::program("java")?;
    require::program("javac")?;
    static CLASSES: OnceLock<PathBuf> = OnceLock::new();
    let dir = CLASSES.get_or_init(|| {
        let dir = work_dir("java");
        let source = dir.join("Main.java");
        fs::write(&source, JAVA).unwrap();
        let status = Command::new("javac").arg("-d").arg(&dir).arg(&source).status();
        assert!(status.unwrap().success(), "javac");
        dir
    });
    let rounds = inputs::size(600, 1500).to_string();
    Ok((
        Program::new([
            "java".into(),
            "-cp".into(),
            dir.into(),
            "Main".into(),
            OsString::from(rounds),
        ]),
        1,
    ))
}

/// Digits of pi.
fn bc() -> Result<Case, String> {
    require::program("bc")?;
    let script = inputs::script("pi.bc", &format!("scale={}\n4*a(1)\n", inputs::size(2000, 3000)));
    Ok((Program::new(["bc", "-l"]).stdin(script), 1))
}

/// A static Go program with goroutines and maps; prints a checksum. Its runtime sends itself SIGURG every 10 ms.
pub fn go_program() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let dir = work_dir("go");
        fs::write(dir.join("main.go"), GO).unwrap();
        let program = dir.join("program");
        let status = Command::new("go")
            .args(["build", "-o"])
            .arg(&program)
            .arg("main.go")
            .current_dir(&dir)
            .env("CGO_ENABLED", "0")
            .env("GOCACHE", dir.join("cache"))
            .env("GOFLAGS", "-mod=mod")
            .env("GO111MODULE", "off")
            .status();
        assert!(status.unwrap().success(), "go build");
        program
    })
    .clone()
}

fn rust_program() -> &'static Result<PathBuf, String> {
    static PATH: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PATH.get_or_init(|| {
        let dir = work_dir("rust");
        let source = dir.join("main.rs");
        fs::write(&source, RUST).unwrap();
        let program = dir.join("program");
        let output = Command::new("rustc")
            .args(["--edition=2024", "-O", "-C", "target-feature=+crt-static", "-o"])
            .args([&program, &source])
            .output()
            .map_err(|e| format!("rustc: {e}"))?;
        if !output.status.success() {
            return Err(format!(
                "rustc cannot link statically: {}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        Ok(program)
    })
}

const GO: &str = r#"package main

import ("crypto/sha256"; "fmt"; "os"; "sort"; "strconv"; "sync")

func main() {
	n, _ := strconv.Atoi(os.Args[1])
	var wg sync.WaitGroup
	jobs := make(chan int)
	var mu sync.Mutex
	sums := map[int][32]byte{}
	for w := 0; w < 8; w++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range jobs {
				s := sha256.Sum256([]byte(strconv.Itoa(j)))
				for i := 0; i < 20000; i++ { s = sha256.Sum256(s[:]) }
				garbage := make([][]byte, 100)
				for i := range garbage { garbage[i] = make([]byte, 1000+i) }
				mu.Lock(); sums[j] = s; mu.Unlock()
			}
		}()
	}
	for j := 0; j < n*4; j++ { jobs <- j }
	close(jobs)
	wg.Wait()
	keys := []int{}
	for k := range sums { keys = append(keys, k) }
	sort.Ints(keys)
	h := sha256.New()
	for _, k := range keys { s := sums[k]; h.Write(s[:]) }
	fmt.Printf("%d %x\n", len(keys), h.Sum(nil))
}
"#;

const RUST: &str = r#"use std::collections::BTreeMap;
use std::sync::mpsc;

fn main() {
    let rounds: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..4u64).map(|t| {
        let sender = sender.clone();
        std::thread::spawn(move || for r in 0..rounds {
            let mut map = BTreeMap::new();
            let mut x = t * 1000 + r;
            for i in 0..60_000u64 {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                map.insert(x >> 20, i);
            }
            let sum = map.iter().fold(0u64, |s, (k, v)| s.rotate_left(5) ^ k.wrapping_add(*v));
            sender.send((t, r, sum)).unwrap();
        })
    }).collect();
    drop(sender);
    let mut all: Vec<_> = receiver.iter().collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    all.sort();
    for (t, r, sum) in all { println!("{t} {r} {sum:016x}"); }
}
"#;

const JAVA: &str = r#"import java.util.*;
import java.util.concurrent.*;

public class Main {
    public static void main(String[] args) throws Exception {
        int n = Integer.parseInt(args[0]);
        ExecutorService pool = Executors.newFixedThreadPool(8);
        List<Future<Long>> all = new ArrayList<>();
        for (int t = 0; t < 8 * n; t++) {
            final int seed = t;
            all.add(pool.submit(() -> {
                Random r = new Random(seed);
                TreeMap<Long, String> map = new TreeMap<>();
                for (int i = 0; i < 4000; i++) map.put(r.nextLong(), "v" + i);
                long h = 7;
                for (Map.Entry<Long, String> e : map.entrySet()) h = h * 31 + e.getKey() + e.getValue().hashCode();
                return h;
            }));
        }
        long sum = 0;
        for (Future<Long> f : all) sum = sum * 1000003 + f.get();
        pool.shutdown();
        if (!pool.awaitTermination(60, TimeUnit.SECONDS)) throw new Exception("pool");
        System.out.println(all.size() + " " + Long.toHexString(sum));
    }
}
"#;

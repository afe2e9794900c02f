//! Real programs: byte-identical output, stderr and exit status plainly, at home under mosix, and with a move every 200 ms.

use mosix_tests::binary::work_dir;
use mosix_tests::{How, Lab, Program, inputs, require};
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// Runs the program in the three ways and compares. `least`: moves that must have succeeded on the way.
fn same_in_three_ways(program: &Program, least: u32) {
    let lab = Lab::shared();
    let plain = program.run(How::Plain);
    assert!(plain.status.success(), "{plain}");
    assert!(plain.length > 0, "{plain}");
    program.run(How::Home(lab.node(1))).assert_same(&plain);
    let moved = program.run(How::Moving {
        lab,
        period: Duration::from_millis(200),
    });
    moved.assert_same(&plain);
    moved.assert_moved(least);
}

/// A folder of its own for a test's files, empty.
fn fresh(name: &str) -> PathBuf {
    let dir = work_dir("scratch").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn xz() {
    require!(require::program("xz"));
    let input = inputs::text(inputs::size(6 << 20, 60 << 20));
    same_in_three_ways(
        &Program::new(["xz".into(), "-6".into(), "-c".into(), OsString::from(input)]),
        3,
    );
}

#[test]
fn xz_with_threads() {
    require!(require::program("xz"));
    let input = inputs::text(inputs::size(12 << 20, 60 << 20));
    let block = inputs::size(1 << 20, 4 << 20);
    let block = format!("--block-size={block}");
    same_in_three_ways(
        &Program::new([
            "xz".into(),
            "-6".into(),
            "-T4".into(),
            block.into(),
            "-c".into(),
            OsString::from(input),
        ]),
        3,
    );
}

#[test]
fn sort_with_temporary_files() {
    require!(require::program("sort"));
    let input = inputs::lines(inputs::size(600_000, 5_000_000));
    let folder = fresh("sort");
    let program = Program::new([
        "sort".into(),
        "-S".into(),
        "4M".into(),
        "-T".into(),
        OsString::from(&folder),
        OsString::from(input),
    ]);
    same_in_three_ways(&program.env("LC_ALL", "C"), 1);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "temporary files are left");
}

#[test]
fn python_big_integers() {
    require!(require::program("python3"));
    let n = inputs::size(12_000, 40_000);
    let code = format!(
        "import sys\nsys.set_int_max_str_digits(0)\na,b=1,1\nfor i in range({n}):\n  a,b=b,a*3+b*i\n\
         print(a%10**50)\nprint(pow(3,10**{},10**4001+7)%10**60)\nx=1\nfor i in range(1,{n}//3): x*=i\nprint(str(x)[:80],len(str(x)))",
        inputs::size(900, 3000)
    );
    same_in_three_ways(&Program::new(["/usr/bin/python3", "-c", &code]), 1);
}

#[test]
fn python_numpy() {
    require!(require::python_module("numpy"));
    let rounds = inputs::size(30, 200);
    let code = format!(
        "import numpy as np,hashlib\nr=np.random.default_rng(5)\na=r.integers(0,1000,(300,300))\nf=r.random((300,300))\n\
         h=hashlib.sha256()\nfor i in range({rounds}):\n  a=(a@a)%1009\n  f=np.sin(f@f/300)+f.T\n  h.update(a.tobytes())\n  h.update(f.tobytes())\n\
         print(h.hexdigest(),int(a.sum()),repr(float(f.sum())))"
    );
    same_in_three_ways(&Program::new(["/usr/bin/python3", "-c", &code]), 1);
}

#[test]
fn python_threads_with_locks_and_queues() {
    require!(require::program("python3"));
    let n = inputs::size(20_000, 100_000);
    let code = format!(
        "import threading,queue,hashlib\nq=queue.Queue(50)\nout={{}}\nl=threading.Lock()\nc=threading.Condition(l)\ndone=0\n\
         def work():\n  global done\n  while True:\n    i=q.get()\n    if i is None: break\n    h=hashlib.md5(b'%d'%i).hexdigest()\n\
         \x20   with l: out[i]=h\n  with c:\n    done+=1; c.notify()\n\
         ts=[threading.Thread(target=work) for _ in range(8)]\n[t.start() for t in ts]\n\
         for i in range({n}): q.put(i)\n[q.put(None) for _ in ts]\n\
         with c:\n  c.wait_for(lambda: done==8)\n[t.join() for t in ts]\n\
         print(len(out),hashlib.sha256(''.join(out[i] for i in sorted(out)).encode()).hexdigest())"
    );
    same_in_three_ways(&Program::new(["/usr/bin/python3", "-c", &code]), 1);
}

#[test]
fn openssl_digest() {
    require!(require::program("openssl"));
    let input = inputs::text(inputs::size(60 << 20, 600 << 20));
    same_in_three_ways(
        &Program::new(["openssl".into(), "dgst".into(), "-sha512".into(), OsString::from(input)]),
        0,
    );
}

#[test]
fn perl() {
    require!(require::program("perl"));
    let input = inputs::text(inputs::size(6 << 20, 60 << 20));
    let code = "my %h; while (<>) { $h{$_}++ for split } print map { \"$_ $h{$_}\\n\" } sort { $h{$b} <=> $h{$a} || $a cmp $b } keys %h;";
    same_in_three_ways(
        &Program::new(["perl".into(), "-e".into(), code.into(), OsString::from(input)]),
        1,
    );
}

#[test]
fn gawk() {
    require!(require::program("gawk"));
    let input = inputs::text(inputs::size(8 << 20, 60 << 20));
    let code = "{ for (i = 1; i <= NF; i++) n[$i] += length($i) * NR % 7 } END { k = asorti(n, s); for (i = 1; i <= k; i++) print s[i], n[s[i]] }";
    same_in_three_ways(&Program::new(["gawk".into(), code.into(), OsString::from(input)]), 1);
}

#[test]
fn sqlite() {
    require!(require::program("sqlite3"));
    let n = inputs::size(60_000, 400_000);
    let sql = format!(
        "PRAGMA journal_mode=DELETE;\nDROP TABLE IF EXISTS t;\nCREATE TABLE t(id INTEGER PRIMARY KEY, a INT, b TEXT);\n\
         WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<{n}) \
         INSERT INTO t SELECT x, (x*7919)%10007, hex(x*x) FROM c;\nCREATE INDEX i ON t(a, b);\n\
         UPDATE t SET b=b||a WHERE id%3=0;\nDELETE FROM t WHERE id%17=0;\n\
         SELECT a, count(*), max(b) FROM t GROUP BY a ORDER BY 2 DESC, 1 LIMIT 200;\n\
         SELECT count(*), sum(length(b)) FROM t JOIN (SELECT a AS z FROM t LIMIT 500) ON a=z;\nPRAGMA integrity_check;\n"
    );
    let script = inputs::script("sqlite.sql", &sql);
    let database = fresh("sqlite").join("test.db");
    same_in_three_ways(
        &Program::new(["sqlite3".into(), OsString::from(database)]).stdin(script),
        1,
    );
}

#[test]
fn static_rust() {
    let program = rust_program();
    require!(program);
    let program = program.clone().unwrap_or_default();
    same_in_three_ways(
        &Program::new([program.into_os_string(), inputs::size(12, 60).to_string().into()]),
        3,
    );
}

#[test]
fn static_go() {
    require!(require::program("go"));
    same_in_three_ways(
        &Program::new([go_program().into_os_string(), inputs::size(60, 400).to_string().into()]),
        1,
    );
}

#[test]
fn java_with_threads() {
    require!(require::program("java"));
    require!(require::program("javac"));
    let dir = work_dir("java");
    let source = dir.join("Main.java");
    fs::write(&source, JAVA).unwrap();
    let status = Command::new("javac").arg("-d").arg(&dir).arg(&source).status().unwrap();
    assert!(status.success());
    let argv = [
        "java".into(),
        "-cp".into(),
        dir.into_os_string(),
        "Main".into(),
        inputs::size(40, 300).to_string().into(),
    ];
    same_in_three_ways(&Program::new(argv), 1);
}

#[test]
fn bc_digits_of_pi() {
    require!(require::program("bc"));
    let script = inputs::script("pi.bc", &format!("scale={}\n4*a(1)\n", inputs::size(1200, 3000)));
    same_in_three_ways(&Program::new(["bc", "-l"]).stdin(script), 1);
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

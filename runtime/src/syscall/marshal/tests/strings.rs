//! argv and envp: what home's kernel sees of a guest's vectors, and what it must never see of a lying host's.

use super::*;
use mosix_wire::call::Place;

const PATH: u64 = 0x1000;
const VECTOR: u64 = 0x10_0000;
const TEXT: u64 = 0x20_0000;

/// What a kernel finds in a placed vector: strings, and how it ends (0 or the address that faults).
fn seen(buffer: &[u8], vector: u64) -> (Vec<Vec<u8>>, u64) {
    let mut strings = Vec::new();
    for place in (at(vector)..).step_by(8) {
        let pointer = word(buffer, place);
        if pointer < BASE || pointer >= BASE + buffer.len() as u64 {
            return (strings, pointer);
        }
        let text = &buffer[at(pointer)..];
        strings.push(text[..text.iter().position(|b| *b == 0).expect("an end")].to_vec());
    }
    unreachable!()
}

/// Forwards execve with this argv and no environment, and gives what the kernel sees.
fn executed(mem: &Fake, argv: u64) -> (Vec<Vec<u8>>, u64) {
    mem.map(PATH, 1).put(PATH, b"/bin/true\0");
    let forward = forward("execve", [PATH, argv, 0, 0, 0, 0], mem);
    let mut found = None;
    home(&forward, |args, buffer| {
        assert_eq!(args[2], 0, "no environment");
        found = Some(match args[1] {
            pointer if (BASE..BASE + buffer.len() as u64).contains(&pointer) => seen(buffer, pointer),
            bad => (Vec::new(), bad),
        });
        -2
    });
    found.unwrap()
}

fn pointers(all: &[u64]) -> Vec<u8> {
    all.iter().flat_map(|pointer| pointer.to_le_bytes()).collect()
}

#[test]
fn arguments_are_what_they_were() {
    let mem = Fake::default();
    mem.map(VECTOR, 2).map(TEXT, 1).put(TEXT, b"one\0\0three\0");
    // Across a page's end, and not aligned.
    let vector = VECTOR + PAGE - 13;
    mem.put(vector, &pointers(&[TEXT, TEXT + 4, TEXT + 5, 0, 8]));
    let strings: Vec<Vec<u8>> = [&b"one"[..], b"", b"three"].map(<[u8]>::to_vec).into();
    assert_eq!(executed(&mem, vector), (strings, 0));
    assert_eq!(executed(&mem, 0), (vec![], 0));
    mem.put(vector, &pointers(&[0]));
    assert_eq!(executed(&mem, vector), (vec![], 0));
}

#[test]
fn what_faults_in_the_guest_faults_at_home() {
    let mem = Fake::default();
    mem.map(VECTOR, 1).map(TEXT, 1);
    let last = VECTOR + PAGE - 16;
    // No vector, one without an end, a pointer to nowhere, a string without an end.
    assert_eq!(executed(&mem, 8).1, BAD_POINTER);
    mem.put(last, &pointers(&[TEXT, TEXT]));
    assert_eq!(executed(&mem, last), (vec![vec![]; 2], BAD_POINTER));
    mem.put(VECTOR, &pointers(&[TEXT, 8, TEXT, 0]));
    assert_eq!(executed(&mem, VECTOR), (vec![vec![]], BAD_POINTER));
    mem.put(VECTOR, &pointers(&[u64::MAX, 0]));
    assert_eq!(executed(&mem, VECTOR), (vec![], BAD_POINTER));
    mem.put(TEXT + PAGE - 4, b"xxxx");
    mem.put(VECTOR, &pointers(&[TEXT + PAGE - 4, 0]));
    assert_eq!(executed(&mem, VECTOR), (vec![], BAD_POINTER));
}

#[test]
fn what_is_too_much_is_sent_as_too_much_and_no_more() {
    let mem = Fake::default();
    mem.map(VECTOR, 400).map(TEXT + 0x100_0000, 40);
    let text = TEXT + 0x100_0000;
    mem.put(text, &vec![b'x'; 40 * PAGE as usize]);
    mem.put(VECTOR, &pointers(&[text, 0]));
    let (strings, end) = executed(&mem, VECTOR);
    assert_eq!(
        (strings[0].len(), end),
        (ARG_LENGTH, 0),
        "one byte more than the kernel takes"
    );
    // The longest one, a hundred times.
    let longest = text + 40 * PAGE - ARG_LENGTH as u64;
    mem.put(text + 40 * PAGE - 1, &[0]);
    let mut all = vec![longest; 100];
    all.push(0);
    mem.put(VECTOR, &pointers(&all));
    let (strings, _) = executed(&mem, VECTOR);
    let total: u64 = strings.iter().map(|text| text.len() as u64 + 9).sum();
    assert!(
        (ARG_TOTAL..ARG_TOTAL + ARG_LENGTH as u64 + 16).contains(&total),
        "{total}"
    );
}

/// A frame as a host could make it.
fn judged(bytes: &[u8], relocs: &[Place]) -> Result<(), String> {
    let mem = Fake::default();
    mem.map(PATH, 1).put(PATH, b"/bin/true\0");
    let mut call = forward("execve", [PATH, 0, 0, 0, 0, 0], &mem).call;
    let mut payload = b"/bin/true\0\0\0\0\0\0\0".to_vec();
    payload.extend_from_slice(bytes);
    call.size = payload.len() as u32;
    call.args[1] = 16;
    call.relocs = vec![Place::Arg(0), Place::Arg(1)];
    call.relocs.extend_from_slice(relocs);
    crate::syscall::relocate::check(&call, &payload).map_err(|error| error.to_string())?;
    audit(named("execve"), &call, &payload).map_err(str::to_owned)?;
    let mut buffer = vec![0; call.size as usize];
    place(&call, &payload, &mut buffer, BASE)
        .map(drop)
        .map_err(|error| error.to_string())
}

#[test]
fn a_lying_vector_is_refused() {
    let row = |at, count| Place::Vector { at, count };
    let good = pointers(&[0, 0, 0]);
    judged(&good, &[row(16, 2)]).unwrap();
    // Without an end, or beyond the buffer, or not in order, or sharing bytes.
    judged(&good, &[row(16, 3)]).unwrap_err();
    for rows in [
        &[row(16, 4)][..],
        &[row(16, u32::MAX)],
        &[row(u32::MAX - 7, 1)],
        &[row(16, 0)],
        &[row(17, 1)],
        &[row(24, 1), row(16, 1)],
        &[row(16, 2), row(24, 1)],
        &[row(16, 2), Place::At(24)],
    ] {
        judged(&good, rows).unwrap_err();
    }
    // An address of the deputy's own, and an offset beyond the buffer.
    judged(&pointers(&[BASE, 0]), &[]).unwrap_err();
    judged(&pointers(&[1 << 40, 0]), &[row(16, 1)]).unwrap_err();
    // A string without an end.
    let mut open = pointers(&[32, 0]);
    open.extend(b"xxxxxxxx");
    judged(&open, &[row(16, 1)]).unwrap_err();
    // The same string more often than any program gets it.
    let mut many = pointers(&[0; 1_000_000]);
    many.extend([0; 8]);
    judged(&many, &[row(16, 1_000_000)]).unwrap_err();
}

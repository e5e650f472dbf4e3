//! The fuzz targets as plain tests: each runs over its seeds and a few thousand mutations of them, always the same ones.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
mod targets;

/// Mutations a target is given; `FUZZ_MUTATIONS` asks for another number.
const MUTATIONS: usize = 2_000;

/// Runs `target` over every seed, then over mutations. A failure prints the input.
fn fuzz(name: &str, target: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let seeds: Vec<_> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(!seeds.is_empty());
    let mutations = std::env::var("FUZZ_MUTATIONS").map_or(MUTATIONS, |number| number.parse().unwrap());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for input in &seeds {
        run(target, input);
    }
    for _ in 0..mutations {
        let mut input = random.choose(&seeds).clone();
        for _ in 0..=random.below(4) {
            mutate(&mut input, &seeds, &mut random);
        }
        run(target, &input);
    }
}

fn run(target: fn(&[u8]), input: &[u8]) {
    let result = std::panic::catch_unwind(|| target(input));
    assert!(result.is_ok(), "failing input: {:?}", String::from_utf8_lossy(input));
}

/// Tokens that parsers treat in a way of their own.
const TOKENS: [&str; 24] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    ",",
    ":",
    "\\u0000",
    "\\ud800",
    "null",
    "-0",
    "0",
    "1",
    "1e9",
    "18446744073709551615",
    "18446744073709551616",
    "*",
    "?",
    "!",
    "/",
    "..",
    "\n",
    "é",
];

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let until = (at + 1 + random.below(40)).min(input.len());
    match random.below(8) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.below(256) as u8,
        2 => drop(input.drain(at.min(until)..until)),
        3 => {
            let piece = input[at.min(until)..until].to_vec();
            let to = random.below(input.len() + 1);
            input.splice(to..to, piece);
        }
        4 => input.truncate(at),
        5 => {
            let other = random.choose(seeds);
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        6 => replace_number(input, at, random),
        _ => {
            let token = random.choose(&TOKENS).as_bytes();
            input.splice(at..at, token.iter().copied());
        }
    }
}

/// Changes the next number after `at`: versions, lengths and thresholds decide most.
fn replace_number(input: &mut Vec<u8>, at: usize, random: &mut Random) {
    let Some(start) = (at..input.len()).find(|at| input[*at].is_ascii_digit()) else {
        return;
    };
    let end = (start..input.len())
        .find(|at| !input[*at].is_ascii_digit())
        .unwrap_or(input.len());
    let number = *random.choose(&["0", "1", "2", "3", "7", "9223372036854775807", "18446744073709551615"]);
    input.splice(start..end, number.bytes());
}

/// xorshift64*: small, good enough, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

macro_rules! targets {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            fuzz(stringify!($name), targets::$name);
        }
    )*};
}

targets!(json metadata manifest custom glob time trusted);

#[test]
fn a_seed_reaches_every_role() {
    let seed = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/trusted/cycle")).unwrap();
    assert_eq!(targets::trusted_state(&seed), Some([2, 2, 2, 1, 1, 1]));
}

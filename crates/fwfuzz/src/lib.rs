//! Runs fuzz targets as plain tests: each over its seeds and mutations of them, always the same ones, without any tool.
//!
//! A crate with parsers has a directory `fuzz`, a package outside the workspace for `cargo fuzz`; its `src/lib.rs` holds
//! one function a target. `tests/fuzz.rs` includes that file and runs the same functions:
//!
//! ```ignore
//! #[path = "../fuzz/src/lib.rs"]
//! mod targets;
//!
//! fwfuzz::tests!(targets: json 2000, time 2000);
//! ```
//!
//! The number says how many mutations a target is given; `FUZZ_MUTATIONS` asks for another one. What it does not do: look
//! at what the code reaches. That is for `cargo fuzz`.

use std::fs;
use std::io;
use std::panic;
use std::path::Path;

/// Defines a test for each target of a module: its seeds are the files of `fuzz/seeds/TARGET`.
#[macro_export]
macro_rules! tests {
    ($module:ident: $($name:ident $mutations:literal),* $(,)?) => {$(
        #[test]
        fn $name() {
            let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/", stringify!($name));
            $crate::run(seeds.as_ref(), $mutations, $module::$name);
        }
    )*};
}

/// Runs `target` over every file of the directory `seeds`, then over `mutations` of them.
///
/// # Panics
/// When the target does: the input is printed. When there are no seeds, or they cannot be read.
pub fn run(seeds: &Path, mutations: usize, target: fn(&[u8])) {
    let seeds = read(seeds).unwrap_or_else(|error| panic!("seeds {}: {error}", seeds.display()));
    assert!(!seeds.is_empty(), "there are no seeds");
    for input in &seeds {
        check(target, input);
    }
    let asked = std::env::var("FUZZ_MUTATIONS").ok();
    let mutations = asked.map_or(mutations, |number| number.parse().expect("FUZZ_MUTATIONS is a number"));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..mutations {
        let mut input = random.choose(&seeds).clone();
        for _ in 0..=random.below(4) {
            mutate(&mut input, &seeds, &mut random);
        }
        check(target, &input);
    }
}

/// The seeds by the order of their names, so that every run makes the same mutations.
fn read(dir: &Path) -> io::Result<Vec<Vec<u8>>> {
    let entries: io::Result<Vec<_>> = fs::read_dir(dir)?.collect();
    let mut paths: Vec<_> = entries?.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    paths.iter().map(fs::read).collect()
}

fn check(target: fn(&[u8]), input: &[u8]) {
    let result = panic::catch_unwind(|| target(input));
    assert!(result.is_ok(), "failing input: \"{}\"", input.escape_ascii());
}

/// Tokens that parsers treat in a way of their own.
const TOKENS: [&str; 32] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    ",",
    ":",
    ";",
    "=",
    "-",
    "%2f",
    "%00",
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
    "../",
    "\n",
    "\r\n",
    "\0",
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

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fwsign_fuzz::encrypted(data));

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fwserve_fuzz::headers(data));

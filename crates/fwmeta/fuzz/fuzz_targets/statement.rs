#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fwmeta_fuzz::statement(data));

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fwagent_fuzz::tpm(data));

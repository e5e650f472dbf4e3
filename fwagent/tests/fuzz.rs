//! The fuzz targets as plain tests: each runs over its seeds and mutations of them, always the same ones.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use fwagent::config::Config;
use fwagent::host::unpack::unpack;
use fwagent::machine::autoboot::{Attempt, Autoboot};
use fwagent::machine::boot::BootRecord;
use fwagent::machine::cmdline;
use fwagent::machine::efi_boot::LoadOption;
use fwagent::machine::grub_env::Block;
use fwagent::machine::mounts;
use fwagent::machine::record;
use fwagent::machine::tpm;
use fwagent::machine::uboot_config::Places;

#[path = "../fuzz/src/lib.rs"]
mod targets;

fwfuzz::tests!(targets: record 3000, settings 3000, hold 5000, boot 3000, config 3000, twin 500, generation 150, tar 3000, bundle 2000, zstd 1000, uboot 5000, grub 5000, fw_env 5000, kernel 5000, efi 5000, gpt 3000, autoboot 5000, entries 5000, tpm 5000);

/// Mutations of what is refused at once would reach nothing.
#[test]
fn seeds_are_accepted() {
    let seeds = |name: &str| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path())
    };
    for path in seeds("record") {
        record::decode(&std::fs::read(path).unwrap()).unwrap();
    }
    for path in seeds("boot") {
        BootRecord::decode(&std::fs::read(path).unwrap()).unwrap();
    }
    for path in seeds("grub") {
        Block::decode(&std::fs::read(path).unwrap()).unwrap();
    }
    for path in seeds("autoboot") {
        let bytes = std::fs::read(path).unwrap();
        assert!(Autoboot::parse(&bytes).is_ok() || Attempt::decode(&bytes).is_some());
    }
    for path in seeds("tpm") {
        let bytes = std::fs::read(path).unwrap();
        let public = tpm::public(&bytes, 0x0150_0010).is_ok();
        assert!(public || tpm::value(&bytes).is_ok() || tpm::done(&bytes).is_ok());
    }
    for path in seeds("efi") {
        let bytes = std::fs::read(path).unwrap();
        LoadOption::decode(&bytes[1 + usize::from(bytes[0])..]).unwrap();
    }
    for path in seeds("fw_env") {
        Places::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    }
    for path in seeds("kernel") {
        let text = std::fs::read(&path).unwrap();
        match path.file_name().unwrap().to_str().unwrap() {
            "swaps" => assert_eq!(mounts::swaps(&text).unwrap().len(), 2),
            "cmdline" => assert!(cmdline::root(std::str::from_utf8(&text).unwrap()).is_some()),
            _ => assert!(
                mounts::mounts(&text)
                    .unwrap()
                    .iter()
                    .any(|mount| !mount.layers().is_empty())
            ),
        }
    }
    for path in seeds("config") {
        Config::load(&path).unwrap();
    }
    for name in ["tree", "links", "long-name"] {
        let archive = std::fs::read(seeds("tar").find(|path| path.ends_with(name)).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        unpack(&mut archive.as_slice(), dir.path()).unwrap();
    }
}

//! What is fuzzed: one function a target, each of which states what must hold of any input. `cargo fuzz` runs them for
//! long, `tests/fuzz.rs` of fwagent runs the same functions over the seeds and mutations of them.
//!
//! ```text
//! cargo +nightly fuzz run tar corpus/tar seeds/tar -- -max_total_time=600
//! ```

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use fwagent::config::Config;
use fwagent::host::generation::GenerationStore;
use fwagent::host::tree::{Node, Tree};
use fwagent::host::unpack::unpack;
use fwagent::machine::autoboot::{Attempt, Autoboot, AutobootError, Partitions};
use fwagent::machine::boot::{BootRecord, MAX_SLOTS};
use fwagent::machine::boot_count::{Counted, CounterFile, SlotNames};
use fwagent::machine::boot_entries::{self, Count, Entries, EntryName, Found, SlotEntry, SortKey};
use fwagent::machine::cmdline::{self, RootName};
use fwagent::machine::efi_boot::{self, Boot, BootNumber, Entry, LoadOption, Slots};
use fwagent::machine::gpt::{self, Partition, Side, Table};
use fwagent::machine::gpt_priority::Prioritised;
use fwagent::machine::grub_env::Block;
use fwagent::machine::hold::{Hold, duration};
use fwagent::machine::mounts::{self, Mount};
use fwagent::machine::record;
use fwagent::machine::settings::document::{self, Form};
use fwagent::machine::settings::key::Classes;
use fwagent::machine::settings::migrate::MigrationStep;
use fwagent::machine::settings::render::{Format as FileFormat, render};
use fwagent::machine::settings::values::{Edits, Values};
use fwagent::machine::slot::SlotId;
use fwagent::machine::slot_vars::{self, BootVars, SlotVars};
use fwagent::machine::tpm::{self, TpmError};
use fwagent::machine::uboot_config::{MAX_ENV_BYTES, Places};
use fwagent::machine::uboot_env::{ByteOrder, Environment, Format, Layout};
use fwagent::machine::window::Windows;
use fwagent::ports::MetadataStore;
use fwbundle::{Bundle, FORMAT_NAME, Writer};
use fwdurable::twin::{Loaded, Twin, TwinError};
use fwmeta::client::Cache;
use fwmeta::hex;
use fwmeta::role::RoleName;
use fwmeta::time::UtcSeconds;
use sha2::{Digest, Sha256};
use tar::Header;

/// A record of the agent that is accepted means the same when written.
pub fn record(data: &[u8]) {
    let Ok(state) = record::decode(data) else { return };
    let written = record::encode(&state);
    assert!(written.len() <= record::RECORD_BYTES);
    assert_eq!(record::decode(&written), Ok(state));
}

/// A hold that is accepted means the same when written; hours that are accepted open at the moment that they say.
pub fn hold(data: &[u8]) {
    if let Some(hold) = Hold::decode(data) {
        assert_eq!(Hold::decode(hold.to_value().to_json().as_bytes()), Some(hold));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert_ne!(duration(text), Some(0));
    let (offset, text) = text.split_once('\n').unwrap_or(("Z", text));
    let texts: Vec<String> = text.lines().map(str::to_owned).collect();
    if let Ok(windows) = Windows::parse(&texts, offset) {
        for at in [i64::MIN, -1, 0, 1_800_000_000, i64::MAX].map(|second| UtcSeconds(0).plus_seconds(second)) {
            let opens = windows.next_open(at);
            assert!(opens >= at && opens.0 - at.0 <= 7 * 86_400);
        }
        let opens = windows.next_open(UtcSeconds(0));
        assert!(windows.is_open(opens));
    }
}

/// A boot record that is accepted means the same when written, and boots what it may: a trial no more often than it has
/// attempts, then the primary slot.
pub fn boot(data: &[u8]) {
    let Some(mut record) = BootRecord::decode(data) else {
        return;
    };
    assert_eq!(BootRecord::decode(&record.encode()), Some(record.clone()));
    // Not all attempts: there may be billions.
    for _ in 0..4 {
        let Ok((chosen, next)) = record.power_on() else {
            assert!(!record.bootable.contains(&record.primary));
            return;
        };
        assert!(record.bootable.contains(&chosen) && next.booted.as_ref() == Some(&chosen));
        match (&record.trial, &next.trial) {
            (Some((slot, before)), Some((_, after))) if before != after => {
                assert_eq!((slot, after + 1), (&chosen, *before));
            }
            (before, after) => assert!(before == after && chosen == record.primary),
        }
        record = next;
    }
}

/// Settings in any form: what is accepted means the same when written, an edit leads from nothing to them and back, and no
/// answer of a migration sets what is protected.
pub fn settings(data: &[u8]) {
    let classes = Classes::default();
    if let Ok(values) = MigrationStep::output(data, &classes) {
        assert!(values.protected(&classes).is_empty());
    }
    for form in [Form::Json, Form::Toml] {
        let _ = document::whole(data, form);
        let Ok(tree) = document::tree(data, form) else { continue };
        if let Ok(edits) = Edits::from_patch(&tree) {
            let _ = Values::default().edited(&edits);
        }
        let Ok(values) = Values::from_tree(&tree) else { continue };
        assert_eq!(Values::from_tree(&values.to_tree()).as_ref(), Ok(&values));
        let edits = Values::default().edits_to(&values);
        assert_eq!(Values::default().edited(&edits).as_ref(), Ok(&values));
        assert_eq!(
            values.edited(&values.edits_to(&Values::default())),
            Ok(Values::default())
        );
        assert_eq!(Edits::from_patch(&edits.to_patch()), Ok(edits));
        let _ = render(&values, FileFormat::Env);
        if let Ok(toml) = render(&values, FileFormat::Toml) {
            assert_eq!(document::tree(toml.as_bytes(), Form::Toml), Ok(values.to_tree()));
        }
    }
}

/// An answer of a TPM: it is read as no more than one of its kinds, never for another index, and only whole.
pub fn tpm(data: &[u8]) {
    const INDEX: u32 = 0x0150_0010;
    if let Some(header) = data.first_chunk()
        && let Ok(length) = tpm::announced(header)
    {
        assert!((tpm::HEADER_BYTES..=tpm::ANSWER_BYTES).contains(&length));
    }
    let (done, value, public) = (tpm::done(data), tpm::value(data), tpm::public(data, INDEX));
    let accepted = [done.is_ok(), value.is_ok(), public.is_ok()];
    let count = accepted.iter().filter(|accepted| **accepted).count();
    assert!(count <= 1);
    if count == 1 {
        let header = data.first_chunk().expect("an answer has a header");
        assert_eq!(tpm::announced(header), Ok(data.len()));
        let shorter = data.split_last().map(|(_, rest)| rest).unwrap_or_default();
        assert!(tpm::done(shorter).is_err() && tpm::value(shorter).is_err() && tpm::public(shorter, INDEX).is_err());
    }
    if value.is_ok() {
        assert!(data.len() > 20 && data.ends_with(&[0, 0]));
    }
    if let Err(error @ TpmError::Code { .. }) = value {
        assert!(error.to_string().contains("0x"));
    }
}

/// The slots of the fuzzed variables.
fn slots() -> [SlotId; 2] {
    ["A", "B"].map(|name| SlotId::parse(name).expect("a name"))
}

/// A bundle that is accepted has only the bytes that its entries make of it.
pub fn bundle(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("bundle");
    fs::write(&path, data).expect("written");
    let Ok(bundle) = Bundle::open(&path) else { return };
    let mut spans: Vec<_> = bundle.index().entries().collect();
    spans.sort_by_key(|(_, span)| span.at);
    let mut writer = Writer::new(Vec::new()).expect("in memory");
    for (name, span) in spans.into_iter().filter(|(name, _)| *name != FORMAT_NAME) {
        let (from, length) = (span.at as usize, span.length as usize);
        writer
            .add(name, span.length, &mut &data[from..from + length])
            .expect("in memory");
    }
    assert_eq!(writer.finish().expect("in memory"), data);
}

/// An environment of U-Boot in any format, as the first byte says, with a checksum that matches: one that is accepted is
/// written as it was read, and changes only where it is changed.
pub fn uboot(data: &[u8]) {
    let [flags, data @ ..] = data else { return };
    let format = Format {
        layout: if flags & 1 == 0 {
            Layout::Single
        } else {
            Layout::Redundant
        },
        byte_order: if flags & 2 == 0 {
            ByteOrder::Little
        } else {
            ByteOrder::Big
        },
    };
    let checksum = crc32fast::hash(data);
    let mut image = match format.byte_order {
        ByteOrder::Little => checksum.to_le_bytes(),
        ByteOrder::Big => checksum.to_be_bytes(),
    }
    .to_vec();
    image.extend((format.layout == Layout::Redundant).then_some(*flags));
    image.extend_from_slice(data);
    // Without the checksum, too.
    let _ = Environment::decode(data, format);
    let Ok((environment, found)) = Environment::decode(&image, format) else {
        return;
    };
    assert_eq!(environment.encode(format, found).as_ref(), Ok(&image));
    changed(&environment, |environment| {
        let image = environment.encode(format, found).ok()?;
        Some(Environment::decode(&image, format).expect("written").0)
    });
    counted(environment, *flags);
}

/// The same environment for a boot counter: whatever it says, what is armed is on trial, and what is disabled is not named.
fn counted(environment: Environment, flags: u8) {
    let slots = slots();
    let [first, second] = &slots;
    let words = ["A", "B"].map(|name| (name.to_owned(), name.to_owned()));
    let names = SlotNames::new(&slots, vec![("fwagent_slot".to_owned(), words.into())], None).expect("two slots");
    let file = CounterFile::decode(&[0xbd, 1, flags, flags >> 7]);
    let mut vars = Counted {
        environment,
        file: (flags & 4 != 0).then_some(file),
        names: Arc::new(names),
    };
    let _ = (
        vars.view(&slots, first),
        vars.primary(&slots),
        vars.clone().replenish(first, 3),
    );
    vars.arm(second, 3).expect("no variable is refused");
    assert_eq!(
        vars.view(&slots, first).expect("just written").armed.get(second),
        Some(&3)
    );
    vars.disable(second).expect("just written");
    assert!(vars.view(&slots, first).expect("just written").armed.is_empty());
    assert_eq!(vars.primary(&slots), Ok(Some(first.clone())));
}

/// A partition table whose headers get checksums that match: the first bytes say what is damaged, what follows are the two
/// headers and the entries. One that is accepted is written as it was read, and changes only where it is changed.
pub fn gpt(data: &[u8]) {
    let [damage, data @ ..] = data else { return };
    let (Some(primary), Some(backup)) = (data.get(..92), data.get(92..184)) else {
        return;
    };
    let side = |header: &[u8], side, flag: u8| {
        let mut sector = header.to_vec();
        sector.resize(512, 0);
        let sealed = |sector: &mut Vec<u8>| {
            sector[16..20].fill(0);
            let size = u32::from_le_bytes([sector[12], sector[13], sector[14], sector[15]]) as usize;
            let checksum = crc32fast::hash(&sector[..size.min(512)]);
            sector[16..20].copy_from_slice(&checksum.to_le_bytes());
        };
        sealed(&mut sector);
        let lba = if side == Side::Primary { 1 } else { 127 };
        let bytes = gpt::Header::decode(&sector, side, lba, 128)?.array_bytes();
        let mut entries = data[184..].to_vec();
        entries.resize(bytes.next_multiple_of(512), 0);
        let checksum = crc32fast::hash(&entries[..bytes]) ^ u32::from(damage & flag);
        sector[88..92].copy_from_slice(&checksum.to_le_bytes());
        sealed(&mut sector);
        Ok((gpt::Header::decode(&sector, side, lba, 128)?, entries))
    };
    let read = (side(primary, Side::Primary, 1), side(backup, Side::Backup, 2));
    let Ok((table, damaged)) = Table::choose(read.0.clone(), read.1.clone()) else {
        return;
    };
    assert!(damaged || read.0.is_ok() && read.1.is_ok());
    let again = |table: &Table| {
        let sides = [(Side::Primary, 1), (Side::Backup, 127)].map(|(side, lba)| {
            let [(_, entries), (at, header)] = table.encode(side);
            assert_eq!(at, lba);
            gpt::Header::decode(&header, side, at, 128).map(|header| (header, entries))
        });
        let [primary, backup] = sides;
        let (again, damaged) = Table::choose(primary, backup).expect("just written");
        assert!(!damaged && again == *table);
    };
    again(&table);
    let slots = slots();
    let partitions = ["a", "b"].map(|name| Partition::Label(name.to_owned()));
    let partitions = slots.clone().into_iter().zip(partitions).collect();
    let Ok(mut vars) = Prioritised::new(table, &Arc::new(partitions)) else {
        return;
    };
    let [first, second] = &slots;
    let _ = (
        vars.view(&slots, second),
        vars.primary(&slots),
        vars.clone().replenish(first, 1),
    );
    if vars.arm(second, 3).is_err() {
        return;
    }
    again(vars.table());
    assert_eq!(vars.primary(&slots), Ok(Some(second.clone())));
    assert_eq!(
        vars.view(&slots, first).expect("just written").armed.get(second),
        Some(&3)
    );
    if vars.disable(second).is_ok() {
        again(vars.table());
        assert_eq!(vars.primary(&slots), Ok(Some(first.clone())));
    }
}

/// An environment block of GRUB: the same.
pub fn grub(data: &[u8]) {
    let Ok(block) = Block::decode(data) else { return };
    assert_eq!(block.encode().expect("it was one").as_slice(), data);
    changed(&block, |block| {
        Some(Block::decode(&block.encode().ok()?).expect("written"))
    });
}

/// Whatever the variables are: a slot that is armed is armed when it is read back, and one that is disabled is not.
fn changed<V: SlotVars>(vars: &V, again: impl Fn(&V) -> Option<V>) {
    let slots = slots();
    let [first, second] = &slots;
    let _ = slot_vars::view(vars, &slots, first);
    let _ = slot_vars::primary(vars, &slots);
    let mut armed = vars.clone();
    if slot_vars::first(&mut armed, second, 1).is_err() {
        assert!(vars.order().is_none_or(|order| std::str::from_utf8(&order).is_err()));
        return;
    }
    let Some(mut armed) = again(&armed) else { return };
    let view = slot_vars::view(&armed, &slots, first).expect("just written");
    assert_eq!(view.armed.get(second), Some(&1));
    if slot_vars::disable(&mut armed, second).is_ok()
        && let Some(disabled) = again(&armed)
    {
        let view = slot_vars::view(&disabled, &slots, first);
        assert!(view.is_ok_and(|view| !view.armed.contains_key(second)));
    }
}

/// A load option, and the boot manager's variables as the bytes before it say: whatever they are, an armed slot is tried
/// once and is in no other place, a disabled one is nowhere, and a confirmed one is first.
pub fn efi(data: &[u8]) {
    let [length, data @ ..] = data else { return };
    let (lists, option) = data.split_at(usize::from(*length).min(data.len()));
    let _ = efi_boot::text(option);
    let option = LoadOption::decode(option);
    let (Ok(numbers), Ok(option)) = (efi_boot::numbers("BootOrder", lists), option) else {
        return;
    };
    assert_eq!(efi_boot::bytes(&numbers), lists);
    let [first, second] = slots();
    let options = [
        (BootNumber(1), option.clone()),
        (BootNumber(2), LoadOption { active: true, ..option }),
    ];
    let entries = [("Boot0001", &first), ("Boot0002", &second)];
    let entries = entries.map(|(entry, slot)| (slot.clone(), Entry::parse(entry)));
    let found = Slots::find(&entries, &options.into());
    let boot = Boot {
        next: numbers.last().copied(),
        order: numbers,
    };
    let second_number = BootNumber(2);
    let _ = boot.view(&found, &first, boot.next);
    if let Ok(armed) = boot.armed(&found, &second, 1) {
        assert!(armed.next == Some(second_number) && !armed.order.contains(&second_number));
        assert!(armed.primary(&found).is_some());
    }
    if let Ok(disabled) = boot.disabled(&found, &second) {
        assert!(disabled.next != Some(second_number) && !disabled.order.contains(&second_number));
        assert!(disabled.primary(&found).is_some());
    }
    let confirmed = boot.confirmed(&found, &second).expect("it is active");
    assert_eq!(confirmed.order.first(), Some(&second_number));
    assert_eq!(confirmed.primary(&found), Some(second.clone()));
    let replenished = boot.replenished(&found, &second).expect("it is active");
    assert_eq!(replenished.primary(&found), Some(second));
}

/// An `autoboot.txt` that is accepted means the same when written, in the same length or not at all; and a record of an
/// attempt, which is what follows the file.
pub fn autoboot(data: &[u8]) {
    if let Some(attempt) = Attempt::decode(data) {
        assert_eq!(attempt.encode(), data);
    }
    let Ok(file) = Autoboot::parse(data) else { return };
    let [first, second] = slots();
    let partitions = Partitions(vec![
        (first.clone(), file.partition),
        (second.clone(), file.partition ^ 1),
    ]);
    let mut files = vec![file.clone()];
    files.extend(file.armed(&partitions, &second, 1));
    files.extend(file.confirmed(&partitions, &second));
    files.extend(file.disabled(&partitions, &second));
    assert_eq!(files.len(), 4);
    assert!(file.disabled(&partitions, &first).is_err());
    for changed in files {
        match changed.render(Some(data.len())) {
            Ok(bytes) => {
                assert_eq!(bytes.len(), data.len());
                assert_eq!(Autoboot::parse(&bytes), Ok(changed));
            }
            Err(error) => assert!(matches!(
                error,
                AutobootError::Short { .. } | AutobootError::Long { .. }
            )),
        }
    }
}

/// Two entries of systemd-boot and their counters: whatever they are, each slot can be made the one that is booted next,
/// and the order in which they are sorted has two sides.
pub fn entries(data: &[u8]) {
    let [one, two, data @ ..] = data else { return };
    let (first, second) = data.split_at(data.len() / 2);
    let names = slots().map(|slot| EntryName::new("fw-{slot}", &slot).expect("a name"));
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = boot_entries::default_pattern(text);
        let _ = boot_entries::check_pattern("fuzz", text, &names);
        if let Some(count) = names[0].parse(text) {
            assert_eq!(names[0].parse(&names[0].file(count)), Some(count));
        }
    }
    let keys = [first, second].map(|text| SortKey::parse(&String::from_utf8_lossy(text), "fw.conf".to_owned()));
    if let [Some(one), Some(two)] = &keys {
        assert_eq!(one.compare(two), two.compare(one).reverse());
        assert!(one.compare(one).is_eq());
    }
    let count = |byte: u8| match byte % 4 {
        0 => Count::Good,
        1 => Count::Off,
        2 => Count::Left { left: 0, done: 1 },
        _ => Count::Left { left: 2, done: 1 },
    };
    let [a, b] = slots();
    let entry = |slot: &SlotId, name: &EntryName, count: Count, bytes: &[u8]| {
        let bytes = bytes.to_vec();
        (slot.clone(), SlotEntry::of(slot, name, &[Found { count, bytes }]))
    };
    let entries = Entries([
        entry(&a, &names[0], count(*one), first),
        entry(&b, &names[1], count(*two), second),
    ]);
    for slot in [&a, &b] {
        let _ = entries.view(slot);
        let _ = entries.replenish(slot);
        for renames in [entries.arm(slot, 3), entries.confirm(slot)].into_iter().flatten() {
            let mut after = entries.clone();
            for (renamed, count) in renames {
                for (_, entry) in after.0.iter_mut().filter(|(slot, _)| *slot == renamed) {
                    match entry {
                        Ok(entry) => entry.count = count,
                        // Refused when it is carried out.
                        Err(_) => return,
                    }
                }
            }
            assert_eq!(after.primary(), Ok(Some(slot.clone())));
        }
    }
}

/// A `fw_env.config` that is accepted names one place or two that can be two copies.
pub fn fw_env(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let places = match Places::parse(text) {
        Ok(Places::Single(place)) => vec![place],
        Ok(Places::Redundant([first, second])) => {
            assert!(first.size == second.size && first != second);
            vec![first, second]
        }
        Err(error) => {
            assert!(error.line <= text.lines().count());
            return;
        }
    };
    for place in places {
        assert!(place.path.is_absolute() && place.size <= MAX_ENV_BYTES);
        assert!(place.offset >= 0 || place.offset.unsigned_abs() >= place.size as u64);
    }
}

/// What the kernel says of mounts, swap and its command line: what is understood can be used as it is.
pub fn kernel(data: &[u8]) {
    if let Ok(mounts) = mounts::mounts(data) {
        assert!(mounts.iter().all(|mount| mount.point.is_absolute()));
        let mut layers = mounts.iter().flat_map(Mount::layers);
        assert!(layers.all(|layer| !layer.as_os_str().is_empty()));
    }
    if let Ok(swaps) = mounts::swaps(data) {
        assert!(swaps.iter().all(|path| path.is_absolute()));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(RootName::Tag { value, .. }) = cmdline::root(text) {
        assert!(!value.is_empty() && !cmdline::link_name(&value).contains('/'));
    }
}

/// A configuration that is accepted keeps the promises that its users rely on.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(config) = Config::parse(text, Path::new("/etc/fwagent/fwagent.toml")) else {
        return;
    };
    let (sets, classes) = (config.slot_sets(), config.classes());
    assert!((2..=MAX_SLOTS).contains(&sets.len()) && (1..=100).contains(&config.boot_attempts));
    let main = |slot: &SlotId| Some(slot) != config.rescue.as_ref();
    let mains = config.slots.iter().filter(|slot| main(&slot.slot)).count();
    assert_eq!(mains, sets.iter().filter(|slot| main(slot)).count() * classes.len());
    assert!(mains > 0);
    assert!(config.slots.iter().all(|slot| slot.path.is_absolute()) && config.state_dir.is_absolute());
    assert!(!config.interval.poll.is_zero() && !config.interval.retry.is_zero());
    assert!(
        config
            .checks
            .iter()
            .all(|check| !check.command.is_empty() && !check.timeout.is_zero())
    );
    for random in [0, u64::MAX] {
        let (first, next) = (config.interval.first(random), config.interval.next(0, None, random));
        assert!(first <= config.interval.jitter && next >= config.interval.poll);
    }
}

/// Longest payload in the fuzzed record.
const LIMIT: usize = 64;

/// The two copies of a record as they may lie on a medium: three bytes say which are there, which get a checksum that
/// matches, and how long the first is. What is read is one of the copies, and stays it when it is mended; what cannot be
/// read is never overwritten.
pub fn twin(data: &[u8]) {
    let [flags, split, copies @ ..] = data else { return };
    let (first, second) = copies.split_at(usize::from(*split).min(copies.len()));
    let dir = tempfile::tempdir().expect("a directory");
    for (name, there, sealed, copy) in [("record.a", 1, 4, first), ("record.b", 2, 8, second)] {
        let mut copy = copy.to_vec();
        if flags & sealed != 0 {
            let checksum = Sha256::digest(&copy);
            copy.extend_from_slice(&checksum);
        }
        if flags & there != 0 {
            fs::write(dir.path().join(name), copy).expect("a file");
        }
    }
    let twin = Twin::new(dir.path().join("record"), LIMIT);
    match twin.load() {
        Ok(Loaded::Empty) => assert_eq!(flags & 3, 0),
        Ok(Loaded::Record { payload, counter, .. }) => {
            assert!(payload.len() <= LIMIT && [first, second].iter().any(|copy| copy.ends_with(&payload)));
            let mended = Loaded::Record {
                payload,
                counter,
                degraded: false,
            };
            twin.repair().expect("one copy is intact");
            assert_eq!(twin.load().expect("mended"), mended);
            twin.store(b"next").expect("one copy is intact");
            let next = Loaded::Record {
                payload: b"next".to_vec(),
                counter: counter.saturating_add(1),
                degraded: false,
            };
            assert_eq!(twin.load().expect("stored"), next);
        }
        Err(error) => {
            assert!(matches!(error, TwinError::BothDamaged { .. }), "{error:?}");
            assert!(twin.store(b"next").is_err() && twin.repair().is_err());
        }
    }
}

/// Objects that lie beside the fuzzed record of generations; its seeds name them.
const OBJECTS: [&[u8]; 3] = [b"root 2", b"timestamp", b"snapshot"];

/// A record of trusted metadata, with a checksum that matches: whatever it says, the store opens, gives objects by the
/// digests in the record or nothing, and takes the next generation.
pub fn generation(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let objects = dir.path().join("objects");
    fs::create_dir(&objects).expect("a directory");
    for object in OBJECTS {
        fs::write(objects.join(hex::encode(&Sha256::digest(object))), object).expect("a file");
    }
    let mut record = [
        b"FWTWIN01".as_slice(),
        &1_u64.to_le_bytes(),
        &(data.len() as u32).to_le_bytes(),
        data,
    ]
    .concat();
    let checksum = Sha256::digest(&record);
    record.extend_from_slice(&checksum);
    for copy in ["generation.a", "generation.b"] {
        fs::write(dir.path().join(copy), &record).expect("a file");
    }
    let mut store = GenerationStore::open(dir.path()).expect("damage is no error");
    let history = store
        .root_history()
        .expect("a generation is used only when it is whole");
    assert!(history.iter().all(|root| OBJECTS.contains(&root.as_slice())));
    for role in [RoleName::root(), RoleName::timestamp(), RoleName::snapshot()] {
        let object = store.load(&role).expect("a directory");
        assert!(object.is_none_or(|object| OBJECTS.contains(&object.as_slice())));
    }
    if let Some(known) = store.known_timestamp() {
        assert!(OBJECTS.contains(&known.bytes.as_slice()));
    }
    store.store(&RoleName::timestamp(), b"next").expect("in memory");
    store.commit().expect("a directory");
    let mut store = GenerationStore::open(dir.path()).expect("whole");
    assert_eq!(store.damaged(), 0);
    assert_eq!(store.root_history().expect("whole"), history);
    assert_eq!(
        store.load(&RoleName::timestamp()).expect("whole"),
        Some(b"next".to_vec())
    );
}

/// A tar archive, whose headers get checksums that match: nothing outside its directory changes, an accepted one is on
/// the medium what it was said to be, and none of its links leads outside.
pub fn tar(data: &[u8]) {
    let mut archive = data.to_vec();
    seal(&mut archive);
    unpacked(&archive);
}

/// The same for an archive in zstd, as images come.
pub fn zstd(data: &[u8]) {
    // Bounded: what is announced and what a slot holds bound it elsewhere.
    let mut archive = Vec::new();
    let read = zstd::Decoder::new(data).map(|decoder| {
        use std::io::Read;
        decoder.take(1024 * 1024).read_to_end(&mut archive)
    });
    if matches!(read, Ok(Ok(_))) {
        unpacked(&archive);
    }
}

/// Corrects the checksums of all headers, or mutations would never get past the first one.
fn seal(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = archive.get_mut(at..at + 512) {
        if block.iter().all(|byte| *byte == 0) {
            return;
        }
        let mut header = Header::from_byte_slice(block).clone();
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let Some(content) = header
            .entry_size()
            .ok()
            .and_then(|size| size.checked_next_multiple_of(512))
        else {
            return;
        };
        let Some(next) = usize::try_from(content)
            .ok()
            .and_then(|content| (at + 512).checked_add(content))
        else {
            return;
        };
        at = next;
    }
}

/// What lies beside the directory that is unpacked into.
const CANARY: &str = "canary";

fn unpacked(archive: &[u8]) {
    let outside = tempfile::tempdir().expect("a directory");
    let (root, canary) = (outside.path().join("root"), outside.path().join(CANARY));
    fs::write(&canary, CANARY).expect("a file");
    DirBuilder::new().mode(0o700).create(&root).expect("a directory");
    if let Ok(tree) = unpack(&mut &*archive, &root) {
        allow_reading(&root, &tree);
        let actual = Tree::read(&root).expect("a tree");
        assert_eq!(tree.iter().count(), actual.iter().count());
        assert!(tree.iter().all(|(path, node)| is_same(node, actual.get(path))));
        let root = root.canonicalize().expect("a directory");
        for (path, _) in tree.iter().filter(|(_, node)| matches!(node, Node::Link { .. })) {
            // One that leads nowhere, or in a circle, is harmless.
            if let Ok(end) = root.join(OsStr::from_bytes(path)).canonicalize() {
                assert!(end.starts_with(&root), "{path:?} leads to {end:?}");
            }
        }
    } else {
        // Refused anywhere: directories have the mode then with which they were made.
        fs::set_permissions(&root, Permissions::from_mode(0o700)).expect("our own");
    }
    let mut beside: Vec<_> = fs::read_dir(&outside)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    beside.sort();
    assert_eq!(beside, [CANARY, "root"]);
    assert_eq!(fs::read(&canary).expect("a file"), CANARY.as_bytes());
}

/// Who is not root could not read, nor remove, what an archive may forbid its owner.
fn allow_reading(root: &Path, tree: &Tree) {
    fs::set_permissions(root, Permissions::from_mode(0o700)).expect("our own");
    for (path, node) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        let path = root.join(OsStr::from_bytes(path));
        if !matches!(node, Node::Link { .. }) {
            let mode = fs::symlink_metadata(&path).expect("unpacked").permissions().mode() & 0o7777;
            assert!(matches!(node, Node::Dir { mode: said } | Node::File { mode: said, .. } if *said == mode));
            fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("our own");
        }
    }
}

/// Modes apart, which were compared before.
fn is_same(said: &Node, actual: Option<&Node>) -> bool {
    match (said, actual) {
        (Node::Dir { .. }, Some(Node::Dir { .. })) => true,
        (
            Node::File { size, sha256, .. },
            Some(Node::File {
                size: other,
                sha256: digest,
                ..
            }),
        ) => (size, sha256) == (other, digest),
        (Node::Link { target }, Some(Node::Link { target: other })) => target == other,
        _ => false,
    }
}

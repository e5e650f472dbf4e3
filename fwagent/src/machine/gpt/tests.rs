#![allow(clippy::unwrap_used)]

use super::partition::ID;
use super::*;

/// Offset of a label in an entry.
const NAME: usize = 56;

/// Bytes of a sector of these disks.
pub const SECTOR: usize = 512;
/// Sectors of these disks.
pub const SECTORS: u64 = 128;

/// A disk with partitions `rootA`, `rootB` and `data`, as sgdisk makes one.
pub fn disk(attributes: &[u64; 3]) -> Vec<u8> {
    let mut entries = vec![0; 128 * 128];
    for (index, name) in ["rootA", "rootB", "data"].into_iter().enumerate() {
        let entry = &mut entries[index * 128..][..128];
        entry[..16].fill(7);
        entry[ID..ID + 16].fill(index as u8 + 1);
        entry[ATTRIBUTES..ATTRIBUTES + 8].copy_from_slice(&attributes[index].to_le_bytes());
        for (at, unit) in name.encode_utf16().enumerate() {
            entry[NAME + 2 * at..][..2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    let mut header = Header {
        sector: vec![0; SECTOR],
        side: Side::Primary,
    };
    header.put(0, SIGNATURE);
    for (at, value) in [(8, REVISION), (HEADER_SIZE, 92), (COUNT, 128), (ENTRY_SIZE, 128)] {
        header.put(at, &value.to_le_bytes());
    }
    for (at, value) in [
        (MY_LBA, 1),
        (ALTERNATE_LBA, 127),
        (FIRST_USABLE, 34),
        (LAST_USABLE, 94),
        (ENTRIES_LBA, 2),
    ] {
        header.put(at, &u64::to_le_bytes(value));
    }
    let table = Table {
        backup: header.other().unwrap(),
        primary: header,
        entries,
    };
    let mut disk = vec![0xee; SECTORS as usize * SECTOR];
    for side in [Side::Primary, Side::Backup] {
        for (lba, bytes) in table.encode(side) {
            disk[lba as usize * SECTOR..][..bytes.len()].copy_from_slice(&bytes);
        }
    }
    disk
}

/// Reads a disk as the medium does.
pub fn read(disk: &[u8], sectors: u64) -> Result<(Table, bool), GptError> {
    let side = |side, lba: u64| {
        let sector = &disk[lba as usize * SECTOR..][..SECTOR];
        let header = Header::decode(sector, side, lba, sectors)?;
        let entries = &disk[header.entries_lba() as usize * SECTOR..][..header.array_sectors() as usize * SECTOR];
        Ok((header, entries.to_vec()))
    };
    let primary = side(Side::Primary, 1);
    let at = primary
        .as_ref()
        .map_or(sectors - 1, |(header, _)| header.alternate_lba());
    Table::choose(primary, side(Side::Backup, at))
}

const BITS: [u64; 3] = [0x0101 << 48, 0, 1];

#[test]
fn both_copies_are_written_as_they_were_read() {
    let disk = disk(&BITS);
    let (table, damaged) = read(&disk, SECTORS).unwrap();
    assert!(!damaged);
    assert_eq!(table.attributes()[..3], BITS);
    assert_eq!(table.labels(), ["rootA", "rootB", "data"]);
    for side in [Side::Primary, Side::Backup] {
        for (lba, bytes) in table.encode(side) {
            assert_eq!(disk[lba as usize * SECTOR..][..bytes.len()], bytes);
        }
    }
}

#[test]
fn any_damage_is_found_and_the_other_copy_counts() {
    let good = disk(&BITS);
    let (whole, _) = read(&good, SECTORS).unwrap();
    for at in (SECTOR..3 * SECTOR)
        .chain(94 * SECTOR..96 * SECTOR)
        .chain(127 * SECTOR..128 * SECTOR)
    {
        // Behind the header nothing is said, and before the backup entries lie the partitions.
        if (SECTOR + 92..2 * SECTOR).contains(&at) || at >= 127 * SECTOR + 92 || at / SECTOR == 94 {
            continue;
        }
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let (table, damaged) = read(&bad, SECTORS).unwrap();
        assert!(damaged, "byte {at}");
        assert!(table == whole, "byte {at}");
    }
    let mut bad = good;
    bad[SECTOR + 50] ^= 1;
    bad[127 * SECTOR] ^= 1;
    let error = GptError::BothBad {
        primary: Flaw::HeaderChecksum,
        backup: Flaw::Signature,
    };
    assert_eq!(read(&bad, SECTORS), Err(error));
}

#[test]
fn of_two_intact_copies_the_primary_counts_if_they_differ_in_boot_attributes_only() {
    let merge = |primary: &[u8], backup: &[u8]| {
        let split = 60 * SECTOR;
        [&primary[..split], &backup[split..]].concat()
    };
    let (old, new) = (disk(&BITS), disk(&[BITS[0], 0x0032 << 48, BITS[2]]));
    let (table, damaged) = read(&merge(&new, &old), SECTORS).unwrap();
    assert!(damaged && table.attributes()[1] == 0x0032 << 48);
    let (table, damaged) = read(&merge(&old, &new), SECTORS).unwrap();
    assert!(damaged && table.attributes()[1] == 0);
    let other = disk(&[BITS[0], 0, 3]);
    assert_eq!(read(&merge(&old, &other), SECTORS), Err(GptError::Different));
}

/// Every field that could send a reader elsewhere, with a checksum that fits.
#[test]
fn headers_that_point_elsewhere_are_no_headers() {
    let good = disk(&BITS);
    let sector = &good[SECTOR..2 * SECTOR];
    assert!(Header::decode(sector, Side::Primary, 1, SECTORS).is_ok());
    let long = |value: u64| value.to_le_bytes().to_vec();
    let short = |value: u32| value.to_le_bytes().to_vec();
    for (at, bytes, flaw) in [
        (MY_LBA, long(2), Flaw::Place),
        (ALTERNATE_LBA, long(SECTORS), Flaw::Place),
        (ALTERNATE_LBA, long(60), Flaw::Place),
        (ALTERNATE_LBA, long(u64::MAX), Flaw::Place),
        (ENTRIES_LBA, long(1), Flaw::Place),
        (ENTRIES_LBA, long(3), Flaw::Place),
        (ENTRIES_LBA, long(u64::MAX), Flaw::Place),
        (FIRST_USABLE, long(0), Flaw::Place),
        (FIRST_USABLE, long(100), Flaw::Place),
        (LAST_USABLE, long(u64::MAX), Flaw::Place),
        (COUNT, short(0), Flaw::Unsupported),
        (COUNT, short(u32::MAX), Flaw::Unsupported),
        (ENTRY_SIZE, short(0), Flaw::Unsupported),
        (ENTRY_SIZE, short(192), Flaw::Unsupported),
        (ENTRY_SIZE, short(u32::MAX), Flaw::Unsupported),
        (HEADER_SIZE, short(91), Flaw::Unsupported),
        (HEADER_SIZE, short(513), Flaw::Unsupported),
        (8, short(0x0002_0000), Flaw::Unsupported),
    ] {
        let mut header = Header {
            sector: sector.to_vec(),
            side: Side::Primary,
        };
        header.put(at, &bytes);
        let checksum = header.checksum();
        header.put(HEADER_CRC, &checksum.to_le_bytes());
        let read = Header::decode(&header.sector, Side::Primary, 1, SECTORS);
        assert_eq!(read, Err(flaw), "{at}: {bytes:?}");
    }
}

#[test]
fn partitions_are_found_once_by_name_or_id() {
    let disk = disk(&BITS);
    let (mut table, _) = read(&disk, SECTORS).unwrap();
    let find = |table: &Table, text: &str| table.find(&Partition::parse(text).unwrap());
    assert_eq!(find(&table, "PARTLABEL=rootB"), Ok(1));
    let id = "PARTUUID=03030303-0303-0303-0303-030303030303";
    assert_eq!(find(&table, id), Ok(2));
    assert_eq!(Partition::parse(id).unwrap().to_string(), id);
    for text in [
        "PARTLABEL=root",
        "PARTLABEL=rootBC",
        "PARTUUID=00000000-0000-0000-0000-000000000000",
    ] {
        assert!(
            matches!(find(&table, text), Err(GptError::Partition { found: 0, .. })),
            "{text}"
        );
    }
    let twice = table.entries[128 + NAME..128 + NAME + 72].to_vec();
    table.entries[NAME..NAME + 72].copy_from_slice(&twice);
    assert!(matches!(
        find(&table, "PARTLABEL=rootB"),
        Err(GptError::Partition { found: 2, .. })
    ));
    // The first three groups are little-endian in the table.
    let Partition::Uuid(id) = Partition::parse("PARTUUID=00010203-0405-0607-0809-0a0b0c0d0e0F").unwrap() else {
        panic!("it is an id");
    };
    assert_eq!(id, [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]);
    for text in [
        "",
        "rootA",
        "PARTLABEL=",
        "PARTUUID=",
        "PARTUUID=00010203-0405-0607-08090a0b0c0d0e0f-",
        "PARTUUID=zz010203-0405-0607-0809-0a0b0c0d0e0f",
    ] {
        assert!(Partition::parse(text).is_err(), "{text}");
    }
}

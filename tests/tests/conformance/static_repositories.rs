//! Repositories that other implementations wrote, served as they are; the clock stands at their reference time.

use fwtests::tools::skip;
use fwtests::vectors::Vector;

use crate::harness::Case;

#[test]
fn python_tuf_repositories() {
    for vector in Vector::all("python-tuf") {
        let mut case = Case::of(vector.serve());
        if !case.set_clock("@2030-01-01 00:00:00") {
            return skip("libfaketime is not installed (Debian: apt-get install faketime)");
        }
        assert_eq!(case.refresh(), 0, "{}", vector.name);
        assert_eq!(case.download(&["top.bin", "dir/delegated.bin"]), 0, "{}", vector.name);
        assert_eq!(case.downloaded().len(), 2);
        assert!(case.set_clock("@2040-01-01 00:00:00"));
        assert_eq!(case.refresh(), 1, "{}", vector.name);
    }
}

#[test]
fn each_kind_of_key_refuses_a_plausible_wrong_signature() {
    for vector in Vector::all("python-tuf") {
        let mut sim = vector.serve();
        let newest = (1..).take_while(|version| sim.objects.contains_key(&format!("metadata/{version}.root.json")));
        let newest = newest.last().unwrap();
        // Signatures of the same keys over other bytes.
        let (old, new) = (
            sim.served("root", newest - 1).clone(),
            sim.served("root", newest).clone(),
        );
        let [old, new] = [old, new].map(|bytes| String::from_utf8(bytes).unwrap());
        let signed = new.find("\"signed\"").unwrap();
        let stale = old.find("\"signed\"").unwrap();
        let forged = format!("{}{}", &old[..stale], &new[signed..]);
        sim.objects
            .insert(format!("metadata/{newest}.root.json"), forged.into_bytes());
        let mut case = Case::of(sim);
        if !case.set_clock("@2030-01-01 00:00:00") {
            return skip("libfaketime is not installed (Debian: apt-get install faketime)");
        }
        assert_eq!(case.refresh(), 1, "{}", vector.name);
        case.assert_trusted(&[("root", newest - 1)]);
    }
}

//! Which partitions are slots, what they are called and which runs; and where the state of the agent may lie.

use std::collections::{BTreeMap, BTreeSet};

use super::{Facts, Missing, PartitionFact, Wish};
use crate::machine::cmdline;
use crate::machine::slot::SlotId;

/// Parameters of the kernel command line that name the slot: the agent's and RAUC's.
pub(super) const PARAMETERS: [&str; 2] = ["fwagent.slot", "rauc.slot"];
/// Where data that outlive an update usually lie, the most particular first.
const STATE_POINTS: [&str; 6] = ["/data", "/mnt/data", "/persist", "/state", "/var/lib", "/var"];

/// The two slots of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slots {
    /// Name and partition; the one that runs is first.
    pub(super) pair: [(String, PartitionFact); 2],
    /// Parameter of the kernel command line that names the slot, if there is one.
    pub(super) parameter: Option<String>,
}

impl Slots {
    /// In the order of their names.
    pub(super) fn sorted(&self) -> Vec<&(String, PartitionFact)> {
        let mut sorted: Vec<_> = self.pair.iter().collect();
        sorted.sort_by(|one, other| one.0.cmp(&other.0));
        sorted
    }
}

/// The partition that runs and the one that belongs to it, and their names.
pub(super) fn find(facts: &Facts, names: Option<&BTreeSet<String>>) -> Result<Slots, Vec<Missing>> {
    let mut missing = Vec::new();
    let pair = pair(facts).map_err(|problem| missing.push(problem)).ok();
    let given: Vec<(&str, String)> = PARAMETERS
        .iter()
        .filter_map(|parameter| {
            Some((
                *parameter,
                cmdline::values(&facts.cmdline, parameter).last()?.to_owned(),
            ))
        })
        .collect();
    let given = match given.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        several => {
            let words: Vec<String> = several
                .iter()
                .map(|(parameter, value)| format!("{parameter}={value}"))
                .collect();
            missing.push(Missing::new(
                "the name of the running slot",
                words.join(" and "),
                "leave one of them",
            ));
            None
        }
    };
    let Some([first, second]) = pair.filter(|_| missing.is_empty()) else {
        return Err(missing);
    };
    let mark = |partition: &PartitionFact| partition.label.chars().last().map(String::from).unwrap_or_default();
    let (first_mark, second_mark) = (mark(&first), mark(&second));
    let names = names.cloned();
    let names = names.unwrap_or_else(|| BTreeSet::from([first_mark.clone(), second_mark.clone()]));
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    let is = |mark: &str, name: &str| mark.eq_ignore_ascii_case(name);
    // The command line says it, or the label.
    let running = match &given {
        Some((_, name)) => names.get(name),
        None => names.iter().find(|name| is(&first_mark, name)),
    };
    let other: Vec<&String> = names.iter().filter(|name| Some(*name) != running).collect();
    let (Some(running), [other]) = (running, other.as_slice()) else {
        let here = match &given {
            Some((parameter, name)) => format!("the kernel command line has {parameter}={name}"),
            None => format!(
                "partition {} runs, and the kernel command line names no slot",
                first.label
            ),
        };
        let found = format!("the boot loader or the labels name {}, and {here}", known.join(", "));
        let act = "let the boot script add fwagent.slot=NAME with one of two names to the kernel command line";
        return Err(vec![Missing::new("the names of the two slots", found, act)]);
    };
    // Labels that carry the names must agree with the kernel command line.
    if is(&first_mark, other) || is(&second_mark, running) {
        let found = format!(
            "slot {running} runs, and the root file system is on partition {}",
            first.label
        );
        return Err(vec![Missing::new(
            "which partition is which slot",
            found,
            "let the boot script and the labels agree",
        )]);
    }
    for name in [running, other] {
        if let Err(error) = SlotId::parse(name) {
            return Err(vec![Missing::new(
                "the names of the two slots",
                error.to_string(),
                "choose other names",
            )]);
        }
    }
    Ok(Slots {
        pair: [(running.clone(), first), ((*other).clone(), second)],
        parameter: given.map(|(parameter, _)| parameter.to_owned()),
    })
}

fn pair(facts: &Facts) -> Result<[PartitionFact; 2], Missing> {
    let what = "the partition of the running slot";
    let act = "give the partitions of the two slots labels that differ in the last letter, such as rootA and rootB";
    let root = facts.root.clone();
    let root = root.ok_or_else(|| Missing::new(what, "the device of the root file system is not known", act))?;
    let mut here = facts.partitions.iter().filter(|partition| partition.device == root);
    let (Some(running), None) = (here.next(), here.next()) else {
        return Err(Missing::new(
            what,
            format!("the root file system is on {root}, which has no label"),
            act,
        ));
    };
    let same = stem(&running.label);
    let partners: Vec<&PartitionFact> = facts
        .partitions
        .iter()
        .filter(|other| other.device != running.device && same.is_some() && stem(&other.label) == same)
        .collect();
    match partners.as_slice() {
        [partner] => Ok([running.clone(), (*partner).clone()]),
        [] => {
            let found = format!(
                "partition {} runs, and no other label differs from it in the last letter only",
                running.label
            );
            Err(Missing::new("the partition of the other slot", found, act))
        }
        several => {
            let labels: Vec<&str> = several.iter().map(|partner| partner.label.as_str()).collect();
            let found = format!(
                "partition {} runs, and {} are as likely",
                running.label,
                labels.join(", ")
            );
            Err(Missing::new("the partition of the other slot", found, act))
        }
    }
}

/// Two partitions of which an update may be meant to replace one, too, such as those of kernels.
pub(super) fn other_pairs(facts: &Facts, slots: Option<&Slots>) -> Vec<String> {
    let mut by_stem: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let of_slots: Vec<&PartitionFact> = slots.iter().flat_map(|slots| &slots.pair).map(|(_, one)| one).collect();
    for partition in facts.partitions.iter().filter(|one| !of_slots.contains(one)) {
        if let Some(stem) = stem(&partition.label) {
            by_stem.entry(stem).or_default().push(&partition.label);
        }
    }
    let pairs = by_stem.into_values().filter(|labels| labels.len() == 2);
    pairs
        .map(|labels| {
            let labels = labels.join(" and ");
            format!("partitions {labels}, too: give them [[slot]]s with a class of their own if updates replace them")
        })
        .collect()
}

/// A label without its last letter, if that is one.
fn stem(label: &str) -> Option<String> {
    let mut stem = label.to_owned();
    stem.pop().filter(char::is_ascii_alphanumeric).map(|_| stem)
}

/// A directory for the agent's state.
pub(super) fn state(facts: &Facts, wish: &Wish, slots: Option<&Slots>) -> Result<String, Missing> {
    if let Some(dir) = &wish.state {
        return Ok(dir.display().to_string());
    }
    let of_slots: Vec<&str> = slots
        .iter()
        .flat_map(|slots| &slots.pair)
        .map(|(_, one)| one.device.as_str())
        .collect();
    let usable = |point: &&str| {
        let mount = facts.mounts.iter().rev().find(|mount| mount.point == **point);
        mount.is_some_and(|mount| {
            mount.writable && !of_slots.contains(&mount.device.as_str()) && Some(&mount.device) != facts.root.as_ref()
        })
    };
    let candidates: Vec<&str> = STATE_POINTS.into_iter().filter(usable).collect();
    let act = "name a directory on a file system that no update replaces: --state DIR";
    match candidates.as_slice() {
        ["/var/lib"] | ["/var"] | ["/var/lib", "/var"] => Ok("/var/lib/fwagent".to_owned()),
        [point] => Ok(format!("{point}/fwagent")),
        [] => Err(Missing::new(
            "state.dir",
            "no file system beside the slots is mounted where data usually lie",
            act,
        )),
        several => Err(Missing::new(
            "state.dir",
            format!("{} are as likely", several.join(", ")),
            act,
        )),
    }
}

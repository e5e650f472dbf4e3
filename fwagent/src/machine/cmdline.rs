//! The kernel command line: parameters by name, and what `root=` names.
//!
//! Words are separated by white space, quotes may stand around a value or a whole word, and what follows `--` is for the
//! first program (Linux, `Documentation/admin-guide/kernel-parameters.rst`). Where a parameter may come once and comes
//! twice, the kernel takes the last one.

use std::path::PathBuf;

use crate::machine::mounts::DeviceNumber;

/// All values of a parameter, in order.
pub fn values<'a>(cmdline: &'a str, parameter: &'a str) -> impl Iterator<Item = &'a str> {
    cmdline
        .split_ascii_whitespace()
        .take_while(|word| *word != "--")
        .filter_map(move |word| word.trim_matches('"').strip_prefix(parameter)?.strip_prefix('='))
        .map(|value| value.trim_matches('"'))
}

/// What `root=` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootName {
    /// A device node.
    Path(PathBuf),
    /// A device by its number.
    Number(DeviceNumber),
    /// A device by something written on it, or in its partition table.
    Tag {
        /// What.
        tag: RootTag,
        /// Its value.
        value: String,
    },
}

/// By what `root=` names a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootTag {
    /// Unique id of the partition.
    PartUuid,
    /// Label of the partition.
    PartLabel,
    /// Unique id of the file system.
    Uuid,
    /// Label of the file system.
    Label,
}

impl RootTag {
    const ALL: [(&'static str, Self); 4] = [
        ("PARTUUID=", Self::PartUuid),
        ("PARTLABEL=", Self::PartLabel),
        ("UUID=", Self::Uuid),
        ("LABEL=", Self::Label),
    ];

    /// Directory of links below `/dev/disk`, by the convention of udev.
    pub fn directory(self) -> &'static str {
        match self {
            Self::PartUuid => "by-partuuid",
            Self::PartLabel => "by-partlabel",
            Self::Uuid => "by-uuid",
            Self::Label => "by-label",
        }
    }

    /// What the kernel itself says about a partition in its `uevent`, for devices without udev.
    pub fn uevent(self) -> Option<&'static str> {
        match self {
            Self::PartUuid => Some("PARTUUID"),
            Self::PartLabel => Some("PARTNAME"),
            Self::Uuid | Self::Label => None,
        }
    }
}

/// The device that `root=` names; `None` when there is none, or it names something else, such as `nfs`.
pub fn root(cmdline: &str) -> Option<RootName> {
    let value = values(cmdline, "root").last()?;
    // As dracut has it.
    let value = value.strip_prefix("block:").unwrap_or(value);
    if value.starts_with("/dev/") {
        // A name of the kernel, not of a device.
        return (!matches!(value, "/dev/nfs" | "/dev/cifs" | "/dev/ram")).then(|| RootName::Path(value.into()));
    }
    if let Some(number) = DeviceNumber::parse(value) {
        return Some(RootName::Number(number));
    }
    let (prefix, tag) = RootTag::ALL.into_iter().find(|(prefix, _)| value.starts_with(prefix))?;
    let value = value[prefix.len()..].to_owned();
    (!value.is_empty()).then_some(RootName::Tag { tag, value })
}

/// A value as udev writes it into the name of a link: what might be trouble becomes `\x` and two digits.
pub fn link_name(value: &str) -> String {
    let mut name = String::with_capacity(value.len());
    for character in value.chars() {
        if character.is_ascii_alphanumeric() || "#+-.:=@_".contains(character) || !character.is_ascii() {
            name.push(character);
        } else {
            name.push_str(&format!("\\x{:02x}", u32::from(character)));
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_root_names() {
        let tag = |tag, value: &str| {
            Some(RootName::Tag {
                tag,
                value: value.to_owned(),
            })
        };
        for (text, expected) in [
            ("quiet root=/dev/sda2 ro", Some(RootName::Path("/dev/sda2".into()))),
            ("root=PARTLABEL=rootA", tag(RootTag::PartLabel, "rootA")),
            ("root=\"PARTUUID=12-3\" x", tag(RootTag::PartUuid, "12-3")),
            ("\"root=UUID=a-b\"", tag(RootTag::Uuid, "a-b")),
            ("root=LABEL=sys", tag(RootTag::Label, "sys")),
            (
                "root=/dev/sda1 root=block:/dev/sda2",
                Some(RootName::Path("/dev/sda2".into())),
            ),
            ("root=8:2", Some(RootName::Number(DeviceNumber { major: 8, minor: 2 }))),
            ("root=/dev/nfs", None),
            ("root=gpt-auto", None),
            ("root=UUID=", None),
            ("xroot=/dev/sda1 quiet -- root=/dev/sda2", None),
            ("", None),
        ] {
            assert_eq!(root(text), expected, "{text}");
        }
    }

    #[test]
    fn names_of_links() {
        assert_eq!(link_name("root-A_1.x"), "root-A_1.x");
        assert_eq!(link_name("EFI system/é"), "EFI\\x20system\\x2fé");
        assert_eq!(link_name(".."), "..");
    }
}

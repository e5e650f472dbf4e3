//! Deliberate mistakes. A rig that finds nothing proves something only when it finds these.

use std::path::{Path, PathBuf};

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breakage {
    /// Nothing: the code as it is.
    None,
    /// Contents of files are never synced.
    NoFsync,
    /// Directories are never synced.
    NoDirFsync,
    /// A record is one file that is overwritten where it lies, and synced.
    InPlace,
    /// A slot is not synced before it is recorded as written.
    UnsyncedSlot,
    /// An effect comes before the record of the state that leads to it.
    LateRecord,
    /// Floors rise when a release is armed, not when it is confirmed.
    EarlyFloor,
    /// The boot loader spends no attempt.
    FreeAttempts,
    /// A release is made the one to boot at once, without a trial.
    NoTrial,
    /// The running slot is written.
    ActiveSlot,
}

impl Breakage {
    /// All mistakes.
    pub const ALL: [Self; 9] = [
        Self::NoFsync,
        Self::NoDirFsync,
        Self::InPlace,
        Self::UnsyncedSlot,
        Self::LateRecord,
        Self::EarlyFloor,
        Self::FreeAttempts,
        Self::NoTrial,
        Self::ActiveSlot,
    ];

    /// The word for the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "real",
            Self::NoFsync => "no-fsync",
            Self::NoDirFsync => "no-dir-fsync",
            Self::InPlace => "in-place",
            Self::UnsyncedSlot => "unsynced-slot",
            Self::LateRecord => "late-record",
            Self::EarlyFloor => "early-floor",
            Self::FreeAttempts => "free-attempts",
            Self::NoTrial => "no-trial",
            Self::ActiveSlot => "active-slot",
        }
    }

    /// What is wrong, for people.
    pub fn about(self) -> &'static str {
        match self {
            Self::None => "the code as it is",
            Self::NoFsync => "contents of files are never synced",
            Self::NoDirFsync => "a rename without the sync of its directory",
            Self::InPlace => "a record is one file, overwritten where it lies",
            Self::UnsyncedSlot => "a slot is recorded as written before it is synced",
            Self::LateRecord => "an effect comes before the record of the state that leads to it",
            Self::EarlyFloor => "floors rise when a release is armed",
            Self::FreeAttempts => "the boot loader spends no attempt",
            Self::NoTrial => "a release is booted without a trial",
            Self::ActiveSlot => "the running slot is written",
        }
    }

    /// Reads [`word`](Self::word) back.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|breakage| breakage.word() == word)
    }

    /// Whether a file's sync does nothing.
    pub fn forgets_sync(self, path: &str) -> bool {
        match self {
            Self::NoFsync => true,
            Self::UnsyncedSlot => path.starts_with("/slots/"),
            _ => false,
        }
    }

    /// Whether a directory's sync does nothing.
    pub fn forgets_dir_sync(self) -> bool {
        self == Self::NoDirFsync
    }

    /// Whether a rename overwrites what has the name.
    pub fn overwrites(self) -> bool {
        self == Self::InPlace
    }

    /// Where a path leads: with one copy, the second is the first.
    pub fn redirect(self, path: &Path) -> PathBuf {
        if self == Self::InPlace && path.extension().is_some_and(|extension| extension == "b") {
            return path.with_extension("a");
        }
        path.to_owned()
    }
}

//! Exit codes.

/// Exit codes shared by all programs of the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Bytes were judged and refused.
    Refused = 1,
    /// The command was used wrongly.
    Usage = 2,
    /// Something around the command failed: files, network, time.
    Environment = 3,
    /// There was nothing to do.
    NothingToDo = 4,
}

impl Code {
    /// The word for it in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Usage => "usage",
            Self::Environment => "environment",
            Self::NothingToDo => "nothing-to-do",
        }
    }
}

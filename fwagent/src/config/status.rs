//! The section `[status]`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Problem, problem};
use crate::host::status_socket::SocketConfig;

/// Longest path of a socket, in bytes: the kernel allows 107, and the agent binds it under a longer name first.
const PATH_BYTES: usize = 90;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatusSection {
    socket: PathBuf,
    /// In octal digits, as people write it.
    mode: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl StatusSection {
    pub(super) fn build(self, base: &Path) -> Result<SocketConfig, Problem> {
        let path = base.join(self.socket);
        if path.file_name().is_none() || path.as_os_str().len() > PATH_BYTES {
            return problem("status.socket", format!("is no path of at most {PATH_BYTES} bytes"));
        }
        let mode = self.mode.as_deref().map(|mode| u32::from_str_radix(mode, 8));
        let Ok(mode) = mode.unwrap_or(Ok(0o600)) else {
            return problem("status.mode", "is not octal, such as \"0660\"");
        };
        if mode > 0o777 {
            return problem("status.mode", "is more than permission bits, such as \"0660\"");
        }
        Ok(SocketConfig {
            path,
            mode,
            uid: self.uid,
            gid: self.gid,
        })
    }
}

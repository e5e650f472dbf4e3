//! The section `[floors]`: a second medium for what is never accepted again.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Problem, problem};
use crate::host::tpm::Tpm;

/// Index of the counter when nobody says otherwise. The TCG gives 0x01400000 to 0x017fffff to who makes the platform
/// (Registry of Reserved TPM 2.0 Handles and Localities), which is who ships this agent with a device; no operating system
/// or boot loader takes one there by itself.
const INDEX: u32 = 0x0150_0010;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FloorsSection {
    tpm: PathBuf,
    nv_index: Option<u32>,
}

impl FloorsSection {
    pub(super) fn build(self, base: &Path) -> Result<Tpm, Problem> {
        let index = self.nv_index.unwrap_or(INDEX);
        if index >> 24 != 1 {
            return problem(
                "floors.nv_index",
                format!("is 0x{index:08x}, and indices of a TPM go from 0x01000000 to 0x01ffffff"),
            );
        }
        Ok(Tpm::new(base.join(self.tpm), index))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::host::tpm::Counter;

    #[test]
    fn the_index_is_one_of_a_tpm() {
        let build = |text: &str| {
            let section: FloorsSection = toml::from_str(text).ok()?;
            section.build(Path::new("/etc")).ok().map(|tpm| tpm.place())
        };
        assert_eq!(
            build("tpm = \"/dev/tpmrm0\"").as_deref(),
            Some("counter 0x01500010 of the TPM at /dev/tpmrm0")
        );
        assert_eq!(
            build("tpm = \"tpm.sock\"\nnv_index = 0x01800001").as_deref(),
            Some("counter 0x01800001 of the TPM at /etc/tpm.sock")
        );
        assert_eq!(build("tpm = \"t\"\nnv_index = 0x02000000"), None);
        assert_eq!(build("tpm = \"t\"\nnv_index = 16"), None);
        assert_eq!(build("nv_index = 0x01500010"), None);
    }
}

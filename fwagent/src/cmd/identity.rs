//! `fwagent identity`: by what servers know this device.

use fwmeta::json::object;
use fwmeta::key::Signer;

use crate::device::Device;
use crate::failure::{Code, Failure, Outcome};
use crate::host::identity::Identity;
use crate::output::Report;

pub fn run(device: &Device) -> Outcome<Report> {
    let dir = &device.config.state_dir;
    if !dir.is_dir() {
        return Err(Failure {
            code: Code::Environment,
            error: format!("state directory {} does not exist", dir.display()).into(),
            advice: Some("give the device a root of trust with `fwagent provision --root ROOT`"),
        });
    }
    let identity = Identity::load_or_make(dir).map_err(|error| Failure::new(Code::Environment, error))?;
    let (id, pem, public) = (
        identity.public().id(),
        identity.public_pem(),
        identity.public().public(),
    );
    let json = object([
        ("device", id.as_str().into()),
        ("public", public.into()),
        ("pem", (&pem).into()),
        ("key", identity.public().to_value()),
    ]);
    Ok(Report::done(format!("device {id}\ned25519 {public}\n{pem}"), json))
}

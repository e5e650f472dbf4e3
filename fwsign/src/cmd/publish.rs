//! pending
use crate::{cli::Publish, failure::Outcome, output::Report};
pub fn run(_: &Publish) -> Outcome<Report> {
    Err(crate::failure::usage("pending"))
}

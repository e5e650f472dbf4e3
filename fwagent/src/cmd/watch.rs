//! `fwagent watch`: what a running agent does, from its socket.

use std::io::{self, BufRead};
use std::sync::atomic::Ordering;
use std::time::Duration;

use fwmeta::json::{Doc, Value, object};

use crate::cli::Watch;
use crate::cmd::status::unreachable;
use crate::device::Device;
use crate::failure::{Code, Failure, Outcome};
use crate::host::status_socket::ask;
use crate::output::{self, Report};

/// How often a stop is looked for.
const NAP: Duration = Duration::from_millis(200);

pub fn run(device: &Device, args: &Watch, json: bool) -> Outcome<Report> {
    let configured = device.config.status.as_ref().map(|status| &status.path);
    let path = args.socket.as_ref().or(configured).ok_or_else(|| Failure {
        code: Code::Usage,
        error: "there is no socket to watch".into(),
        advice: Some("name it with --socket, or as status.socket in the configuration"),
    })?;
    let failed = |error| unreachable(path, error);
    let (first, mut reader) = ask(path, &object([("watch", "events".into())])).map_err(failed)?;
    reader.get_ref().set_read_timeout(Some(NAP)).map_err(failed)?;
    show(&first, json);
    let mut line = String::new();
    while !device.stop.load(Ordering::Relaxed) {
        match reader.read_line(&mut line) {
            Ok(0) => break,
            Ok(_) => {
                show(line.trim_end(), json);
                line.clear();
            }
            // What has come of a line stays in it.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(Report::done("the end", object([("ended", true.into())])))
}

fn show(line: &str, json: bool) {
    let value = Doc::parse(line.as_bytes())
        .ok()
        .and_then(|doc| doc.root().to_value().ok());
    match value.as_ref().and_then(Value::as_object) {
        Some(entries) if !json => {
            let words = entries.iter().map(|(name, value)| match value.as_str() {
                Some(text) => format!("{name}: {text}"),
                None => format!("{name}: {}", value.to_json()),
            });
            output::line(&words.collect::<Vec<_>>().join(", "));
        }
        _ => output::line(line),
    }
}

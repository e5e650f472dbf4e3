//! `fwagent adopt`: inspects a running system and writes a configuration for it, or says what is missing.

use std::io;
use std::path::Path;

use fwmeta::json::{Value, object};

use crate::cli::Adopt;
use crate::config::Config;
use crate::failure::{Code, Failure, Outcome};
use crate::host::survey;
use crate::machine::adopt::{self, Adoption, Wish};
use crate::output::Report;
use crate::ports::PortError;

/// Anybody may read a configuration; it holds no secrets.
const MODE: u32 = 0o644;

pub fn run(args: &Adopt) -> Outcome<Report> {
    let facts = survey::survey(&args.sysroot).map_err(|error| {
        let attempt = format!("inspecting the system in {}", args.sysroot.display());
        PortError::environment(attempt, Some(error.into()))
    })?;
    let wish = Wish {
        control: args.control.clone(),
        product: args.product.clone(),
        hardware: args.hardware.clone(),
        server: args.server.clone(),
        state: args.state.clone(),
    };
    let adoption = adopt::adopt(&facts, &wish);
    let Some(config) = &adoption.config else {
        return Ok(Report {
            text: incomplete(&adoption),
            json: value(&adoption, None),
            code: Code::Environment,
        });
    };
    // What the agent would refuse is not written. Relative paths there are none.
    let path = args.output.as_deref().unwrap_or(Path::new("adopted configuration"));
    Config::parse(config, path)?;
    if let Some(path) = &args.output {
        write(path, config)?;
    }
    let text = match &args.output {
        Some(path) => format!("{}wrote {}\n", lines(&adoption), path.display()),
        None => config.clone(),
    };
    Ok(Report::done(text, value(&adoption, args.output.as_deref())))
}

/// What is there already may be somebody's work.
fn write(path: &Path, config: &str) -> Outcome<()> {
    fwdurable::create_new(path, config.as_bytes(), MODE).map_err(|error| {
        let exists = error.kind() == io::ErrorKind::AlreadyExists;
        let attempt = format!("writing the configuration {}", path.display());
        Failure {
            code: Code::Environment,
            error: PortError::environment(attempt, Some(error.into())).into(),
            advice: exists.then_some("move it away, or choose another --output"),
        }
    })
}

fn lines(adoption: &Adoption) -> String {
    adoption.found.iter().map(|found| format!("found {found}\n")).collect()
}

fn incomplete(adoption: &Adoption) -> String {
    let mut text = lines(adoption);
    for missing in &adoption.missing {
        text.push_str(&format!(
            "missing: {}\n  {}\n  {}\n",
            missing.what, missing.found, missing.act
        ));
    }
    text.push_str("no configuration was written\n");
    text
}

fn value(adoption: &Adoption, path: Option<&Path>) -> Value {
    let missing = adoption.missing.iter().map(|missing| {
        object([
            ("what", (&missing.what).into()),
            ("found", (&missing.found).into()),
            ("act", (&missing.act).into()),
        ])
    });
    let found: Vec<Value> = adoption.found.iter().map(|found| found.into()).collect();
    object([
        ("control", adoption.control.as_deref().into()),
        ("found", found.into()),
        ("missing", missing.collect::<Vec<_>>().into()),
        ("config", adoption.config.as_deref().into()),
        ("output", path.map(|path| path.display().to_string()).into()),
    ])
}

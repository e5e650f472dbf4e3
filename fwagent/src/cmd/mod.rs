//! The commands, one file each.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fwmeta::manifest::SemVer;

use crate::cli::{Check, Cli, Command};
use crate::config::Config;
use crate::device::Device;
use crate::drive::Observer;
use crate::failure::{Code, Failure, Outcome};
use crate::host::bundle;
use crate::machine::plan::Wish;
use crate::output::{self, Report};
use crate::ports::PortError;

mod adopt;
mod boot;
mod check;
mod decide;
mod floors;
mod hold;
mod identity;
mod install;
mod provision;
mod report;
mod run;
mod settings;
#[cfg(feature = "simulate")]
mod simulate;
mod status;
mod watch;

/// Runs a command that works on a device; `fwagent tuf` is not one.
///
/// # Errors
/// [`Failure`].
pub fn run(cli: &Cli) -> Outcome<Report> {
    if let Command::Adopt(args) = &cli.command {
        return adopt::run(args);
    }
    #[cfg(feature = "simulate")]
    if let Command::Simulate(args) = &cli.command {
        return simulate::run(args, cli.json);
    }
    let config = Config::load(&cli.config)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| PortError::environment("setting up signals", Some(error.into())))?;
    }
    let mut device = Device::new(config, stop);
    match &cli.command {
        Command::Provision(args) => provision::run(device, args, cli.json),
        Command::Check(args) => check::run(device, args, cli.json),
        Command::Install(args) => install::run(device, args, cli.json),
        Command::Run => run::run(device, cli.json),
        Command::Status(args) => status::run(&device, args),
        Command::Watch(args) => watch::run(&device, args, cli.json),
        Command::Hold(args) => hold::hold(&device, args),
        Command::Resume => hold::resume(&device),
        Command::Floors(args) => floors::run(&device, args),
        Command::Explain => status::explain(&device),
        Command::Confirm => decide::confirm(device, cli.json),
        Command::Rollback => decide::rollback(device, cli.json),
        Command::Report(args) => report::run(&mut device, args),
        Command::Identity => identity::run(&device),
        Command::Boot(args) => boot::run(&device, args),
        Command::Adopt(args) => adopt::run(args),
        #[cfg(feature = "simulate")]
        Command::Simulate(args) => simulate::run(args, cli.json),
        Command::Settings(command) => settings::run(&device, command),
        Command::FactoryReset(args) => settings::factory_reset(&device, args),
        Command::MigrationChild(_) => Err(Failure::new(Code::Usage, "only the agent itself starts this")),
        Command::Tuf(_) => Err(Failure::new(Code::Usage, "tuf works on no device")),
    }
}

/// What is asked for; a bundle that is named takes the place of the server from now on.
fn wish(device: &mut Device, args: &Check) -> Outcome<Wish> {
    let mut wish = Wish {
        version: version(args.version.as_deref())?,
        retry: args.retry,
        ..Wish::default()
    };
    take_bundle(device, args.bundle.as_deref(), &mut wish)?;
    Ok(wish)
}

fn take_bundle(device: &mut Device, path: Option<&Path>, wish: &mut Wish) -> Outcome<()> {
    let Some(path) = path else { return Ok(()) };
    let bundle = bundle::open(path)?;
    bundle::narrow(wish, &bundle, &device.config.identity)?;
    device.bundle = Some(bundle);
    Ok(())
}

fn version(text: Option<&str>) -> Outcome<Option<SemVer>> {
    let parse = |text| {
        SemVer::parse(text)
            .map_err(|error| Failure::new(Code::Usage, format!("{text:?} is not a semantic version: {error}")))
    };
    text.map(parse).transpose()
}

fn observer(device: &Device, json: bool) -> Observer {
    let stop = Arc::clone(&device.stop);
    let mut show = output::observer(json, move || stop.load(Ordering::Relaxed));
    let Some(events) = device.events.clone() else {
        return show;
    };
    let mut pace = output::Pace::default();
    Box::new(move |notice| {
        if pace.shows(notice) {
            events.publish(&output::value(notice));
        }
        show(notice)
    })
}

//! `fwagent simulate`: loss of power at every instant, on a simulated device.

use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

use fwmeta::hex;
use fwmeta::json::{Value, object};

use crate::cli::Simulate;
use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Report};
use crate::sim::broken::Breakage;
use crate::sim::crash::Variant;
use crate::sim::scenario::{SCENARIOS, Scenario};
use crate::sim::{Case, Cut, Double, Plan, Simulation, Tally};

/// Smallest pause between two states of the progress bar.
const EVERY: Duration = Duration::from_millis(100);

pub fn run(args: &Simulate, json: bool) -> Outcome<Report> {
    if args.list {
        return Ok(list());
    }
    let scenarios = chosen(args)?;
    let broken = match &args.broken {
        None => None,
        Some(word) => Some(Breakage::of_word(word).ok_or_else(|| unknown("mistake", word))?),
    };
    if let Some(operation) = args.cut {
        let case = case(args, operation)?;
        return single(&scenarios, broken.unwrap_or(Breakage::None), &case);
    }
    let plan = Plan {
        seed: args.seed,
        double: double(&args.double)?,
        stop: false,
    };
    let mut sound = true;
    let mut results = Vec::new();
    if broken.is_none() {
        for scenario in &scenarios {
            let tally = simulate(scenario, Breakage::None, plan)?;
            sound &= tally.violations == 0;
            tell(json, real_words(scenario, &tally), &real_value(scenario, &tally));
            results.push(real_value(scenario, &tally));
        }
    }
    // One scenario is one that somebody works on; the mistakes are for all of them together.
    let mistakes = match broken {
        Some(broken) => vec![broken],
        None if args.scenario.is_some() => Vec::new(),
        None => Breakage::ALL.to_vec(),
    };
    let mut caught = 0_u64;
    for mistake in &mistakes {
        let found = find(&scenarios, *mistake, plan)?;
        caught += u64::from(found.is_some());
        let value = broken_value(*mistake, found.as_ref());
        tell(json, broken_words(*mistake, found.as_ref()), &value);
        results.push(value);
    }
    let planted = mistakes.len() as u64;
    sound &= caught == planted;
    let text = format!(
        "{}: seed {}, deliberate mistakes caught: {caught} of {}",
        if sound { "all invariants hold" } else { "VIOLATED" },
        args.seed,
        planted
    );
    Ok(Report {
        text,
        json: object([
            ("sound", sound.into()),
            ("seed", args.seed.into()),
            ("caught", caught.into()),
            ("mistakes", planted.into()),
            ("results", results.into()),
        ]),
        code: if sound { Code::Done } else { Code::Refused },
    })
}

fn list() -> Report {
    let scenarios = SCENARIOS.iter().map(|scenario| (scenario.name, scenario.about));
    let mistakes = Breakage::ALL.into_iter().map(|broken| (broken.word(), broken.about()));
    let lines = |entries: &mut dyn Iterator<Item = (&str, &str)>| {
        let lines: Vec<String> = entries.map(|(name, about)| format!("  {name:<14} {about}")).collect();
        lines.join("\n")
    };
    let values = |entries: &mut dyn Iterator<Item = (&str, &str)>| {
        let values = entries.map(|(name, about)| object([("name", name.into()), ("about", about.into())]));
        Value::from(values.collect::<Vec<_>>())
    };
    Report::done(
        format!(
            "scenarios:\n{}\ndeliberate mistakes:\n{}",
            lines(&mut scenarios.clone()),
            lines(&mut mistakes.clone())
        ),
        object([
            ("scenarios", values(&mut scenarios.clone())),
            ("mistakes", values(&mut mistakes.clone())),
        ]),
    )
}

fn chosen(args: &Simulate) -> Outcome<Vec<&'static Scenario>> {
    match &args.scenario {
        None => Ok(SCENARIOS.iter().collect()),
        Some(name) => {
            let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
            Ok(vec![found.ok_or_else(|| unknown("scenario", name))?])
        }
    }
}

fn unknown(what: &str, name: &str) -> Failure {
    Failure {
        code: Code::Usage,
        error: format!("{name:?} is no {what}").into(),
        advice: Some("`fwagent simulate --list` names them all"),
    }
}

fn double(text: &str) -> Outcome<Double> {
    match text {
        "all" => Ok(Double::All),
        number => number.parse().map(Double::Drawn).map_err(|_| {
            Failure::new(
                Code::Usage,
                format!("--double {number:?} is neither a number nor `all`"),
            )
        }),
    }
}

fn case(args: &Simulate, operation: usize) -> Outcome<Case> {
    let cut = |operation, variant: &Option<String>| -> Outcome<Cut> {
        let variant: Variant = variant
            .as_deref()
            .unwrap_or("before")
            .parse()
            .map_err(|error: String| Failure::new(Code::Usage, error))?;
        Ok(Cut { operation, variant })
    };
    Ok(Case {
        cut: cut(operation, &args.variant)?,
        second: match args.recovery_cut {
            None => None,
            Some(operation) => Some(cut(operation, &args.recovery_variant)?),
        },
    })
}

fn prepared(scenario: &'static Scenario, broken: Breakage) -> Outcome<Simulation> {
    Simulation::new(scenario, broken)
        .map_err(|violation| Failure::new(Code::Environment, format!("scenario {}: {violation}", scenario.name)))
}

/// One case, told as a story.
fn single(scenarios: &[&'static Scenario], broken: Breakage, case: &Case) -> Outcome<Report> {
    let Some(scenario) = scenarios.first() else {
        return Err(Failure::new(Code::Usage, "--cut needs --scenario"));
    };
    match prepared(scenario, broken)?.single(case) {
        Ok(story) => {
            let lines: Vec<Value> = story.iter().map(Value::from).collect();
            let json = object([("case", case.to_string().into()), ("story", lines.into())]);
            Ok(Report::done(story.join("\n"), json))
        }
        Err(violation) if violation.invariant == "I0" => Err(Failure::new(Code::Usage, violation.what)),
        Err(violation) => Ok(Report {
            text: format!("violated {violation}"),
            json: object([
                ("case", case.to_string().into()),
                ("invariant", violation.invariant.into()),
                ("what", violation.what.into()),
            ]),
            code: Code::Refused,
        }),
    }
}

fn simulate(scenario: &'static Scenario, broken: Breakage, plan: Plan) -> Outcome<Tally> {
    let simulation = prepared(scenario, broken)?;
    let terminal = io::stderr().is_terminal();
    let mut last: Option<Instant> = None;
    let tally = simulation.run(plan, &mut |done, all| {
        if terminal && last.is_none_or(|last| last.elapsed() >= EVERY) {
            last = Some(Instant::now());
            bar(&format!("{} {}", broken.word(), scenario.name), done, all);
        }
    });
    if terminal {
        // Nothing can be done about a closed terminal.
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    Ok(tally)
}

fn bar(name: &str, done: u64, all: u64) {
    const WIDTH: u64 = 30;
    let filled = done.saturating_mul(WIDTH).checked_div(all).unwrap_or(WIDTH).min(WIDTH) as usize;
    let (full, empty) = ("#".repeat(filled), ".".repeat(WIDTH as usize - filled));
    let _ = write!(io::stderr(), "\r\x1b[K{name:<28} [{full}{empty}] {done}/{all}");
}

/// The scenario in which a mistake shows, and what of it does.
fn find(scenarios: &[&'static Scenario], mistake: Breakage, plan: Plan) -> Outcome<Option<(&'static str, Tally)>> {
    let plan = Plan { stop: true, ..plan };
    for scenario in scenarios {
        let tally = simulate(scenario, mistake, plan)?;
        if tally.violations > 0 {
            return Ok(Some((scenario.name, tally)));
        }
    }
    Ok(None)
}

fn tell(json: bool, text: String, value: &Value) {
    output::line(&if json { value.to_json() } else { text });
}

fn real_words(scenario: &Scenario, tally: &Tally) -> String {
    let kinds: Vec<String> = tally
        .states
        .iter()
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    let mut text = format!(
        "{:<10} {} operations, {} cut points, {} crash states ({}), {} double faults\n{:<10} booted first: old {}, new {}; \
         longest recovery: {} boots, {} operations; violations: {}; trace {}",
        scenario.name,
        tally.operations,
        tally.operations,
        tally.singles(),
        kinds.join(", "),
        tally.doubles,
        "",
        tally.old,
        tally.new,
        tally.most_boots,
        tally.most_operations,
        tally.violations,
        &hex::encode(&tally.trace)[..16]
    );
    for shown in &tally.shown {
        let case = shown.case.as_ref().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!(
            "\n  {}\n    fwagent simulate --scenario {} {case}",
            shown.violation, scenario.name
        ));
    }
    text
}

fn shown_value(tally: &Tally) -> Value {
    let shown = tally.shown.iter().map(|shown| {
        object([
            ("case", shown.case.as_ref().map(ToString::to_string).into()),
            ("invariant", shown.violation.invariant.into()),
            ("what", (&shown.violation.what).into()),
        ])
    });
    shown.collect::<Vec<_>>().into()
}

fn real_value(scenario: &Scenario, tally: &Tally) -> Value {
    let kinds = tally
        .states
        .iter()
        .map(|(kind, count)| ((*kind).to_owned(), (*count).into()));
    object([
        ("scenario", scenario.name.into()),
        ("operations", tally.operations.into()),
        ("cut_points", tally.operations.into()),
        ("crash_states", tally.singles().into()),
        ("variants", Value::Object(kinds.collect())),
        ("double_faults", tally.doubles.into()),
        ("booted_old", tally.old.into()),
        ("booted_new", tally.new.into()),
        ("most_boots", tally.most_boots.into()),
        ("most_operations", tally.most_operations.into()),
        ("violations", tally.violations.into()),
        ("shown", shown_value(tally)),
        ("trace_sha256", hex::encode(&tally.trace).into()),
    ])
}

fn broken_words(mistake: Breakage, found: Option<&(&'static str, Tally)>) -> String {
    let shown = found.and_then(|(scenario, tally)| tally.shown.first().map(|shown| (scenario, shown)));
    match shown {
        None => format!("NOT CAUGHT {:<14} {}", mistake.word(), mistake.about()),
        Some((scenario, shown)) => {
            let case = shown.case.as_ref().map(ToString::to_string);
            format!(
                "caught     {:<14} {}\n           {}\n           fwagent simulate --scenario {scenario} --broken {} {}",
                mistake.word(),
                mistake.about(),
                shown.violation,
                mistake.word(),
                case.unwrap_or_default()
            )
        }
    }
}

fn broken_value(mistake: Breakage, found: Option<&(&'static str, Tally)>) -> Value {
    object([
        ("broken", mistake.word().into()),
        ("caught", found.is_some().into()),
        ("scenario", found.map(|(scenario, _)| *scenario).into()),
        ("shown", found.map(|(_, tally)| shown_value(tally)).into()),
    ])
}

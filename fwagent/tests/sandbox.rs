//! The sandbox of migrations against hostile programs: each limit, with a positive control.

#![allow(clippy::unwrap_used, missing_docs)]

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use fwagent::host::settings::objects::Objects;
use fwagent::host::settings::sandbox::{Sandbox, SandboxConfig};
use fwagent::ports::{PortError, PortErrorKind};
use tempfile::TempDir;

#[path = "../../tests/src/tools.rs"]
#[allow(dead_code)]
mod tools;

struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn try_run(&self, config: SandboxConfig, program: &[u8], input: &str) -> Result<Result<String, String>, PortError> {
        let objects = Objects::new(self.dir.path().join("settings"));
        let sha256 = objects.put(program).unwrap();
        let scratch = self.dir.path().join("settings/scratch");
        let sandbox = Sandbox::new(config, scratch.clone(), Arc::new(AtomicBool::new(false)))
            .with_agent(env!("CARGO_BIN_EXE_fwagent").into());
        let answer = sandbox.run(&objects.path(&sha256), input.as_bytes())?;
        assert!(!scratch.exists(), "nothing is left");
        Ok(answer.map(|bytes| String::from_utf8(bytes).unwrap()))
    }

    fn run(&self, config: SandboxConfig, script: &str) -> Result<String, String> {
        self.try_run(config, format!("#!/bin/sh\n{script}\n").as_bytes(), "{}")
            .unwrap()
    }

    fn sh(&self, script: &str) -> Result<String, String> {
        self.run(quick(), script)
    }
}

fn quick() -> SandboxConfig {
    SandboxConfig {
        timeout: Duration::from_secs(20),
        ..SandboxConfig::default()
    }
}

fn python() -> Option<PathBuf> {
    let system = PathBuf::from("/usr/bin/python3");
    if system.is_file() {
        return Some(system);
    }
    tools::skip("the system's own python3 is not installed");
    None
}

#[test]
fn an_honest_program_reads_its_input_and_uses_its_own_directory() {
    let lab = Lab::new();
    let script = "read line; echo \"$line\" > mine; cat mine; ls /usr | grep -q bin && echo \"$TMPDIR $HOME $PATH\"; env | wc -l";
    let program = format!("#!/bin/sh\n{script}\n");
    let answer = lab
        .try_run(quick(), program.as_bytes(), "{\"a\":1}\n")
        .unwrap()
        .unwrap();
    let lines: Vec<&str> = answer.lines().collect();
    assert_eq!(lines[0], "{\"a\":1}");
    assert!(lines[1].starts_with(". . /usr/local/sbin"));
    assert!(
        lines[2].trim().parse::<u32>().unwrap() <= 6,
        "a clean environment: {answer}"
    );
    // Any executable file: a program of the system, byte for byte.
    let cat = std::fs::read(std::fs::canonicalize("/bin/cat").unwrap()).unwrap();
    assert_eq!(
        lab.try_run(quick(), &cat, "{\"b\":2}").unwrap(),
        Ok("{\"b\":2}".to_owned())
    );
}

#[test]
fn what_it_says_when_it_fails_is_told() {
    let lab = Lab::new();
    let error = lab.sh("echo 'no place for tag' >&2; exit 3").unwrap_err();
    assert!(
        error.contains("exit status 3") && error.contains("no place for tag"),
        "{error}"
    );
    let error = lab
        .try_run(quick(), b"#!/nonexistent/interpreter\n", "")
        .unwrap()
        .unwrap_err();
    assert!(error.contains("starting the program"), "{error}");
}

#[test]
fn it_writes_nowhere_else_and_reads_no_secret() {
    let lab = Lab::new();
    let outside = lab.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode;
    // Open for everybody, so that only the sandbox is in the way.
    std::fs::set_permissions(lab.dir.path(), mode(0o755)).unwrap();
    std::fs::set_permissions(&outside, mode(0o777)).unwrap();
    std::fs::write(outside.join("secret"), "psk").unwrap();
    std::fs::set_permissions(outside.join("secret"), mode(0o666)).unwrap();
    let outside = outside.display();
    let write = format!("echo x > {outside}/new && echo written");
    let read = format!("cat {outside}/secret");
    for (script, free) in [(&write, "written\n"), (&read, "psk")] {
        let error = lab.sh(script).unwrap_err();
        assert!(error.contains("ermission denied"), "{error}");
        let unconfined = SandboxConfig {
            unconfined: true,
            ..quick()
        };
        assert_eq!(lab.run(unconfined, script), Ok(free.to_owned()), "the control");
        assert!(lab.sh("cat /etc/passwd").is_err());
        assert!(lab.sh("mkdir below").is_err());
    }
}

#[test]
fn it_has_no_network_not_even_this_host_s() {
    let Some(python) = python() else { return };
    let lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let program = format!(
        "#!{}\nimport socket\nsocket.create_connection(('127.0.0.1', {port}), 5)\nprint('connected')\n",
        python.display()
    );
    let error = lab.try_run(quick(), program.as_bytes(), "").unwrap().unwrap_err();
    assert!(error.contains("Operation not permitted"), "{error}");
    let unconfined = SandboxConfig {
        unconfined: true,
        ..quick()
    };
    let answer = lab.try_run(unconfined, program.as_bytes(), "").unwrap();
    assert_eq!(answer, Ok("connected\n".to_owned()), "the control");
}

#[test]
fn time_is_limited_and_nothing_outlives_it() {
    let lab = Lab::new();
    let short = || SandboxConfig {
        timeout: Duration::from_secs(1),
        ..quick()
    };
    let begin = Instant::now();
    let error = lab.run(short(), "sleep 50 & sleep 51").unwrap_err();
    assert!(error.contains("did not end within 1s"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(15));
    // It cannot leave the group that is killed.
    let error = lab.sh("setsid sleep 1").unwrap_err();
    assert!(error.contains("not permitted"), "{error}");
    assert_eq!(
        lab.run(short(), "sleep 0; echo done"),
        Ok("done\n".to_owned()),
        "the control"
    );
    let cpu = SandboxConfig { cpu_s: 1, ..quick() };
    let error = lab.run(cpu, "while :; do :; done").unwrap_err();
    assert!(error.contains("signal"), "{error}");
}

#[test]
fn memory_output_files_and_processes_are_limited() {
    let lab = Lab::new();
    let small = || SandboxConfig {
        memory: 64 << 20,
        output: 64 << 10,
        ..quick()
    };
    // The shell keeps what the command prints in memory.
    let eat = |mib: u32| format!("x=$(yes | head -c {mib}M | tr '\\n' x); echo ${{#x}}");
    assert_eq!(lab.run(small(), &eat(1)), Ok("1048576\n".to_owned()), "the control");
    assert!(lab.run(small(), &eat(200)).is_err());
    let error = lab.run(small(), "yes").unwrap_err();
    assert!(error.contains("more than 65536 bytes"), "{error}");
    assert!(lab.run(small(), "yes > file").is_err());
    let error = lab
        .run(small(), "yes | head -c 60000 > a; cp a b; sleep 10")
        .unwrap_err();
    assert!(error.contains("left more than"), "{error}");
    let many = "for i in 1 2 3 4 5 6 7 8; do sleep 2 & done; wait; echo all";
    let few = SandboxConfig {
        processes: 4,
        ..quick()
    };
    assert!(lab.run(few, many).unwrap_err().contains("fork"));
    assert_eq!(lab.sh(many), Ok("all\n".to_owned()), "the control");
}

#[test]
fn a_sandbox_that_cannot_be_set_up_is_no_fault_of_the_program() {
    let lab = Lab::new();
    let objects = lab.dir.path().join("settings/objects/none");
    let sandbox = Sandbox::new(quick(), lab.dir.path().join("s"), Arc::new(AtomicBool::new(false)))
        .with_agent(env!("CARGO_BIN_EXE_fwagent").into());
    let error = sandbox.run(&objects, b"").unwrap_err();
    assert!(matches!(error.kind, PortErrorKind::Environment { .. }), "{error:?}");
    assert!(error.attempt.contains("reading the program"), "{error}");
}

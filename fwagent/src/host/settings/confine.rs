//! The child's half of the sandbox: confines itself for good, then becomes the migration program.
//!
//! | what | by |
//! |---|---|
//! | no network, no namespaces, no tracing, no leaving the process group | seccomp |
//! | reads the system's programs and libraries, writes in its own directory only | Landlock |
//! | memory, processor time, file size, processes, open files | resource limits |
//! | no privileges, now or later | another user when it was root; `no_new_privs` |
//! | clean environment, standard streams only | here |
//!
//! The program is run out of memory, so that the state directory, which other users cannot enter, needs no opening, and
//! file systems may be mounted without execution. Each step that fails ends the child before the program starts.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, Rlimit, geteuid, setrlimit};

use super::PROGRAM_BYTES;
use super::objects::read_bounded;
use super::sandbox::READY;

/// What programs need of a system.
const SYSTEM: [&str; 9] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/dev/urandom",
];

/// Arguments of the hidden command.
#[derive(Debug, clap::Args)]
pub struct MigrationChild {
    /// The program
    #[arg(long)]
    pub program: PathBuf,
    /// Seconds of processor time
    #[arg(long)]
    pub cpu: u64,
    /// Bytes of address space
    #[arg(long)]
    pub memory: u64,
    /// Bytes of a file
    #[arg(long)]
    pub file: u64,
    /// Processes and threads
    #[arg(long)]
    pub processes: u64,
    /// User and group to become, when root
    #[arg(long)]
    pub user: u32,
    /// More to be read
    #[arg(long)]
    pub read: Vec<PathBuf>,
    /// Limits only
    #[arg(long)]
    pub unconfined: bool,
}

/// Becomes the program; returns only why it could not.
pub fn run(args: &MigrationChild) -> anyhow::Error {
    match confined(args) {
        Err(error) => error,
        Ok(mut command) => {
            // Whatever follows is the program's own doing.
            let _ = io::stderr().write_all(READY.as_bytes());
            anyhow::Error::new(command.exec()).context("starting the program")
        }
    }
}

fn confined(args: &MigrationChild) -> anyhow::Result<Command> {
    let program = in_memory(&args.program).context("reading the program")?;
    let user = geteuid().is_root().then_some(args.user);
    let running = processes_of(user.unwrap_or(geteuid().as_raw())).context("counting processes")?;
    // First to be killed when memory is short. Where that cannot be said, the limits below hold anyway.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let own = File::open(".").context("opening the program's own directory")?;
    if !args.unconfined {
        landlock_(&own, &args.read).context("restricting files by Landlock")?;
    }
    for (resource, limit) in [
        (Resource::Core, 0),
        (Resource::Cpu, args.cpu),
        (Resource::As, args.memory),
        (Resource::Fsize, args.file),
        (Resource::Nofile, 64),
        // The limit counts all processes of the user.
        (Resource::Nproc, running.saturating_add(args.processes)),
    ] {
        let both = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, both).with_context(|| format!("limiting {resource:?}"))?;
    }
    let path = OsString::from(format!("/proc/self/fd/{}", program.as_raw_fd()));
    // It stays open for the interpreter of a script, which opens it once more.
    std::mem::forget(program);
    let mut command = Command::new(path);
    command.env_clear().envs([
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("LC_ALL", "C"),
        ("HOME", "."),
        ("TMPDIR", "."),
    ]);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    if !args.unconfined {
        seccomp().context("restricting system calls by seccomp")?;
    }
    Ok(command)
}

/// The program as a file in memory that stays open over the start of another.
fn in_memory(path: &Path) -> io::Result<File> {
    let bytes = read_bounded(path, PROGRAM_BYTES)?;
    let mut file = File::from(memfd_create("migration", MemfdFlags::empty())?);
    file.write_all(&bytes)?;
    Ok(file)
}

/// Threads of all processes of a user: what the limit of processes counts.
fn processes_of(user: u32) -> io::Result<u64> {
    let mut threads = 0_u64;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if !entry
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|byte| byte.is_ascii_digit())
        {
            continue;
        }
        // One that has ended since.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        if field("Uid:") == Some(user.into()) {
            threads = threads.saturating_add(field("Threads:").unwrap_or(1));
        }
    }
    Ok(threads)
}

fn landlock_(own: &File, read: &[PathBuf]) -> anyhow::Result<()> {
    use landlock::{
        ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
        RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
    };
    // What Linux 5.13 knows is needed; what later versions know is used where it is there.
    let needed = AccessFs::from_all(ABI::V1);
    let own_access: BitFlags<AccessFs> = AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::ReadDir
        | AccessFs::RemoveFile
        | AccessFs::MakeReg
        | AccessFs::Truncate;
    let created = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(needed)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .add_rule(PathBeneath::new(own, own_access))?
        .add_rules(path_beneath_rules(SYSTEM, AccessFs::from_read(ABI::V1)))?
        .add_rules(path_beneath_rules(read, AccessFs::from_read(ABI::V1)))?
        .add_rules(path_beneath_rules(
            ["/dev/null"],
            AccessFs::ReadFile | AccessFs::WriteFile,
        ))?;
    let status = created.restrict_self()?;
    anyhow::ensure!(
        status.ruleset != RulesetStatus::NotEnforced && status.no_new_privs,
        "this kernel does not enforce it"
    );
    Ok(())
}

/// Calls that a program which computes has no use for.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn seccomp() -> anyhow::Result<()> {
    use std::collections::BTreeMap;

    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    };
    let denied = [
        // No network, not even of this host.
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        // Ways around a filter of calls.
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        // No leaving the group that is killed at the end.
        libc::SYS_setsid,
        libc::SYS_setpgid,
        // No other processes, no other name spaces, nothing of the kernel.
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal,
        libc::SYS_pidfd_getfd,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_mq_open,
        libc::SYS_shmget,
        libc::SYS_msgget,
        libc::SYS_semget,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = denied.into_iter().map(|call| (call, Vec::new())).collect();
    let new_user = libc::CLONE_NEWUSER as u64;
    let with_new_user = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(new_user), new_user)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![with_new_user])?]);
    let arch = std::env::consts::ARCH.try_into()?;
    let refuse = |error: i32| SeccompAction::Errno(error.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse(libc::EPERM), arch)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    // Its flags are in memory, where no filter sees them; told that there is none, libraries use `clone`.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let filter = SeccompFilter::new(clone3, SeccompAction::Allow, refuse(libc::ENOSYS), arch)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
fn seccomp() -> anyhow::Result<()> {
    anyhow::bail!("not known for this processor")
}

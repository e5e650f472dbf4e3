//! The pure part of the agent: values and total functions. Nothing here reads a file, a socket or a clock; an event
//! carries what happened and when, a state and a list of effects come back.
//!
//! ```text
//! releases + identity + state  -> plan  ->  Decision        which release, or why none
//! state + event                -> step  ->  state + effects one cell of the grid, or a listed refusal
//!                              -> rescue                     the way into a rescue system
//! boot record                  -> boot  ->  slot + record   what a boot loader does
//! state                        <-> record                   the bytes that survive a loss of power
//! outcomes and refusals         -> journal                  statements that wait for a server
//! step + generations           -> settings                  which settings go with which software
//! variables of a boot loader   -> slot_vars                  the same for U-Boot (uboot_env) and GRUB (grub_env)
//!                              -> boot_count                 U-Boot with one counter and the name of the slot
//! texts of the kernel          -> mounts, cmdline            what is mounted, what is the root
//! variables of UEFI            -> efi_boot                   BootOrder, BootNext
//! partition table              -> gpt, gpt_priority          both copies of it, and the attributes that loaders read
//! entries of systemd-boot      -> boot_entries               names that count boots
//! autoboot.txt                 -> autoboot                   the Raspberry Pi's tryboot
//! record and TPM               -> counter, tpm            whether the record is the newest
//! what a system shows          -> adopt                      a configuration for it, or what is missing
//! ```

pub mod adopt;
pub mod autoboot;
pub mod boot;
pub mod boot_count;
pub mod boot_entries;
pub mod cmdline;
pub mod conditions;
pub mod counter;
pub mod efi_boot;
pub mod floor;
pub mod gpt;
pub mod gpt_priority;
pub mod grub_env;
pub mod hold;
pub mod journal;
pub mod mounts;
pub mod plan;
pub mod record;
pub mod release;
pub mod rescue;
pub mod schedule;
pub mod settings;
pub mod slot;
pub mod slot_vars;
pub mod state;
pub mod step;
pub mod time;
pub mod tpm;
pub mod uboot_config;
pub mod uboot_env;
pub mod window;

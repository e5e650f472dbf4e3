//! Durable writes: the one module through which every change that must survive a loss of power goes.
//!
//! What it decides: the order of write, fsync, rename and fsync of the directory, and the layout of a record that is
//! kept in two checksummed copies ([`twin`]). What it does not decide: what is written, and when.
//!
//! The order of [`write_file`], each step finished before the next begins:
//!
//! ```text
//! create  DIR/.NAME.tmp-PID-N   (O_EXCL)      a reader never opens this name
//! write   contents, fsync                     the data are on the medium before the name points at them
//! rename  to DIR/NAME                         readers see the old file or the new one, never a mixture
//! fsync   DIR                                 the rename itself is on the medium
//! ```
//!
//! A rename whose directory is not fsynced may be undone by a power cut, with the old name back or, on some file
//! systems, with neither; so no function here returns before that fsync. A crash may leave a `.NAME.tmp-…` file behind;
//! [`sweep_temporaries`] removes them at start-up.
//!
//! Everything goes through a [`Disk`], which is a value: the operating system's file system, or the one of a simulator that
//! cuts the power. The functions of this crate are the methods of [`Disk::system`].
//!
//! `unsafe` is forbidden; fsync and flock come from the standard library.

pub mod disk;
mod file;
mod lock;
mod system;
mod tree;
pub mod twin;

pub use disk::Disk;
pub use file::{
    create_new, remove_file, rename, sweep_temporaries, sync_dir, write_file, write_file_mode, write_file_owned,
};
pub use lock::Lock;
pub use tree::{create_dir_all, remove_tree, sync_tree};

#[cfg(test)]
mod tests;

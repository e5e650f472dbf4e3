//! Bounds on everything that comes from outside, each with its reason.
//!
//! Sizes are bytes. A bound is part of the format: a repository that exceeds one is refused by every device, so the
//! tools that write repositories check the same constants.

/// Longest `root.json`. A root with 64 RSA-4096 keys and as many signatures takes about 130 KiB.
pub const ROOT_BYTES: u64 = 512 * 1024;

/// Longest `timestamp.json`. It names one file; the rest is signatures.
pub const TIMESTAMP_BYTES: u64 = 16 * 1024;

/// Longest `snapshot.json` when `timestamp.json` gives no length: about 60,000 delegated roles.
pub const SNAPSHOT_BYTES: u64 = 8 * 1024 * 1024;

/// Longest targets metadata, the top-level one or a delegated one: about 300,000 targets. A length in
/// `snapshot.json` above this bound is refused too.
pub const TARGETS_BYTES: u64 = 64 * 1024 * 1024;

/// Longest release manifest.
pub const MANIFEST_BYTES: u64 = 1024 * 1024;

/// Longest program that migrates settings.
pub const MIGRATION_BYTES: u64 = 16 * 1024 * 1024;

/// Values in one JSON document. Bounds the memory of the parser (16 bytes a value) for inputs such as `[0,0,0,…`.
pub const JSON_VALUES: usize = 4_000_000;

/// Nesting of one JSON document. TUF needs 7 levels; `custom` may add some.
pub const JSON_DEPTH: usize = 32;

/// New root versions accepted in one refresh. A device further behind continues at its next poll.
pub const ROOT_ROTATIONS: u32 = 256;

/// Delegated roles visited in one search for a target.
pub const DELEGATIONS_VISITED: usize = 32;

/// Roles visited when the releases of a product are listed: larger, because hash bins spread them.
pub const RELEASE_ROLES_VISITED: usize = 1024;

/// Delegations followed when a whole repository is verified. Bounds the work that one publisher can cause on a server.
pub const DELEGATIONS_VERIFIED: usize = 65_536;

/// Keys in one role, and keys in one `keys` object.
pub const KEYS: usize = 1024;

/// Signatures on one metadata file.
pub const SIGNATURES: usize = 1024;

/// Roles in one `delegations` object: enough for 16,384 hash bins.
pub const DELEGATED_ROLES: usize = 16_384;

/// Bytes of a role name.
pub const ROLE_NAME_BYTES: usize = 255;

/// Bytes of a target path.
pub const TARGET_PATH_BYTES: usize = 1024;

/// Bytes of a short text in a manifest (names, versions, identifiers).
pub const NAME_BYTES: usize = 128;

/// Bytes of a long text in a manifest (notes for people).
pub const TEXT_BYTES: usize = 64 * 1024;

/// Entries of a list in a manifest (hardware, components, patches, migrations, CVEs).
pub const LIST_ENTRIES: usize = 256;

/// Bytes of an image: 1 TiB, far beyond any device and far from overflow.
pub const IMAGE_BYTES: u64 = 1 << 40;

/// Longest statement of a device: all lists full and all texts escaped stay below; an ordinary one has 3 KiB.
pub const STATEMENT_BYTES: u64 = 1024 * 1024;

/// Bytes of a text in a statement: a reason, or the last lines of what failed.
pub const STATEMENT_TEXT_BYTES: usize = 8 * 1024;

/// Floors in a statement: those of every component in some channels.
pub const STATEMENT_FLOORS: usize = 4 * LIST_ENTRIES;

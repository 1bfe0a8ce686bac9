//! Named limits of who may do what.

/// Users at once: whenever one changes, all are read again, some 3 µs each.
pub const USERS: usize = 10_000;
/// Roles at once.
pub const ROLES: usize = 1_000;
/// Topic rules of one user or role.
pub const RULES: usize = 256;
/// Roles of one user.
pub const ROLES_OF_USER: usize = 32;
/// Bytes of the name of a user or role.
pub const NAME_BYTES: usize = 255;
/// Bytes of a password; hashing longer ones would be work that strangers can ask for.
pub const PASSWORD_BYTES: usize = 1024;
/// Characters of a new password at least (NIST SP 800-63B).
pub const PASSWORD_CHARACTERS: usize = 8;
/// Bytes of a filter in a rule.
pub const FILTER_BYTES: usize = 1024;
/// Levels of a filter in a rule, as many as a topic has.
pub const FILTER_LEVELS: usize = 32;
/// Memory of an argon2id hash, in KiB (OWASP Password Storage Cheat Sheet: 19 MiB with 2 passes and 1 lane).
pub const ARGON2_MEMORY: u32 = 19_456;
/// Passes of an argon2id hash (the same row of OWASP's table).
pub const ARGON2_PASSES: u32 = 2;
/// Memory of an argon2id hash that came from elsewhere, in KiB, at most.
pub const ARGON2_MEMORY_MAX: u32 = 262_144;
/// Passes or iterations of a hash that came from elsewhere, at most.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// PBKDF2 iterations that a client of SCRAM-SHA-256 computes. RFC 7677 asks for 4,096 at least; the 600,000 that OWASP
/// asks for of hashes at rest would keep a gateway's processor busy for minutes.
pub const SCRAM_ITERATIONS: u32 = 15_000;
/// Bytes of a message of a SCRAM exchange.
pub const SCRAM_BYTES: usize = 4096;
/// Bytes of a JSON Web Token.
pub const JWT_BYTES: usize = 16 << 10;
/// Keys of a set of keys for JSON Web Tokens.
pub const JWT_KEYS: usize = 64;
/// Seconds that clocks may differ when a JSON Web Token says from when it is valid (RFC 7519, 4.1.5).
pub const JWT_LEEWAY: u64 = 60;

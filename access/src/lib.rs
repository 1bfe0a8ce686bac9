//! Who may do what: principals, users, roles, their rules, and the one question every door asks; and the credentials by
//! which someone is recognised. Pure: no files, no clock, no random numbers of its own.
//!
//! # Invariants
//! - What is not granted is denied; what is denied stays denied.
//! - Only digests of tokens and hashes of passwords are kept; no secret is in any Debug output.

mod directory;
mod filter;
mod jwt;
mod rights;
mod scram;
mod token;

pub mod limits;
pub mod password;

pub use directory::{Claim, Directory, StoredRole, StoredUser, User, check_name};
pub use filter::{Identity, Place};
pub use jwt::{Claims, Expected, JwtKeys, looks_like_jwt};
pub use rights::{
    Action, By, Origin, Principal, Privileges, Retain, Rights, TopicAction, TopicRule, allows, check_filter,
};
pub use scram::{First, SCRAM, Scram, ScramKeys};
pub use token::{Grants, StoredToken, digest, hex, same};

//! `sonde token create`.

use sonde_access::Grants;

use super::client::Client;
use super::output::say;
use super::{Exit, Failure, Result, TokenArgs};
use crate::token::{TokenRequest, random_hex};

pub(super) fn create(args: &TokenArgs) -> Result<()> {
    let grants = Grants {
        admin: args.admin,
        publish: args.publish.clone(),
        subscribe: args.subscribe.clone(),
        query: args.query,
        write: args.write,
    };
    if grants == Grants::default() {
        return Err(Failure::new(
            Exit::Failed,
            "a token without rights is of no use: give --publish, --subscribe, --query, --write or --admin",
        ));
    }
    let name = match &args.name {
        Some(name) => name.clone(),
        None => format!("device-{}", random_hex::<4>()?),
    };
    let request = serde_json::to_string(&TokenRequest { name: name.clone(), grants });
    let request = request.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let replace = if args.replace { "OR REPLACE " } else { "" };
    let token = Client::find(&args.server)?.sql_text(&format!("CREATE TOKEN {replace}{request}"))?;
    if args.name.is_none() {
        // Standard output is the token and nothing else: scripts keep it.
        eprintln!("the token's name is {name}");
    }
    say(token)
}

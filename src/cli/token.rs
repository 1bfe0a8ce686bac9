//! `sonde token create`.

use sonde_access::Grants;

use super::client::Client;
use super::{Exit, Failure, Result, TokenArgs};
use crate::token::TokenRequest;

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
    let request = serde_json::to_string(&TokenRequest { name: args.name.clone(), grants });
    let request = request.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    println!("{}", Client::find(&args.server)?.sql_text(&format!("CREATE TOKEN {request}"))?);
    Ok(())
}

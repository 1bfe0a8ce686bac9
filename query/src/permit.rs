//! Who may run what.
//!
//! # Invariants
//! - Whoever may run no statement of this kind is refused before any name is looked up: no error tells him a name.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use sonde_access::{Action, Principal, allows};

use crate::error::{Error, Result};

pub(crate) fn permit(principal: &Principal, action: Action<'_>, what: &str) -> Result<()> {
    if allows(principal, action) { Ok(()) } else { Err(Error::Denied(format!("{}: {what}", principal.name))) }
}

/// Fails for whoever may run no statement at all: nothing is parsed for him, and no error tells him a name.
pub(crate) fn permit_any(principal: &Principal) -> Result<()> {
    let any = [Action::Query, Action::Write, Action::Admin];
    if any.into_iter().any(|action| allows(principal, action)) {
        return Ok(());
    }
    Err(Error::Denied(format!("{}: the token allows no statement", principal.name)))
}

/// Fails for whoever may not run a statement of this kind.
pub(crate) fn permit_statement(statement: &Statement, principal: &Principal) -> Result<()> {
    let needed = actions(statement).iter();
    needed.copied().try_for_each(|action| permit(principal, action, "the token allows no such statement"))
}

/// The rights that a statement needs. Whoever changes rows by what they hold learns what they hold.
fn actions(statement: &Statement) -> &'static [Action<'static>] {
    match statement {
        Statement::Statement(statement) => match **statement {
            SqlStatement::Insert(_) => &[Action::Write],
            SqlStatement::Update(_) | SqlStatement::Delete(_) | SqlStatement::Merge(_) => {
                &[Action::Write, Action::Query]
            }
            _ => &[Action::Query],
        },
        _ => &[Action::Query],
    }
}

/// Fails where an INSERT reads tables for someone who may only write.
pub(crate) fn permit_reads(plan: &LogicalPlan, principal: &Principal) -> Result<()> {
    if allows(principal, Action::Query) {
        return Ok(());
    }
    let mut reads = false;
    plan.apply_with_subqueries(|node| {
        reads |= matches!(node, LogicalPlan::TableScan(_));
        Ok(if reads { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    if reads { permit(principal, Action::Query, "an INSERT that reads tables") } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use sonde_access::Grants;

    use super::*;
    use crate::tests::{CREATE, ask, ask_as, open};

    #[tokio::test]
    async fn who_may_run_nothing_learns_nothing() {
        let (query, _dir) = open();
        ask(&query, CREATE).await.unwrap();
        let grants = |query, write| Grants { query, write, ..Grants::default() };
        for (grants, sql, denied) in [
            (grants(false, false), "SELECT * FROM tt", true),
            (grants(false, false), "nonsense", true),
            (grants(false, true), "SELECT * FROM tt", true),
            (grants(true, false), "INSERT INTO tt VALUES (1)", true),
            (grants(true, false), "SELECT * FROM tt", false),
        ] {
            let error = ask_as(&query, Principal::new("someone", grants), sql).await.unwrap_err();
            assert_eq!(matches!(error, Error::Denied(_)), denied, "{sql}: {error}");
            assert_eq!(error.to_string().contains("did you mean"), !denied, "{sql}: {error}");
        }
    }
}

//! Names are stored as they were first written; this finds those that a statement writes in another case.
//!
//! # Invariants
//! - A word changes only where it stands for a table that the statement reads or writes, or for a column of one of
//!   them.
//! - A quoted name matches exactly. Aliases, the names of WITH, and functions are never changed, nor what stands for
//!   an alias or a name of WITH.
//! - Names of system tables are in lower case; a statement that reads them names all columns exactly, since what
//!   devices send must not change what their columns are called.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    AssignmentTarget, ExcludeSelectItem, Expr, GroupByExpr, Ident, JoinConstraint, JoinOperator, ObjectName,
    ObjectNamePart, Query, Select, SelectItem, SelectItemQualifiedWildcardKind, Statement as SqlStatement,
    TableAlias, TableFactor, TableObject, TableWithJoins, Visit, VisitMut, Visitor, VisitorMut,
    WildcardAdditionalOptions,
};
use sonde_engine::{Catalog, Table};

use crate::catalog::is_reserved;
use crate::latest;

/// Writes the names of a statement as they are stored; `database` is that of tables without one.
pub(crate) fn write_as_stored(statement: &mut Statement, catalog: &Catalog, database: &str) {
    match statement {
        Statement::Statement(statement) => {
            let mut words = Words::default();
            let _ = Visit::visit(&**statement, &mut words);
            let mut names = Names::new(words, catalog, database);
            let _ = VisitMut::visit(&mut **statement, &mut names);
        }
        Statement::Explain(explain) => write_as_stored(&mut explain.statement, catalog, database),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => {}
    }
}

/// The name that `word` stands for: the same, else, where it is not quoted, the only one that differs in case alone.
fn pick<'n>(word: &Ident, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let mut alike: Option<&str> = None;
    let mut several = false;
    for name in names {
        if name == word.value {
            return Some(name);
        }
        if word.quote_style.is_none() && name.eq_ignore_ascii_case(&word.value) {
            several |= alike.is_some_and(|other| other != name);
            alike = Some(name);
        }
    }
    alike.filter(|_| !several)
}

/// The parts of a name; none where a part is computed.
fn parts(name: &ObjectName) -> Vec<Ident> {
    name.0.iter().map(|part| part.as_ident().cloned()).collect::<Option<_>>().unwrap_or_default()
}

/// The word of a name that is one word.
fn single(name: &mut ObjectName) -> Option<&mut Ident> {
    match name.0.as_mut_slice() {
        [ObjectNamePart::Identifier(word)] => Some(word),
        _ => None,
    }
}

/// The names that a SELECT gives to its columns.
fn aliases(select: &Select) -> impl Iterator<Item = &str> {
    select.projection.iter().flat_map(|item| {
        let aliases = match item {
            SelectItem::ExprWithAlias { alias, .. } => std::slice::from_ref(alias),
            SelectItem::ExprWithAliases { aliases, .. } => aliases.as_slice(),
            _ => &[],
        };
        aliases.iter().map(|alias| alias.value.as_str())
    })
}

/// What a statement says of tables and of names of its own.
#[derive(Default)]
struct Words {
    /// The tables that it names.
    tables: Vec<Vec<Ident>>,
    /// Those that it gives an alias, with that.
    aliased: Vec<(String, Vec<Ident>)>,
    /// What its WITH clauses name.
    with: HashSet<String>,
    /// The names that it gives itself, to columns and to what it reads, and how often.
    given: HashMap<String, usize>,
    /// Whether the name that comes next is that of a function.
    is_function: bool,
}

impl Words {
    fn give(&mut self, name: &str) {
        *self.given.entry(name.to_owned()).or_default() += 1;
    }

    fn give_alias(&mut self, alias: &TableAlias) {
        self.give(&alias.name.value);
        alias.columns.iter().for_each(|column| self.give(&column.name.value));
    }
}

impl Visitor for Words {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        for table in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.give_alias(&table.alias);
            self.with.insert(table.alias.name.value.clone());
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        aliases(select).for_each(|alias| self.give(alias));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        let call = latest::argument(factor);
        self.is_function = call.is_some();
        self.tables.extend(call.clone());
        let alias = match factor {
            TableFactor::Table { name, alias, .. } => {
                let alias = alias.as_ref();
                let table = || call.unwrap_or_else(|| parts(name));
                self.aliased.extend(alias.map(|alias| (alias.name.value.clone(), table())));
                alias
            }
            TableFactor::Derived { alias, .. }
            | TableFactor::TableFunction { alias, .. }
            | TableFactor::Function { alias, .. }
            | TableFactor::UNNEST { alias, .. }
            | TableFactor::NestedJoin { alias, .. } => alias.as_ref(),
            _ => None,
        };
        if let Some(alias) = alias {
            self.give_alias(alias);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        if !std::mem::take(&mut self.is_function) {
            self.tables.push(parts(relation));
        }
        ControlFlow::Continue(())
    }
}

/// A SELECT that is being visited.
struct Open {
    aliases: Vec<String>,
    /// Set aside until the rest is done: here, and only here, a SELECT sees its own aliases.
    group_by: GroupByExpr,
    having: Option<Expr>,
}

/// What the words of a statement stand for.
struct Names<'a> {
    catalog: &'a Catalog,
    database: &'a str,
    words: Words,
    /// The tables that the statement reads or writes; none where it reads system tables.
    tables: Vec<&'a Table>,
    /// The same by what stands for them before a column.
    qualified: HashMap<String, Vec<&'a Table>>,
    open: Vec<Open>,
    /// Whether the name that comes next is that of a function.
    is_function: bool,
}

impl<'a> Names<'a> {
    fn new(words: Words, catalog: &'a Catalog, database: &'a str) -> Self {
        let mut names = Self {
            catalog,
            database,
            words,
            tables: Vec::new(),
            qualified: HashMap::new(),
            open: Vec::new(),
            is_function: false,
        };
        if names.words.tables.iter().any(|table| names.is_system(table)) {
            return names;
        }
        let tables: Vec<&Table> =
            names.words.tables.iter().filter_map(|parts| names.table(parts)).map(Arc::as_ref).collect();
        let mut qualified: HashMap<String, Vec<&Table>> = HashMap::new();
        for table in tables.iter().copied() {
            qualified.entry(table.def().name.clone()).or_default().push(table);
        }
        for (alias, parts) in &names.words.aliased {
            if let Some(table) = names.table(parts) {
                qualified.entry(alias.clone()).or_default().push(table);
            }
        }
        (names.tables, names.qualified) = (tables, qualified);
        names
    }

    /// The database that a word stands for.
    fn database_of(&self, word: &Ident) -> Option<&'a str> {
        pick(word, self.catalog.tables().map(|table| table.def().database.as_str()))
    }

    fn is_with(&self, parts: &[Ident]) -> bool {
        matches!(parts, [name] if self.words.with.contains(&name.value))
    }

    fn is_system(&self, parts: &[Ident]) -> bool {
        let database = match parts {
            [.., database, _] => database.value.as_str(),
            _ => self.database,
        };
        is_reserved(database) && !self.is_with(parts)
    }

    /// The engine's table that a name stands for.
    fn table(&self, parts: &[Ident]) -> Option<&'a Arc<Table>> {
        if self.is_with(parts) || self.is_system(parts) {
            return None;
        }
        let (name, before) = parts.split_last()?;
        let database = match before.last() {
            Some(database) => self.database_of(database)?,
            None => self.database,
        };
        match name.quote_style {
            Some(_) => self.catalog.exact_table(database, &name.value),
            None => self.catalog.table(database, &name.value),
        }
    }

    /// Database and name of a table as they are stored, or as they were written where there is no such table.
    fn stored(&self, parts: &[Ident]) -> (String, String) {
        if let Some(table) = self.table(parts) {
            return (table.def().database.clone(), table.def().name.clone());
        }
        let written = |word: Option<&Ident>| word.map(|word| word.value.clone());
        let (name, before) = parts.split_last().map_or((None, parts), |(name, before)| (Some(name), before));
        let database = written(before.last()).unwrap_or_else(|| self.database.to_owned());
        (database, written(name).unwrap_or_default())
    }

    /// Whether the statement gives something this name that can be seen from where the visit is.
    fn is_given(&self, word: &str) -> bool {
        let hidden = self.open.iter().flat_map(|select| &select.aliases).filter(|alias| *alias == word);
        self.words.given.get(word).is_some_and(|times| *times > hidden.count())
    }

    /// Writes a column's name; `qualifier` is what stands before it.
    fn column(&self, word: &mut Ident, qualifier: Option<&str>) {
        let tables = match qualifier.and_then(|name| self.qualified.get(name)) {
            Some(tables) => tables,
            None if self.is_given(&word.value) => return,
            None => &self.tables,
        };
        let columns = tables.iter().flat_map(|table| &table.def().columns);
        if let Some(stored) = pick(word, columns.map(|column| column.name.as_str())) {
            word.value = stored.to_owned();
        }
    }

    /// Writes what stands before a column: a table, and perhaps its database.
    fn qualifier<'w>(&self, mut words: impl DoubleEndedIterator<Item = &'w mut Ident>) {
        let Some(name) = words.next_back().filter(|name| !self.is_given(&name.value)) else { return };
        let tables = || self.tables.iter().map(|table| table.def());
        if let Some(stored) = pick(name, tables().map(|table| table.name.as_str())) {
            name.value = stored.to_owned();
        }
        let Some(database) = words.next_back() else { return };
        if let Some(stored) = pick(database, tables().map(|table| table.database.as_str())) {
            database.value = stored.to_owned();
        }
    }

    fn using(&self, from: &mut TableWithJoins) {
        for join in &mut from.joins {
            if let Some(JoinConstraint::Using(columns)) = constraint(&mut join.join_operator) {
                columns.iter_mut().filter_map(single).for_each(|column| self.column(column, None));
            }
        }
    }

    /// Writes the columns that `SELECT * EXCLUDE (...)` leaves out.
    fn excluded(&self, options: &mut WildcardAdditionalOptions) {
        match &mut options.opt_exclude {
            Some(ExcludeSelectItem::Single(name)) => {
                single(name).into_iter().for_each(|column| self.column(column, None));
            }
            Some(ExcludeSelectItem::Multiple(names)) => {
                names.iter_mut().filter_map(single).for_each(|column| self.column(column, None));
            }
            None => {}
        }
        if let Some(except) = &mut options.opt_except {
            self.column(&mut except.first_element, None);
            except.additional_elements.iter_mut().for_each(|column| self.column(column, None));
        }
    }
}

/// Writes the name of a column that a statement writes to.
fn of_table(table: &Table, column: &mut Ident) {
    let columns = table.def().columns.iter().map(|column| column.name.as_str());
    if let Some(stored) = pick(column, columns) {
        column.value = stored.to_owned();
    }
}

fn constraint(operator: &mut JoinOperator) -> Option<&mut JoinConstraint> {
    match operator {
        JoinOperator::Join(constraint)
        | JoinOperator::Inner(constraint)
        | JoinOperator::Left(constraint)
        | JoinOperator::LeftOuter(constraint)
        | JoinOperator::Right(constraint)
        | JoinOperator::RightOuter(constraint)
        | JoinOperator::FullOuter(constraint)
        | JoinOperator::Semi(constraint)
        | JoinOperator::LeftSemi(constraint)
        | JoinOperator::RightSemi(constraint)
        | JoinOperator::Anti(constraint)
        | JoinOperator::LeftAnti(constraint)
        | JoinOperator::RightAnti(constraint) => Some(constraint),
        _ => None,
    }
}

impl VisitorMut for Names<'_> {
    type Break = ();

    fn pre_visit_statement(&mut self, statement: &mut SqlStatement) -> ControlFlow<()> {
        match statement {
            SqlStatement::Insert(insert) => {
                if let TableObject::TableName(name) = &insert.table
                    && let Some(table) = self.table(&parts(name))
                {
                    insert.columns.iter_mut().filter_map(single).for_each(|column| of_table(table, column));
                }
            }
            SqlStatement::Update(update) => {
                if let TableFactor::Table { name, .. } = &update.table.relation
                    && let Some(table) = self.table(&parts(name))
                {
                    for assignment in &mut update.assignments {
                        let AssignmentTarget::ColumnName(name) = &mut assignment.target else { continue };
                        single(name).into_iter().for_each(|column| of_table(table, column));
                    }
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        let aliases = aliases(select).map(str::to_owned).collect();
        let group_by = std::mem::replace(&mut select.group_by, GroupByExpr::Expressions(vec![], vec![]));
        self.open.push(Open { aliases, group_by, having: select.having.take() });
        for item in &mut select.projection {
            match item {
                SelectItem::Wildcard(options) => self.excluded(options),
                SelectItem::QualifiedWildcard(kind, options) => {
                    if let SelectItemQualifiedWildcardKind::ObjectName(name) = kind {
                        self.qualifier(name.0.iter_mut().filter_map(|part| match part {
                            ObjectNamePart::Identifier(word) => Some(word),
                            ObjectNamePart::Function(_) => None,
                        }));
                    }
                    self.excluded(options);
                }
                _ => {}
            }
        }
        select.from.iter_mut().for_each(|from| self.using(from));
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        if let Some(Open { group_by, having, .. }) = self.open.pop() {
            (select.group_by, select.having) = (group_by, having);
        }
        VisitMut::visit(&mut select.group_by, self)?;
        VisitMut::visit(&mut select.having, self)
    }

    fn pre_visit_relation(&mut self, relation: &mut ObjectName) -> ControlFlow<()> {
        if std::mem::take(&mut self.is_function) {
            return ControlFlow::Continue(());
        }
        let words = parts(relation);
        let table = self.table(&words).map(|table| table.def());
        let lower = self.is_system(&words);
        for (place, part) in relation.0.iter_mut().rev().take(2).enumerate() {
            let ObjectNamePart::Identifier(word) = part else { continue };
            match table {
                Some(table) if place == 0 => word.value.clone_from(&table.name),
                Some(table) => word.value.clone_from(&table.database),
                None if lower && word.quote_style.is_none() => word.value.make_ascii_lowercase(),
                None => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let Some(parts) = latest::argument(factor) {
            self.is_function = true;
            let (database, name) = self.stored(&parts);
            latest::write(factor, &database, &name);
        }
        if let TableFactor::NestedJoin { table_with_joins, .. } = factor {
            self.using(table_with_joins);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(word) => self.column(word, None),
            Expr::CompoundIdentifier(words) => {
                if let Some((column, before)) = words.split_last_mut() {
                    self.qualifier(before.iter_mut());
                    self.column(column, before.last().map(|qualifier| qualifier.value.as_str()));
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use datafusion::sql::parser::DFParser;
    use sonde_engine::{
        CatalogRequest, ColumnRole, Engine, NewColumn, NewTable, Options, PhysicalType, TableKind,
        TableOptions,
    };

    use super::*;

    fn create(engine: &Engine, database: &str, name: &str, columns: &[&str]) {
        let column = |name: &&str| NewColumn {
            name: (*name).to_owned(),
            role: ColumnRole::Field,
            kind: PhysicalType::Float64,
        };
        let new = NewTable {
            database: database.into(),
            name: name.into(),
            kind: TableKind::Points,
            open: true,
            options: TableOptions::default(),
            columns: columns.iter().map(column).collect(),
        };
        engine.change_catalog(CatalogRequest::CreateTable(new)).unwrap();
    }

    #[test]
    fn words_are_written_as_stored_where_they_stand_for_what_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(Options::new(dir.path())).unwrap();
        create(&engine, "public", "Rooms", &["Name", "ROWS", "Temp"]);
        create(&engine, "public", "plain", &["v", "Temp", "x", "X"]);
        create(&engine, "Acme", "Plants", &["Height"]);
        let catalog = engine.catalog();
        for (sql, expected) in [
            // What devices send changes nothing for others.
            ("SELECT name, rows FROM system.tables", "SELECT name, rows FROM system.tables"),
            ("SELECT name FROM SYSTEM.Tables", "SELECT name FROM system.tables"),
            ("SELECT 1 AS name", "SELECT 1 AS name"),
            ("SELECT name FROM plain", "SELECT name FROM plain"),
            // One's own tables and columns.
            ("SELECT name FROM rooms", "SELECT Name FROM Rooms"),
            (r#"SELECT "name" FROM "Rooms""#, r#"SELECT "name" FROM "Rooms""#),
            (
                "SELECT ROOMS.TEMP, r.temp FROM rooms, rooms AS r",
                "SELECT Rooms.Temp, r.Temp FROM Rooms, Rooms AS r",
            ),
            ("SELECT x, X, V FROM plain", "SELECT x, X, v FROM plain"),
            ("SELECT height FROM acme.plants", "SELECT Height FROM Acme.Plants"),
            ("SELECT rooms.* FROM rooms", "SELECT Rooms.* FROM Rooms"),
            ("SELECT v FROM rooms JOIN plain USING (temp)", "SELECT v FROM Rooms JOIN plain USING(Temp)"),
            (
                "INSERT INTO rooms (time, NAME) VALUES ('x', 1)",
                "INSERT INTO Rooms (time, Name) VALUES ('x', 1)",
            ),
            ("EXPLAIN SELECT name FROM rooms", "EXPLAIN SELECT Name FROM Rooms"),
            // Names that the statement gives itself.
            (
                "WITH rooms AS (SELECT 1 AS name) SELECT name FROM rooms",
                "WITH rooms AS (SELECT 1 AS name) SELECT name FROM rooms",
            ),
            (
                "SELECT avg(temp) AS temp FROM rooms WHERE temp > 1 GROUP BY name HAVING temp > 2 ORDER BY temp",
                "SELECT avg(Temp) AS temp FROM Rooms WHERE Temp > 1 GROUP BY Name HAVING temp > 2 ORDER BY temp",
            ),
            (
                "SELECT temp + 1 AS NAME FROM rooms GROUP BY NAME",
                "SELECT Temp + 1 AS NAME FROM Rooms GROUP BY NAME",
            ),
            (
                "SELECT temp FROM (SELECT max(temp) AS temp FROM rooms) AS x",
                "SELECT temp FROM (SELECT max(Temp) AS temp FROM Rooms) AS x",
            ),
            ("SELECT name(1) FROM rooms", "SELECT name(1) FROM Rooms"),
            // A table that is a function's argument.
            ("SELECT TEMP FROM latest(rooms)", "SELECT Temp FROM latest('public', 'Rooms')"),
            (
                "SELECT l.height FROM LATEST('acme.plants') AS l",
                "SELECT l.Height FROM latest('Acme', 'Plants') AS l",
            ),
            (r#"SELECT v FROM latest("rooms")"#, "SELECT v FROM latest('public', 'rooms')"),
            ("SELECT Latest FROM latest", "SELECT Latest FROM latest"),
        ] {
            let mut statement = DFParser::parse_sql(sql).unwrap().pop_front().unwrap();
            write_as_stored(&mut statement, &catalog, "public");
            assert_eq!(statement.to_string(), expected);
        }
    }
}

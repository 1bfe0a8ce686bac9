//! Arrow Flight SQL: statements, prepared statements and metadata, as the ADBC driver asks for them.

use std::pin::Pin;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, UInt64Type};
use arrow::ipc::writer::IpcWriteOptions;
use arrow::record_batch::RecordBatch;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, Any, CommandGetCatalogs, CommandGetDbSchemas, CommandGetSqlInfo,
    CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo, CommandPreparedStatementQuery,
    CommandPreparedStatementUpdate, CommandStatementQuery, CommandStatementUpdate,
    DoPutPreparedStatementResult, ProstMessageExt, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{
    Action, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, IpcMessage, SchemaAsIpc, Ticket,
};
use bytes::Bytes;
use futures::{Stream, TryStreamExt, stream};
use prost::Message;
use sonde_access::{Action as Right, Principal, allows};
use sonde_engine::arrow_schema;
use tonic::{Request, Response, Status};

use crate::catalog::{CATALOG, DEFAULT_DATABASE, SYSTEM_DATABASE};
use crate::door::announce::{as_sent, nullable};
use crate::door::facts;
use crate::door::grpc::principal;
use crate::door::ipc::{self, Gathered};
use crate::door::prepared::{Prepared, PreparedStatements};
use crate::error::Error;
use crate::limits::GRPC_MESSAGE_BYTES;
use crate::permit::permit;
use crate::query_engine::QueryEngine;
use crate::statement::parse;

type GetStream = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send + 'static>>;
type Answered<T> = Result<Response<T>, Status>;

/// The service.
#[derive(Debug)]
pub struct FlightSql {
    query: QueryEngine,
    prepared: PreparedStatements,
}

/// The service, ready to be mounted.
#[must_use]
pub fn service(query: QueryEngine) -> FlightServiceServer<FlightSql> {
    FlightServiceServer::new(FlightSql { query, prepared: PreparedStatements::default() })
        .max_decoding_message_size(GRPC_MESSAGE_BYTES)
}

/// Who runs statements; whoever may neither read nor write is refused before anything is parsed or kept.
fn asker<T>(request: &Request<T>) -> Result<Arc<Principal>, Status> {
    let principal = principal(request)?;
    if allows(&principal, Right::Query) || allows(&principal, Right::Write) {
        return Ok(principal);
    }
    Err(Error::Denied(format!("{}: statements", principal.name)).to_status())
}

/// Fails unless the caller may read what there is.
fn check_reader<T>(request: &Request<T>) -> Result<(), Status> {
    permit(principal(request)?.as_ref(), Right::Query, "metadata").map_err(|error| error.to_status())
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

/// Where the rows are. A schema that is left out is the one that the rows come with.
fn info(ticket: &Any, schema: Option<SchemaRef>, descriptor: FlightDescriptor) -> Answered<FlightInfo> {
    let mut info = FlightInfo::new();
    if let Some(schema) = schema {
        info = info.try_with_schema(&as_sent(schema)).map_err(internal)?;
    }
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket.encode_to_vec()));
    Ok(Response::new(info.with_endpoint(endpoint).with_descriptor(descriptor)))
}

/// Where the rows of a metadata command are: the command itself is the ticket.
fn listed(command: &Any, schema: SchemaRef, request: Request<FlightDescriptor>) -> Answered<FlightInfo> {
    check_reader(&request)?;
    info(command, Some(schema), request.into_inner())
}

/// One batch as a stream.
fn one(schema: SchemaRef, batch: Result<RecordBatch, FlightError>) -> Answered<GetStream> {
    let encoder = FlightDataEncoderBuilder::new().with_schema(schema);
    Ok(Response::new(Box::pin(encoder.build(stream::once(async { batch })).map_err(Status::from))))
}

fn schema_ipc(schema: &Schema) -> Result<Bytes, Status> {
    let IpcMessage(bytes) =
        IpcMessage::try_from(SchemaAsIpc::new(schema, &IpcWriteOptions::default())).map_err(internal)?;
    Ok(bytes)
}

/// The rows of values that a DoPut carries, as an Arrow IPC stream; empty where it carries no column.
async fn parameters(request: Request<PeekableFlightDataStream>) -> Result<Vec<u8>, Status> {
    let mut messages = request.into_inner();
    let mut gathered = Gathered::default();
    while let Some(message) = messages.try_next().await? {
        gathered.push(&message.data_header, &message.data_body).map_err(|error| error.to_status())?;
    }
    let stream = gathered.into_stream();
    if stream.is_empty() {
        return Ok(stream);
    }
    let (schema, _) = ipc::decode(stream.clone()).map_err(|error| error.to_status())?;
    Ok(if schema.fields().is_empty() { Vec::new() } else { stream })
}

/// The one request of a statement whose rows are to be read.
fn only(mut requests: impl Iterator<Item = crate::Result<crate::Request>>) -> crate::Result<crate::Request> {
    match (requests.next(), requests.next()) {
        (Some(request), None) => request,
        (None, _) => Err(Error::Invalid("no row of parameters is bound".into())),
        (Some(_), Some(_)) => {
            Err(Error::Invalid("one row of parameters at a time can be bound to a query".into()))
        }
    }
}

/// The rows that an INSERT counted, which is its answer; 0 for the answers of other statements.
fn counted(batch: &RecordBatch) -> i64 {
    let count = batch.column_by_name("count").and_then(|column| column.as_primitive_opt::<UInt64Type>());
    count.filter(|count| count.len() == 1).map_or(0, |count| count.value(0) as i64)
}

/// What is known of a statement before it runs.
struct Description {
    rows: SchemaRef,
    parameters: Schema,
}

impl FlightSql {
    async fn describe(&self, sql: &str, principal: &Arc<Principal>) -> crate::Result<Description> {
        if parse(sql).is_ok_and(|statement| !statement.is_query()) {
            permit(principal, Right::Admin, "this statement needs an administrator's token")?;
        }
        let request = crate::Request::new(sql, Arc::clone(principal));
        let (schema, parameters) = self.query.describe(&request).await?;
        let field = |(place, kind): (usize, Option<DataType>)| {
            Field::new(format!("${}", place + 1), kind.unwrap_or(DataType::Null), true)
        };
        let parameters: Fields = parameters.into_iter().enumerate().map(field).collect();
        Ok(Description { rows: nullable(&schema), parameters: Schema::new(parameters) })
    }

    async fn stream(&self, request: crate::Request) -> Answered<GetStream> {
        let answer = self.query.run(request).await.map_err(|error| error.to_status())?;
        let answer = answer.started().await.map_err(|error| error.to_status())?;
        let schema = nullable(&answer.schema());
        let batches = stream::try_unfold(answer, |mut answer| async move {
            match answer.next().await {
                Some(Ok(batch)) => Ok(Some((batch, answer))),
                Some(Err(error)) => Err(FlightError::from(error.to_status())),
                None => Ok(None),
            }
        });
        // The encoder casts each batch to the schema that it is given.
        let encoder = FlightDataEncoderBuilder::new().with_schema(schema);
        Ok(Response::new(Box::pin(encoder.build(batches).map_err(Status::from))))
    }

    /// Runs a statement for its effect; the rows that an INSERT counted.
    async fn update(&self, request: crate::Request) -> crate::Result<i64> {
        let mut answer = self.query.run(request).await?;
        let mut rows = 0;
        while let Some(batch) = answer.next().await {
            rows += counted(&batch?);
        }
        Ok(rows)
    }

    /// Runs a statement for its effect with each row of values that is bound to it, in their order.
    async fn update_rows(&self, statement: Prepared, principal: Arc<Principal>) -> Result<i64, Status> {
        let mut rows = 0;
        for request in statement.requests(principal).map_err(|error| error.to_status())? {
            let updated = match request {
                Ok(request) => self.update(request).await,
                Err(error) => Err(error),
            };
            rows += updated.map_err(|error| after(rows, &error.to_status()))?;
        }
        Ok(rows)
    }
}

/// An error after some rows of values were stored, which a client must know.
fn after(rows: i64, status: &Status) -> Status {
    let text = status.message();
    let text = if rows == 0 { text.to_owned() } else { format!("{text}; {rows} rows before are stored") };
    Status::new(status.code(), text)
}

#[tonic::async_trait]
impl FlightSqlService for FlightSql {
    type FlightService = Self;

    async fn get_flight_info_statement(
        &self,
        command: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        let principal = asker(&request)?;
        let described = self.describe(&command.query, &principal).await.map_err(|error| error.to_status())?;
        let ticket = TicketStatementQuery { statement_handle: command.query.into_bytes().into() };
        info(&ticket.as_any(), Some(described.rows), request.into_inner())
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        let principal = asker(&request)?;
        let sql = std::str::from_utf8(&ticket.statement_handle);
        let sql = sql.map_err(|_| Status::invalid_argument("the ticket is none of this server's"))?;
        self.stream(crate::Request::new(sql, principal)).await
    }

    async fn do_put_statement_update(
        &self,
        command: CommandStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let request = crate::Request::new(command.query, asker(&request)?);
        self.update(request).await.map_err(|error| error.to_status())
    }

    async fn do_action_create_prepared_statement(
        &self,
        command: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let principal = asker(&request)?;
        let described = self.describe(&command.query, &principal).await.map_err(|error| error.to_status())?;
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: self.prepared.handle(&principal, Prepared::new(command.query))?,
            dataset_schema: schema_ipc(&as_sent(described.rows))?,
            parameter_schema: schema_ipc(&described.parameters)?,
        })
    }

    async fn do_put_prepared_statement_query(
        &self,
        command: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let principal = asker(&request)?;
        let handle = command.prepared_statement_handle;
        let mut statement = self.prepared.find(&principal, &handle)?;
        statement.parameters = parameters(request).await?;
        let handle = self.prepared.replace(&principal, &handle, statement)?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) })
    }

    async fn do_put_prepared_statement_update(
        &self,
        command: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let principal = asker(&request)?;
        let mut statement = self.prepared.find(&principal, &command.prepared_statement_handle)?;
        // The values come with the call, or were bound to the handle by an earlier one.
        let parameters = parameters(request).await?;
        if !parameters.is_empty() {
            statement.parameters = parameters;
        }
        self.update_rows(statement, principal).await
    }

    async fn get_flight_info_prepared_statement(
        &self,
        command: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        let principal = asker(&request)?;
        let statement = self.prepared.find(&principal, &command.prepared_statement_handle)?;
        let described = self.describe(&statement.sql, &principal).await.map_err(|error| error.to_status())?;
        // The types of values that are bound may change the types of columns.
        let schema = statement.parameters.is_empty().then_some(described.rows);
        info(&command.as_any(), schema, request.into_inner())
    }

    async fn do_get_prepared_statement(
        &self,
        command: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        let principal = asker(&request)?;
        let statement = self.prepared.find(&principal, &command.prepared_statement_handle)?;
        let request = statement.requests(principal).and_then(only).map_err(|error| error.to_status())?;
        self.stream(request).await
    }

    async fn do_action_close_prepared_statement(
        &self,
        command: ActionClosePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<(), Status> {
        self.prepared.close(principal(&request)?.as_ref(), &command.prepared_statement_handle)
    }

    async fn get_flight_info_catalogs(
        &self,
        command: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        listed(&command.as_any(), command.into_builder().schema(), request)
    }

    async fn do_get_catalogs(
        &self,
        command: CommandGetCatalogs,
        request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        check_reader(&request)?;
        let mut catalogs = command.into_builder();
        catalogs.append(CATALOG);
        one(catalogs.schema(), catalogs.build())
    }

    async fn get_flight_info_schemas(
        &self,
        command: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        listed(&command.as_any(), command.into_builder().schema(), request)
    }

    async fn do_get_schemas(
        &self,
        command: CommandGetDbSchemas,
        request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        check_reader(&request)?;
        let mut schemas = command.into_builder();
        let catalog = self.query.engine().catalog();
        let mut names: Vec<&str> = catalog.tables().map(|table| table.def().database.as_str()).collect();
        names.extend([DEFAULT_DATABASE, SYSTEM_DATABASE]);
        names.sort_unstable();
        names.dedup();
        names.into_iter().for_each(|name| schemas.append(CATALOG, name));
        one(schemas.schema(), schemas.build())
    }

    async fn get_flight_info_tables(
        &self,
        command: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        listed(&command.as_any(), command.into_builder().schema(), request)
    }

    async fn do_get_tables(
        &self,
        command: CommandGetTables,
        request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        check_reader(&request)?;
        let mut tables = command.into_builder();
        for table in self.query.engine().catalog().tables() {
            let columns: Vec<_> = table.def().columns.iter().map(|column| column.id).collect();
            let schema = arrow_schema(table, &columns);
            tables
                .append(CATALOG, &table.def().database, &table.def().name, "TABLE", &schema)
                .map_err(Status::from)?;
        }
        one(tables.schema(), tables.build())
    }

    async fn get_flight_info_table_types(
        &self,
        command: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        listed(&command.as_any(), command.into_builder().schema(), request)
    }

    async fn do_get_table_types(
        &self,
        command: CommandGetTableTypes,
        request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        check_reader(&request)?;
        let mut types = command.into_builder();
        types.append("TABLE");
        one(types.schema(), types.build())
    }

    async fn get_flight_info_sql_info(
        &self,
        command: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        listed(&command.as_any(), command.into_builder(facts::sql_info()?).schema(), request)
    }

    async fn do_get_sql_info(
        &self,
        command: CommandGetSqlInfo,
        request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        check_reader(&request)?;
        let infos = command.into_builder(facts::sql_info()?);
        one(infos.schema(), infos.build())
    }

    async fn get_flight_info_xdbc_type_info(
        &self,
        command: CommandGetXdbcTypeInfo,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        listed(&command.as_any(), command.into_builder(facts::types()?).schema(), request)
    }

    async fn do_get_xdbc_type_info(
        &self,
        command: CommandGetXdbcTypeInfo,
        request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        check_reader(&request)?;
        let types = command.into_builder(facts::types()?);
        one(types.schema(), types.build())
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}

//! Arrow Flight SQL: statements, prepared statements and metadata, as the ADBC driver asks for them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Field, Int64Type, Schema, SchemaRef};
use arrow::ipc::writer::IpcWriteOptions;
use arrow::record_batch::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::metadata::{
    SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder,
};
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, CommandGetCatalogs, CommandGetDbSchemas, CommandGetSqlInfo,
    CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo, CommandPreparedStatementQuery,
    CommandPreparedStatementUpdate, CommandStatementQuery, CommandStatementUpdate,
    DoPutPreparedStatementResult, Nullable, ProstMessageExt, Searchable, SqlInfo, SqlSupportedTransaction,
    TicketStatementQuery, XdbcDataType,
};
use arrow_flight::{
    Action, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, IpcMessage, SchemaAsIpc, Ticket,
};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use futures::{Stream, TryStreamExt, stream};
use parking_lot::Mutex;
use prost::Message;
use sonde_access::Principal;
use sonde_engine::arrow_schema;
use tonic::{Request, Response, Status};

use crate::context::{self, CATALOG, DEFAULT_DATABASE, QueryEngine, SYSTEM_DATABASE};
use crate::door::grpc::principal;
use crate::limits::{GRPC_MESSAGE_BYTES, PREPARED_STATEMENTS};

type GetStream = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send + 'static>>;
type Answered<T> = Result<Response<T>, Status>;

/// The service.
#[derive(Debug)]
pub struct FlightSql {
    query: QueryEngine,
    prepared: Mutex<BTreeMap<Vec<u8>, Prepared>>,
}

/// A prepared statement and the values bound to it last.
#[derive(Clone, Debug)]
struct Prepared {
    sql: String,
    parameters: Vec<ScalarValue>,
}

/// The service, ready to be mounted.
#[must_use]
pub fn service(query: QueryEngine) -> FlightServiceServer<FlightSql> {
    FlightServiceServer::new(FlightSql { query, prepared: Mutex::default() })
        .max_decoding_message_size(GRPC_MESSAGE_BYTES)
}

static SQL_INFO: LazyLock<Result<SqlInfoData, FlightError>> = LazyLock::new(|| {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "SondeDB");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    info.append(SqlInfo::FlightSqlServerReadOnly, false);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    info.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    info.append(SqlInfo::FlightSqlServerCancel, false);
    info.append(SqlInfo::FlightSqlServerBulkIngestion, false);
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    info.build()
});

static TYPES: LazyLock<Result<XdbcTypeInfoData, FlightError>> = LazyLock::new(|| {
    let mut types = XdbcTypeInfoDataBuilder::new();
    for (name, kind, size) in [
        ("BIGINT", XdbcDataType::XdbcBigint, 64),
        ("BOOLEAN", XdbcDataType::XdbcBit, 1),
        ("DOUBLE", XdbcDataType::XdbcDouble, 64),
        ("STRING", XdbcDataType::XdbcVarchar, 0),
        ("TIMESTAMP", XdbcDataType::XdbcTimestamp, 64),
    ] {
        types.append(XdbcTypeInfo {
            type_name: name.into(),
            data_type: kind,
            sql_data_type: kind,
            column_size: (size > 0).then_some(size),
            nullable: Nullable::NullabilityNullable,
            searchable: Searchable::Full,
            local_type_name: Some(name.into()),
            ..XdbcTypeInfo::default()
        });
    }
    types.build()
});

fn built<T>(data: &'static LazyLock<Result<T, FlightError>>) -> Result<&'static T, Status> {
    data.as_ref().map_err(|error| Status::internal(error.to_string()))
}

fn info(ticket: Vec<u8>, schema: &Schema, descriptor: FlightDescriptor) -> Answered<FlightInfo> {
    let info =
        FlightInfo::new().try_with_schema(schema).map_err(|error| Status::internal(error.to_string()))?;
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket));
    Ok(Response::new(info.with_endpoint(endpoint).with_descriptor(descriptor)))
}

/// One batch as a stream.
fn one(schema: SchemaRef, batch: Result<RecordBatch, FlightError>) -> Answered<GetStream> {
    let encoder = FlightDataEncoderBuilder::new().with_schema(schema);
    Ok(Response::new(Box::pin(encoder.build(stream::once(async { batch })).map_err(Status::from))))
}

fn schema_ipc(schema: &Schema) -> Result<Bytes, Status> {
    let IpcMessage(bytes) = IpcMessage::try_from(SchemaAsIpc::new(schema, &IpcWriteOptions::default()))
        .map_err(|error| Status::internal(error.to_string()))?;
    Ok(bytes)
}

impl FlightSql {
    fn request(sql: &str, parameters: Vec<ScalarValue>, principal: Arc<Principal>) -> context::Request {
        let mut request = context::Request::new(sql, principal);
        request.parameters = parameters;
        request
    }

    async fn describe(&self, sql: &str, principal: Arc<Principal>) -> Result<(SchemaRef, Schema), Status> {
        let request = Self::request(sql, Vec::new(), principal);
        let (schema, parameters) = self.query.describe(&request).await.map_err(|error| error.to_status())?;
        let field = |(i, kind): (usize, Option<arrow::datatypes::DataType>)| {
            Field::new(format!("${}", i + 1), kind.unwrap_or(arrow::datatypes::DataType::Null), true)
        };
        let parameters: Vec<Field> = parameters.into_iter().enumerate().map(field).collect();
        Ok((schema, Schema::new(parameters)))
    }

    async fn stream(&self, request: context::Request) -> Answered<GetStream> {
        let answer = self.query.run(request).await.map_err(|error| error.to_status())?;
        let answer = answer.started().await.map_err(|error| error.to_status())?;
        let schema = answer.schema();
        let batches = stream::try_unfold(answer, |mut answer| async move {
            match answer.next().await {
                Some(Ok(batch)) => Ok(Some((batch, answer))),
                Some(Err(error)) => Err(FlightError::from(error.to_status())),
                None => Ok(None),
            }
        });
        let encoder = FlightDataEncoderBuilder::new().with_schema(schema);
        Ok(Response::new(Box::pin(encoder.build(batches).map_err(Status::from))))
    }

    /// Runs a statement for its effect; the rows that an INSERT counted.
    async fn update(&self, request: context::Request) -> Result<i64, Status> {
        let answer = self.query.run(request).await.map_err(|error| error.to_status())?;
        let batches = answer.collect().await.map_err(|error| error.to_status())?;
        let count = batches.first().and_then(|batch| batch.columns().first()).and_then(|column| {
            let counted = arrow::compute::cast(column, &arrow::datatypes::DataType::Int64).ok()?;
            let counted = counted.as_primitive_opt::<Int64Type>()?;
            (counted.len() == 1 && counted.is_valid(0)).then(|| counted.value(0))
        });
        Ok(count.unwrap_or_default())
    }

    fn prepared(&self, handle: &[u8]) -> Result<Prepared, Status> {
        let prepared = self.prepared.lock().get(handle).cloned();
        prepared.ok_or_else(|| Status::not_found("the prepared statement is closed, or there never was one"))
    }
}

#[tonic::async_trait]
impl FlightSqlService for FlightSql {
    type FlightService = Self;

    async fn get_flight_info_statement(
        &self,
        command: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        let (schema, _) = self.describe(&command.query, principal(&request)?).await?;
        let ticket = TicketStatementQuery { statement_handle: command.query.into_bytes().into() };
        info(ticket.as_any().encode_to_vec(), &schema, request.into_inner())
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        let sql = std::str::from_utf8(&ticket.statement_handle);
        let sql = sql.map_err(|_| Status::invalid_argument("the ticket is none of this server's"))?;
        self.stream(Self::request(sql, Vec::new(), principal(&request)?)).await
    }

    async fn do_put_statement_update(
        &self,
        command: CommandStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        self.update(Self::request(&command.query, Vec::new(), principal(&request)?)).await
    }

    async fn do_action_create_prepared_statement(
        &self,
        command: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let (schema, parameters) = self.describe(&command.query, principal(&request)?).await?;
        let handle = uuid::Uuid::new_v4().into_bytes().to_vec();
        let mut prepared = self.prepared.lock();
        if prepared.len() >= PREPARED_STATEMENTS {
            let text = format!("{PREPARED_STATEMENTS} prepared statements are open; close some");
            return Err(Status::resource_exhausted(text));
        }
        prepared.insert(handle.clone(), Prepared { sql: command.query, parameters: Vec::new() });
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle.into(),
            dataset_schema: schema_ipc(&schema)?,
            parameter_schema: schema_ipc(&parameters)?,
        })
    }

    async fn do_put_prepared_statement_query(
        &self,
        command: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let handle = command.prepared_statement_handle;
        let flight = request.into_inner().map_err(FlightError::from);
        let mut batches = FlightRecordBatchStream::new_from_flight_data(flight);
        let mut bound: Option<Vec<ScalarValue>> = None;
        while let Some(batch) = batches.try_next().await.map_err(Status::from)? {
            if batch.num_rows() + usize::from(bound.is_some()) > 1 {
                return Err(Status::invalid_argument(
                    "one row of parameters at a time can be bound to a query",
                ));
            }
            if batch.num_rows() == 1 {
                let values = batch.columns().iter().map(|column| ScalarValue::try_from_array(column, 0));
                bound = Some(
                    values.collect::<Result<_, _>>().map_err(|error| Status::internal(error.to_string()))?,
                );
            }
        }
        let mut prepared = self.prepared.lock();
        let Some(statement) = prepared.get_mut(handle.as_ref()) else {
            return Err(Status::not_found("the prepared statement is closed, or there never was one"));
        };
        statement.parameters = bound.unwrap_or_default();
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) })
    }

    async fn do_put_prepared_statement_update(
        &self,
        command: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let prepared = self.prepared(&command.prepared_statement_handle)?;
        self.update(Self::request(&prepared.sql, prepared.parameters, principal(&request)?)).await
    }

    async fn get_flight_info_prepared_statement(
        &self,
        command: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        let prepared = self.prepared(&command.prepared_statement_handle)?;
        let (schema, _) = self.describe(&prepared.sql, principal(&request)?).await?;
        info(command.as_any().encode_to_vec(), &schema, request.into_inner())
    }

    async fn do_get_prepared_statement(
        &self,
        command: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        let prepared = self.prepared(&command.prepared_statement_handle)?;
        self.stream(Self::request(&prepared.sql, prepared.parameters, principal(&request)?)).await
    }

    async fn do_action_close_prepared_statement(
        &self,
        command: ActionClosePreparedStatementRequest,
        _request: Request<Action>,
    ) -> Result<(), Status> {
        self.prepared.lock().remove(command.prepared_statement_handle.as_ref());
        Ok(())
    }

    async fn get_flight_info_catalogs(
        &self,
        command: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        info(command.as_any().encode_to_vec(), &command.into_builder().schema(), request.into_inner())
    }

    async fn do_get_catalogs(
        &self,
        command: CommandGetCatalogs,
        _request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        let mut catalogs = command.into_builder();
        catalogs.append(CATALOG);
        one(catalogs.schema(), catalogs.build())
    }

    async fn get_flight_info_schemas(
        &self,
        command: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        info(command.as_any().encode_to_vec(), &command.into_builder().schema(), request.into_inner())
    }

    async fn do_get_schemas(
        &self,
        command: CommandGetDbSchemas,
        _request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
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
        info(command.as_any().encode_to_vec(), &command.into_builder().schema(), request.into_inner())
    }

    async fn do_get_tables(
        &self,
        command: CommandGetTables,
        _request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
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
        info(command.as_any().encode_to_vec(), &command.into_builder().schema(), request.into_inner())
    }

    async fn do_get_table_types(
        &self,
        command: CommandGetTableTypes,
        _request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        let mut types = command.into_builder();
        types.append("TABLE");
        one(types.schema(), types.build())
    }

    async fn get_flight_info_sql_info(
        &self,
        command: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        let ticket = command.as_any().encode_to_vec();
        info(ticket, &command.into_builder(built(&SQL_INFO)?).schema(), request.into_inner())
    }

    async fn do_get_sql_info(
        &self,
        command: CommandGetSqlInfo,
        _request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        let infos = command.into_builder(built(&SQL_INFO)?);
        one(infos.schema(), infos.build())
    }

    async fn get_flight_info_xdbc_type_info(
        &self,
        command: CommandGetXdbcTypeInfo,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        let ticket = command.as_any().encode_to_vec();
        info(ticket, &command.into_builder(built(&TYPES)?).schema(), request.into_inner())
    }

    async fn do_get_xdbc_type_info(
        &self,
        command: CommandGetXdbcTypeInfo,
        _request: Request<Ticket>,
    ) -> Answered<<Self as FlightService>::DoGetStream> {
        let types = command.into_builder(built(&TYPES)?);
        one(types.schema(), types.build())
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}

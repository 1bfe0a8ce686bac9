//! What Flight SQL tells of the server: what it can do, and the types that columns have.

use std::sync::LazyLock;

use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{
    SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder,
};
use arrow_flight::sql::{Nullable, Searchable, SqlInfo, SqlSupportedTransaction, XdbcDataType};
use tonic::Status;

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

/// What the server can do.
pub(super) fn sql_info() -> Result<&'static SqlInfoData, Status> {
    built(&SQL_INFO)
}

/// The types that columns have.
pub(super) fn types() -> Result<&'static XdbcTypeInfoData, Status> {
    built(&TYPES)
}

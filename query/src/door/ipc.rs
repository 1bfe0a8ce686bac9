//! Arrow IPC that comes from outside, decoded without believing a length that it declares.
//!
//! # Invariants
//! - Nothing reaches arrow before every declared length was found to lie within the bytes that are there.
//! - What the bytes become, decompressed and with dictionaries written out, is bounded before it is allocated.
//! - arrow may panic on what it did not expect; that is an error of the stream and ends nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::{Array, AsArray, UInt64Array};
use arrow::buffer::Buffer;
use arrow::compute::{sum, take};
use arrow::datatypes::{DataType, SchemaRef, UInt64Type};
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::{self, CompressionType, MessageHeader, root_as_message};
use arrow::record_batch::RecordBatch;

use crate::error::{Error, Result};
use crate::limits::{GRPC_MESSAGE_BYTES, IPC_DECODED_BYTES, IPC_FIELDS};

/// Opens each message of a stream, before the length of its header.
const CONTINUATION: [u8; 4] = [0xff; 4];
/// Ends a stream: a message without a header.
const END: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
/// Where headers and bodies begin, in bytes.
const ALIGNMENT: usize = 8;

const CUT: &str = "it ends within a message";

type Decoded = (SchemaRef, Vec<RecordBatch>);

/// The schema and the batches of an Arrow IPC stream.
pub fn decode(stream: Vec<u8>) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    decode_checked(stream).map_err(|reason| Error::Invalid(format!("the Arrow IPC stream: {reason}")))
}

fn decode_checked(mut stream: Vec<u8>) -> Result<Decoded, String> {
    if !check(&stream)? {
        // The end mark may be missing; without one the decoder does not look at a last message that has no body.
        stream.extend_from_slice(&END);
    }
    match catch_unwind(AssertUnwindSafe(|| decode_messages(stream))) {
        Ok(decoded) => decoded,
        Err(_) => Err("a message is damaged".into()),
    }
}

fn decode_messages(stream: Vec<u8>) -> Result<Decoded, String> {
    let mut rest = Buffer::from(stream);
    let mut decoder = StreamDecoder::new();
    let mut batches = Vec::new();
    let mut bytes = 0_u64;
    while !rest.is_empty() {
        if let Some(batch) = decoder.decode(&mut rest).map_err(|error| error.to_string())? {
            bytes = bytes.saturating_add(plain_bytes(&batch));
            bound(bytes)?;
            batches.push(batch);
        }
    }
    decoder.finish().map_err(|error| error.to_string())?;
    let schema = decoder.schema().ok_or("it has no schema")?;
    Ok((schema, batches))
}

fn bound(bytes: u64) -> Result<(), String> {
    if bytes > IPC_DECODED_BYTES {
        return Err(format!("it is longer than {IPC_DECODED_BYTES} bytes once decoded; send it in parts"));
    }
    Ok(())
}

/// A message: its header, and the bytes behind it.
struct Frame<'a> {
    header: &'a [u8],
    message: ipc::Message<'a>,
    body: &'a [u8],
}

/// Fails unless all lengths lie within the stream and its limits. Says whether the stream has its end mark.
fn check(stream: &[u8]) -> Result<bool, String> {
    let mut rest = stream;
    let (mut bytes, mut dictionaries) = (0_u64, 0_u64);
    while !rest.is_empty() {
        let Some(frame) = next_frame(&mut rest)? else {
            return if rest.is_empty() { Ok(true) } else { Err("bytes follow its end".into()) };
        };
        let decoded = decoded_bytes(&frame)?;
        bytes = bytes.saturating_add(decoded);
        if let Some(dictionary) = frame.message.header_as_dictionary_batch() {
            // What is added to a dictionary has all of it copied.
            bytes = bytes.saturating_add(if dictionary.isDelta() { dictionaries } else { 0 });
            dictionaries = dictionaries.saturating_add(decoded);
        }
        bound(bytes)?;
    }
    Ok(false)
}

/// Takes the next message; `None` at the end mark.
fn next_frame<'a>(rest: &mut &'a [u8]) -> Result<Option<Frame<'a>>, String> {
    let (mut length, mut behind) = rest.split_first_chunk::<4>().ok_or(CUT)?;
    if *length == CONTINUATION {
        (length, behind) = behind.split_first_chunk::<4>().ok_or(CUT)?;
    }
    let length = declared(i32::from_le_bytes(*length).into())?;
    if length == 0 {
        *rest = behind;
        return Ok(None);
    }
    let (header, behind) = behind.split_at_checked(length).ok_or(CUT)?;
    let message = root_as_message(header).map_err(|_| "the header of a message is damaged")?;
    let (body, behind) = behind.split_at_checked(declared(message.bodyLength())?).ok_or(CUT)?;
    *rest = behind;
    Ok(Some(Frame { header, message, body }))
}

fn declared(length: i64) -> Result<usize, String> {
    usize::try_from(length).map_err(|_| "a message declares a negative length".into())
}

/// The bytes that the buffers of a message become, all of which must lie within its body.
fn decoded_bytes(frame: &Frame<'_>) -> Result<u64, String> {
    let message = &frame.message;
    let batch = match message.header_type() {
        MessageHeader::Schema => return check_schema(frame).map(|()| 0),
        MessageHeader::RecordBatch => message.header_as_record_batch(),
        MessageHeader::DictionaryBatch => message.header_as_dictionary_batch().and_then(|batch| batch.data()),
        _ => None,
    };
    let batch = batch.ok_or("a message is neither a schema nor a batch")?;
    let codec = batch.compression().map(|compression| compression.codec());
    let (mut there, mut decoded) = (0_usize, 0_u64);
    for buffer in batch.buffers().into_iter().flatten() {
        let (start, length) = (declared(buffer.offset())?, declared(buffer.length())?);
        let bytes = frame.body.get(start..).and_then(|bytes| bytes.get(..length));
        let bytes = bytes.ok_or("a buffer lies beyond the body of its message")?;
        there = there.saturating_add(length);
        decoded = decoded.saturating_add(buffer_bytes(codec, bytes)?);
    }
    // A column may be copied to where its type wants it, so that shared bytes would be copied for each of its columns.
    if there > frame.body.len() {
        return Err("the buffers of a message overlap".into());
    }
    Ok(decoded)
}

/// The bytes that a buffer becomes: a compressed one opens with how many they are, or -1 where it is not compressed.
fn buffer_bytes(codec: Option<CompressionType>, bytes: &[u8]) -> Result<u64, String> {
    let (Some(codec), Some((length, packed))) = (codec, bytes.split_first_chunk::<8>()) else {
        return Ok(bytes.len() as u64);
    };
    let length = match i64::from_le_bytes(*length) {
        -1 => return Ok(packed.len() as u64),
        length => declared(length)? as u64,
    };
    // zstd stops at the declared length; the decoder of LZ4 goes on for as long as there are blocks.
    if codec == CompressionType::LZ4_FRAME && length > 0 {
        return Ok(lz4_bytes(packed).ok_or("an LZ4 buffer is damaged")?.max(length));
    }
    Ok(length)
}

/// The most bytes that an LZ4 frame can become: its blocks are no longer than its descriptor says, and one byte of a
/// block makes 255 at most. `None` where it is no LZ4 frame.
fn lz4_bytes(frame: &[u8]) -> Option<u64> {
    const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
    const NOT_COMPRESSED: u32 = 1 << 31;
    let rest = frame.strip_prefix(&MAGIC)?;
    let (&[flags, sizes], rest) = rest.split_first_chunk::<2>()?;
    let block = match sizes >> 4 {
        4 => 64_u64 << 10,
        5 => 256 << 10,
        6 => 1 << 20,
        7 => 4 << 20,
        _ => return None,
    };
    let optional = |flag: u8, length: usize| if flags & flag == 0 { 0 } else { length };
    // Behind the descriptor: the content's length, the dictionary's number, the descriptor's checksum.
    let mut rest = rest.get(optional(0x08, 8) + optional(0x01, 4) + 1..)?;
    let checksum = optional(0x10, 4);
    let mut bytes = 0_u64;
    while let Some((size, behind)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size);
        if size == 0 {
            break;
        }
        let length = u64::from(size & !NOT_COMPRESSED);
        bytes += if size & NOT_COMPRESSED == 0 { (255 * length).min(block) } else { length };
        rest = behind.get(length as usize + checksum..)?;
    }
    Some(bytes)
}

/// What a schema takes once its fields are written out one by one.
#[derive(Default)]
struct SchemaSize {
    fields: usize,
    texts: usize,
}

impl SchemaSize {
    fn add(&mut self, field: ipc::Field<'_>) {
        let zone = field.type_as_timestamp().and_then(|kind| kind.timezone());
        self.fields += 1;
        self.texts += field.name().map_or(0, str::len) + zone.map_or(0, str::len);
        self.add_pairs(field.custom_metadata().into_iter().flatten());
        for child in field.children().into_iter().flatten() {
            self.add(child);
        }
    }

    fn add_pairs<'a>(&mut self, pairs: impl Iterator<Item = ipc::KeyValue<'a>>) {
        for pair in pairs {
            self.texts += pair.key().map_or(0, str::len) + pair.value().map_or(0, str::len);
        }
    }
}

/// Fails where a schema is larger than its header, many of its fields sharing one text, or has too many fields. That
/// fields lie inside each other in bounds was found when the header was read.
fn check_schema(frame: &Frame<'_>) -> Result<(), String> {
    let schema = frame.message.header_as_schema().ok_or("a schema is damaged")?;
    let mut size = SchemaSize::default();
    size.add_pairs(schema.custom_metadata().into_iter().flatten());
    for field in schema.fields().into_iter().flatten() {
        size.add(field);
    }
    if size.fields > IPC_FIELDS {
        return Err(format!("its schema has {} fields, the limit is {IPC_FIELDS}", size.fields));
    }
    if size.texts > frame.header.len() {
        return Err("its schema is longer than the message that it came in".into());
    }
    Ok(())
}

/// The bytes of a batch as plain columns, eight for the time of a row and for each value. Nulls take no bytes on their
/// way, and dictionaries and views may name one long text for every row.
fn plain_bytes(batch: &RecordBatch) -> u64 {
    let values = (batch.num_rows() as u64).saturating_mul(batch.num_columns() as u64 + 1);
    let texts = batch.columns().iter().map(|column| shared_text_bytes(column.as_ref()));
    texts.fold(values.saturating_mul(8), u64::saturating_add)
}

/// The bytes of texts that a column names more often than it has them.
fn shared_text_bytes(column: &dyn Array) -> u64 {
    match column.as_any_dictionary_opt() {
        Some(dictionary) => {
            let lengths = UInt64Array::from(text_lengths(dictionary.values().as_ref()));
            if lengths.is_empty() {
                return 0;
            }
            // There is a key for every row within the message, so the sum does not wrap. What cannot be counted is too
            // much.
            let of_rows = take(&lengths, dictionary.keys(), None);
            of_rows.map_or(u64::MAX, |lengths| sum(lengths.as_primitive::<UInt64Type>()).unwrap_or_default())
        }
        None if *column.data_type() == DataType::Utf8View => {
            text_lengths(column).into_iter().fold(0, u64::saturating_add)
        }
        None => 0,
    }
}

/// The lengths of the texts of a column; none where it holds no text.
fn text_lengths(column: &dyn Array) -> Vec<u64> {
    match column.data_type() {
        DataType::Utf8 => lengths_of(column.as_string::<i32>().offsets().lengths()),
        DataType::LargeUtf8 => lengths_of(column.as_string::<i64>().offsets().lengths()),
        DataType::Utf8View => column.as_string_view().lengths().map(u64::from).collect(),
        _ => Vec::new(),
    }
}

fn lengths_of(lengths: impl Iterator<Item = usize>) -> Vec<u64> {
    lengths.map(|length| length as u64).collect()
}

/// The messages of a Flight stream, gathered into one Arrow IPC stream.
#[derive(Debug, Default)]
pub(crate) struct Gathered(Vec<u8>);

impl Gathered {
    /// Adds a message. One without a header carries nothing but a command, and adds nothing.
    pub(crate) fn push(&mut self, header: &[u8], body: &[u8]) -> Result<()> {
        if header.is_empty() {
            return Ok(());
        }
        let padded = header.len().next_multiple_of(ALIGNMENT);
        let too_long =
            || Error::Invalid(format!("the parameters are longer than {GRPC_MESSAGE_BYTES} bytes"));
        if self.0.len() + padded + body.len() > GRPC_MESSAGE_BYTES {
            return Err(too_long());
        }
        let length = i32::try_from(padded).map_err(|_| too_long())?;
        self.0.extend_from_slice(&CONTINUATION);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(header);
        self.0.resize(self.0.len() + padded - header.len(), 0);
        self.0.extend_from_slice(body);
        Ok(())
    }

    /// The stream; empty where no message was added.
    pub(crate) fn into_stream(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, DictionaryArray, Float64Array, Int32Array, NullArray, StringArray};
    use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};

    use super::*;

    fn batch() -> RecordBatch {
        let keys = Int32Array::from(vec![Some(0), None, Some(1)]);
        let columns: [(&str, ArrayRef); 4] = [
            ("value", Arc::new(Float64Array::from(vec![Some(1.5), None, Some(2.5)]))),
            ("text", Arc::new(StringArray::from(vec!["a", "", "ccc"]))),
            ("tag", Arc::new(DictionaryArray::new(keys, Arc::new(StringArray::from(vec!["x", "y"]))))),
            ("none", Arc::new(NullArray::new(3))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn stream(batch: &RecordBatch, compression: Option<CompressionType>) -> Vec<u8> {
        let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
        let mut writer = StreamWriter::try_new_with_options(Vec::new(), batch.schema_ref(), options).unwrap();
        writer.write(batch).unwrap();
        writer.into_inner().unwrap()
    }

    const CODECS: [Option<CompressionType>; 3] =
        [None, Some(CompressionType::ZSTD), Some(CompressionType::LZ4_FRAME)];

    #[test]
    fn what_was_written_is_read_with_and_without_an_end() {
        let long = RecordBatch::try_from_iter([(
            "text",
            Arc::new(StringArray::from(vec!["the same text again and again"; 10_000])) as ArrayRef,
        )])
        .unwrap();
        for (batch, codec) in [batch(), long].iter().flat_map(|batch| CODECS.map(|codec| (batch, codec))) {
            let mut bytes = stream(batch, codec);
            assert_eq!(decode(bytes.clone()).unwrap().1, std::slice::from_ref(batch));
            bytes.truncate(bytes.len() - END.len());
            assert_eq!(decode(bytes).unwrap().1, std::slice::from_ref(batch));
        }
    }

    #[test]
    fn no_flipped_bit_and_no_cut_ends_the_process() {
        for codec in CODECS {
            let bytes = stream(&batch(), codec);
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                *flipped.get_mut(bit / 8).unwrap() ^= 1 << (bit % 8);
                drop(decode(flipped));
            }
            for length in 0..bytes.len() - END.len() {
                let cut = bytes.get(..length).unwrap().to_vec();
                let decoded = decode(cut);
                assert!(decoded.map_or(true, |(_, batches)| batches.is_empty()), "{length} bytes");
            }
        }
    }

    #[test]
    fn rows_without_bytes_are_bounded() {
        let nulls = |rows| RecordBatch::try_from_iter([("none", Arc::new(NullArray::new(rows)) as ArrayRef)]);
        assert!(decode(stream(&nulls(1000).unwrap(), None)).is_ok());
        assert!(decode(stream(&nulls(1 << 40).unwrap(), None)).is_err());
    }

    #[test]
    fn a_text_that_every_row_names_is_counted_for_each() {
        let keys = Int32Array::from(vec![0; 1 << 16]);
        let text = Arc::new(StringArray::from(vec!["x".repeat(1 << 16)]));
        let column = Arc::new(DictionaryArray::new(keys, text)) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("tag", column)]).unwrap();
        assert!(decode(stream(&batch, None)).is_err());
    }

    #[test]
    fn messages_of_flight_make_a_stream() {
        let bytes = stream(&batch(), None);
        let (mut rest, mut gathered) = (bytes.as_slice(), Gathered::default());
        gathered.push(&[], &[]).unwrap();
        while let Some(frame) = next_frame(&mut rest).unwrap() {
            gathered.push(frame.header, frame.body).unwrap();
        }
        assert_eq!(decode(gathered.into_stream()).unwrap().1, [batch()]);
        assert!(Gathered::default().into_stream().is_empty());
    }
}

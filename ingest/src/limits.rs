//! Named limits of ingest.

use std::time::Duration;

/// Bytes of an MQTT packet.
pub const PACKET_BYTES: usize = 1 << 20;
/// Bytes of the largest packet that is written, whatever its client takes: what the length of a packet can say (MQTT 5,
/// 1.5.5), less the properties that a delivery adds to its message's.
pub const LARGEST_PACKET: usize = (1 << 28) - (64 << 10);
/// Bytes of the packet before CONNECT is done.
pub const CONNECT_BYTES: usize = 64 << 10;
/// Bytes of a client id.
pub const CLIENT_ID_BYTES: usize = 1024;
/// How long a client may take to CONNECT.
pub const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long a client whose CONNECT has come may wait until it is known who it is: others' passwords may come first.
pub const RECOGNISE_TIME: Duration = Duration::from_secs(60);
/// QoS 1 and 2 messages that a client may have in flight to us.
pub const RECEIVE_MAXIMUM: u16 = 1024;
/// QoS 1 and 2 messages that we have in flight to a client.
pub const SEND_MAXIMUM: usize = 4096;
/// Messages that wait for a session, unless the configuration says otherwise.
pub const QUEUED_MESSAGES: usize = 10_000;
/// Bytes of messages that wait for a session, unless the configuration says otherwise.
pub const QUEUED_BYTES: usize = 64 << 20;
/// Bytes of messages that wait for all sessions together, each counted for every session that it waits for.
pub const QUEUED_BYTES_OF_ALL: u64 = 16 << 30;
/// Messages of a connected session that stay in memory after their commit; more are read from the log.
pub const LIVE_MESSAGES: usize = 1024;
/// Messages that wait for a session before it is pumped at once, and not when its turn is seen to.
pub const PUMPED_MESSAGES: usize = 64;
/// Messages that are read from the log at once for a session.
pub const FETCH_MESSAGES: u64 = 512;
/// Bytes of messages that are read from the log at once for a session, one message more at most.
pub const FETCH_BYTES: usize = 1 << 20;
/// Bytes that wait to be written to one connection before QoS 0 messages to it are dropped.
pub const OUT_BYTES: usize = 4 << 20;
/// Bytes that a message takes in memory beside what it says: its fields, five allocations and their counts.
pub const MESSAGE_OVERHEAD: usize = 256;
/// Bytes that a record takes in the state store beside its key and its value.
pub const RECORD_OVERHEAD: usize = 192;
/// Bytes that a block of what waits in the log takes beside its runs: itself, its allocations, its record.
pub const BLOCK_OVERHEAD: usize = 160 + RECORD_OVERHEAD;
/// Sessions whose small blocks are folded in a turn, and an eighth more of those that it brings something.
pub const FOLDS: usize = 64;
/// Bytes that a message in flight takes beside the message: its place under its packet id.
pub const IN_FLIGHT_OVERHEAD: usize = 160;
/// Bytes of all retained messages, unless the configuration says otherwise; less where memory is less.
pub const RETAINED_BYTES: usize = 1 << 30;
/// Bytes that a retained message takes beside what it says: its places in two indexes, and in the state store.
pub const RETAINED_OVERHEAD: usize = 256;
/// Steps of the search for retained messages in a turn of the event loop, of all sessions: some milliseconds of work.
pub const SEARCH_STEPS: usize = 4096;
/// Filters of a SUBSCRIBE that are looked at; those behind are refused.
pub const FILTERS: usize = 1024;
/// Bytes of a topic filter that is subscribed to: with the client id it is a key of the state store, which may have 64 KiB.
pub const FILTER_BYTES: usize = 60 << 10;
/// Bytes of all filters of a session.
pub const SESSION_FILTER_BYTES: usize = 256 << 10;
/// Subscriptions of a session.
pub const SUBSCRIPTIONS: usize = 1024;
/// Connections at once.
pub const CONNECTIONS: usize = 100_000;
/// Connections that wait to be accepted; the kernel may allow fewer (`net.core.somaxconn`).
pub const ACCEPT_BACKLOG: i32 = 4096;
/// Bytes of the buffer that all connections read into.
pub const READ_BUFFER: usize = PACKET_BYTES + READ_AT_ONCE;
/// Bytes after which a turn of the loop ends: of rows, and of what it notes of answers and deliveries.
pub const TURN_BYTES: usize = 2 << 20;
/// Deliveries of turns that are not released before reading pauses, give or take those of a turn: some 0.1 s of work.
pub const DELIVERIES_IN_FLIGHT: usize = 64 << 10;
/// Bytes that are read at once of a connection, behind a packet whose end had not come. What of them a turn has no room for
/// waits with the connection, and others are read before it.
pub const READ_AT_ONCE: usize = 256 << 10;
/// Bytes of the copies of one message for members of groups that are away; the groups beyond do not get it.
pub const COPIES_BYTES: usize = 32 << 20;
/// Bytes of what is kept for one session of segments that go from the log, unless it is a single message. For all together a
/// quarter of what MQTT's messages may take of the memory is kept so.
pub const KEPT_BYTES: u64 = 1 << 20;
/// Questions and messages that wait for the event loop: more than there are connections, each of which may have one.
pub const INBOX_COMMANDS: usize = CONNECTIONS + 16_384;
/// Turns whose commit is outstanding before reading pauses.
pub const TURNS_IN_FLIGHT: usize = 8;
/// Topics whose statistics are kept.
pub const TOPICS: usize = 10_000;
/// Bytes of a topic of which something is remembered; what a longer one is about is looked up each time, and it is counted
/// with the other topics. So what is known of `TOPICS` has 10 MiB of names.
pub const REMEMBERED_TOPIC: usize = 1 << 10;
/// Bytes of the last error of a topic that its statistics keep.
pub const TOPIC_ERROR_BYTES: usize = 1 << 10;
/// Tables that the default source may create.
pub const DEFAULT_TABLES: usize = 256;
/// Columns that the default source may give a table.
pub const DEFAULT_COLUMNS: usize = 512;
/// Series that the default source may give a table.
pub const DEFAULT_SERIES: usize = 100_000;
/// Bytes of a payload that is taken as text.
pub const TEXT_PAYLOAD: usize = 1024;
/// Items of one row, and columns that one message may bring.
pub const ROW_ITEMS: usize = 4096;
/// Bytes of the name of an item, those of the objects around it included.
pub const ITEM_NAME: usize = 255;
/// Levels of objects inside each other in a JSON payload.
pub const JSON_DEPTH: usize = 32;
/// Bytes of an HTTP body that carries rows, before and after decompression.
pub const HTTP_BODY: usize = 64 << 20;
/// Bytes of an HTTP body of lines up to which it is decoded where it arrives, if all of its lines repeat earlier ones: some
/// 0.1 ms of work.
pub const REPEATED_BODY: usize = 64 << 10;
/// Bytes of measurements and tags that one memory of lines keeps, some 40,000 series; then it begins anew.
pub const LINE_HEAD_BYTES: usize = 8 << 20;
/// Sets of fields that one memory of lines keeps.
pub const LINE_FORMS: usize = 1024;
/// Memories of lines that wait for the next request.
pub const LINE_MEMORIES: usize = 4;
/// Rows of its table that a rule's query sees at once.
pub const RULE_ROWS: usize = 8192;
/// How long dead letters are kept.
pub const DEAD_LETTER_AGE: Duration = Duration::from_secs(7 * 86_400);
/// Bytes of all dead letters on disk; beyond them the oldest go.
pub const DEAD_LETTER_BYTES: i64 = 1 << 30;
/// Dead letters of so long lie in a file together, and go together.
pub const DEAD_LETTER_PARTITION: Duration = Duration::from_secs(3600);
/// Bytes of a payload that a dead letter keeps.
pub const DEAD_LETTER_PAYLOAD: usize = 256 << 10;
/// The longest session expiry that a client gets.
pub const SESSION_EXPIRY: Duration = Duration::from_secs(7 * 86_400);
/// Steps in which rules make rows of rows; what they make of those is a cycle and becomes dead letters.
pub const RULE_STEPS: u8 = 8;
/// How long a field of integers that could not become one of floats is left alone before it is looked at again.
pub const WIDEN_PAUSE: std::time::Duration = std::time::Duration::from_secs(10);
/// Readers that follow topics over HTTP or gRPC at once.
pub const TAILS: usize = 1024;
/// Messages that wait for such a reader; more are dropped, and it is told how many.
pub const TAIL_MESSAGES: usize = 1024;
/// Their bytes; and none wait where memory for messages is scarce.
pub const TAIL_BYTES: usize = 4 << 20;
/// Seconds before it is said again how much memory is left for messages.
pub const ROOM_SILENCE: u64 = 10;
/// Bytes that a will takes beside what it says, here and in the state store.
pub const WILL_OVERHEAD: usize = 512;
/// Replays at once, of all sessions.
pub const REPLAYS: usize = 256;
/// Replays of one session.
pub const SESSION_REPLAYS: usize = 16;
/// Sequence numbers of the log that one turn of a replay looks at.
pub const REPLAY_SEQS: u64 = 16_384;
/// Rows that a replay reads at once of tables, to become messages; fewer where they have `FETCH_BYTES`.
pub const REPLAY_ROWS: usize = 4096;
/// Rows that a replay looks at for those.
pub const REPLAY_SCANNED: usize = 1 << 18;
/// Bytes of log about which a replay remembers as much as a time from and to: whether they have messages of its filter.
pub const REPLAY_STRETCH: u64 = 4 << 20;
/// MQTT listeners.
pub const LISTENERS: usize = 64;
/// Bytes of a PROXY header behind its first 16.
pub const PROXY_HEADER_BYTES: usize = 4096;
/// Bytes of the request by which a client asks for WebSocket.
pub const UPGRADE_BYTES: usize = 8 << 10;
/// Bytes of the text in a TLS record (RFC 8446, 5.1).
pub const TLS_RECORD: usize = 16 << 10;
/// Bytes of a TLS record, or of a handshake message in several, whose end has not come.
pub const TLS_PENDING: usize = 72 << 10;
/// Bytes of the buffer that all TLS connections read into.
pub const TLS_BUFFER: usize = 192 << 10;
/// Encrypted and framed bytes of a connection that wait to be written, give or take a record.
pub const WIRE_BYTES: usize = 64 << 10;
/// Names of a client certificate that count.
pub const CERTIFICATE_NAMES: usize = 64;
/// Connections that are kept a moment longer, so that those of a rush do not come back together.
pub const TURNED_AWAY: usize = 1024;
/// Client ids and addresses of which it is known how often they connect; beyond them those that are not refused are
/// forgotten.
pub const CONNECT_COUNTS: usize = 100_000;
/// Bytes that are read at once of a connection with a rate limit.
pub const PACED_READ: usize = 16 << 10;
/// Topics whose subscribers are remembered; a generation of them, and there are two.
pub const CACHED_TOPICS: usize = 32_768;
/// Subscribers of those topics: 16 MiB a generation.
pub const CACHED_INTERESTS: usize = 1 << 20;
/// Bytes of the names of those topics, of a generation.
pub const CACHED_TOPIC_BYTES: usize = 8 << 20;
/// Seconds between two states of the `$SYS` topics.
pub const SYS_INTERVAL: u64 = 10;
/// Topic aliases that a connection may give us: the Topic Alias Maximum of CONNACK.
pub const TOPIC_ALIAS_MAXIMUM: u16 = 64;
/// Topic aliases that we give a connection, if it takes so many.
pub const TOPIC_ALIASES_OUT: u16 = 64;
/// Bytes of the topics that a connection's aliases stand for, each way.
pub const TOPIC_ALIAS_BYTES: usize = 16 << 10;
/// Bytes of a Reason String, give or take what was being said.
pub const REASON_BYTES: usize = 1024;
/// Bytes of a topic or filter in a Reason String.
pub const REASON_NAME_BYTES: usize = 200;
/// Seconds of the longest keep alive that a client gets: the Server Keep Alive, unless `MqttOptions` has a shorter one.
/// This one is none.
pub const KEEP_ALIVE_MAXIMUM: u16 = u16::MAX;

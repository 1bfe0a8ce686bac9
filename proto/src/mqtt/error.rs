//! What can be wrong with bytes from a client, and the reason codes of MQTT 5.

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes do not follow the format.
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// The packet is well-formed and against the rules.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// CONNECT asks for a version that there is not.
    #[error("unsupported protocol version {0}")]
    UnsupportedVersion(u8),
    /// The packet is larger than the limit.
    #[error("packet of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Bytes of the whole packet.
        size: usize,
        /// Bytes that are accepted.
        limit: usize,
    },
}

impl DecodeError {
    /// What is wrong, in words for a Reason String.
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self {
            Self::Malformed(what) | Self::Protocol(what) => what,
            Self::UnsupportedVersion(_) => "a protocol version other than 3.1, 3.1.1 and 5.0",
            Self::TooLarge { .. } => "a packet larger than the Maximum Packet Size of CONNACK",
        }
    }

    /// The reason code that says so to an MQTT 5 client.
    #[must_use]
    pub fn reason(&self) -> ReasonCode {
        match self {
            Self::Malformed(_) => ReasonCode::MALFORMED_PACKET,
            Self::Protocol(_) => ReasonCode::PROTOCOL_ERROR,
            Self::UnsupportedVersion(_) => ReasonCode::UNSUPPORTED_PROTOCOL_VERSION,
            Self::TooLarge { .. } => ReasonCode::PACKET_TOO_LARGE,
        }
    }
}

/// A reason code of MQTT 5 (section 2.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReasonCode(pub u8);

impl ReasonCode {
    /// Success, normal disconnection, granted QoS 0.
    pub const SUCCESS: Self = Self(0x00);
    /// DISCONNECT that publishes the will.
    pub const DISCONNECT_WITH_WILL: Self = Self(0x04);
    /// Nobody subscribes to the message.
    pub const NO_MATCHING_SUBSCRIBERS: Self = Self(0x10);
    /// UNSUBSCRIBE of a filter that was not subscribed.
    pub const NO_SUBSCRIPTION_EXISTED: Self = Self(0x11);
    /// No better reason.
    pub const UNSPECIFIED_ERROR: Self = Self(0x80);
    /// The bytes do not follow the format.
    pub const MALFORMED_PACKET: Self = Self(0x81);
    /// Against the rules.
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    /// Well-formed, and this server does not take it.
    pub const IMPLEMENTATION_SPECIFIC_ERROR: Self = Self(0x83);
    /// A version that there is not.
    pub const UNSUPPORTED_PROTOCOL_VERSION: Self = Self(0x84);
    /// A client id that is not allowed.
    pub const CLIENT_IDENTIFIER_NOT_VALID: Self = Self(0x85);
    /// Wrong credentials.
    pub const BAD_USER_NAME_OR_PASSWORD: Self = Self(0x86);
    /// Not allowed to do this.
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    /// The server is not available.
    pub const SERVER_UNAVAILABLE: Self = Self(0x88);
    /// Too much to do.
    pub const SERVER_BUSY: Self = Self(0x89);
    /// The server stops.
    pub const SERVER_SHUTTING_DOWN: Self = Self(0x8b);
    /// Nothing was heard for 1.5 times the keep-alive.
    pub const KEEP_ALIVE_TIMEOUT: Self = Self(0x8d);
    /// Another connection has taken the session.
    pub const SESSION_TAKEN_OVER: Self = Self(0x8e);
    /// A filter that is not allowed.
    pub const TOPIC_FILTER_INVALID: Self = Self(0x8f);
    /// A topic that is not allowed.
    pub const TOPIC_NAME_INVALID: Self = Self(0x90);
    /// The packet id is in use.
    pub const PACKET_IDENTIFIER_IN_USE: Self = Self(0x91);
    /// There is no such packet id.
    pub const PACKET_IDENTIFIER_NOT_FOUND: Self = Self(0x92);
    /// More in flight than was agreed.
    pub const RECEIVE_MAXIMUM_EXCEEDED: Self = Self(0x93);
    /// A topic alias out of range.
    pub const TOPIC_ALIAS_INVALID: Self = Self(0x94);
    /// Larger than was agreed.
    pub const PACKET_TOO_LARGE: Self = Self(0x95);
    /// A quota is used up.
    pub const QUOTA_EXCEEDED: Self = Self(0x97);
    /// An administrator's decision.
    pub const ADMINISTRATIVE_ACTION: Self = Self(0x98);
    /// The payload is not what it says.
    pub const PAYLOAD_FORMAT_INVALID: Self = Self(0x99);
    /// An authentication method that there is not.
    pub const BAD_AUTHENTICATION_METHOD: Self = Self(0x8c);
    /// Use another server for now: the one of the Server Reference.
    pub const USE_ANOTHER_SERVER: Self = Self(0x9c);
    /// No shared subscriptions here.
    pub const SHARED_SUBSCRIPTIONS_NOT_SUPPORTED: Self = Self(0x9e);
    /// Connection rate exceeded.
    pub const CONNECTION_RATE_EXCEEDED: Self = Self(0x9f);

    /// Whether the code says that something failed.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.0 >= 0x80
    }
}

//! The nouns that travel: what a caller asked, under which key it waits, what came back.

mod compact;

use std::{fmt, net::IpAddr, ops::Range, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header, uri::PathAndQuery};
use parking_lot::Mutex;

use crate::{catalogue::Command, clock::Instant, error, trace::Span};
use compact::Kept;
pub use compact::compact;

/// A request that was read whole and is sent on as it came.
#[derive(Clone)]
pub struct Head {
    /// The method, unchanged.
    pub method: Method,
    /// Path and query, byte for byte but for parameters that were filled in.
    pub target: PathAndQuery,
    /// The end-to-end headers; the hop-by-hop ones are gone.
    pub headers: Headers,
    /// Of a call that was validated.
    credentials: Option<CredentialsAt>,
}

impl Head {
    /// Of a request that nothing is known of yet.
    pub fn new(method: Method, target: PathAndQuery, headers: HeaderMap) -> Head {
        Head {
            method,
            target,
            headers: headers.into(),
            credentials: None,
        }
    }

    /// Says where in the query it is said who asks, and who has signed it.
    pub fn asked_by(
        &mut self,
        sdkappid: Range<usize>,
        identifier: Range<usize>,
        usersig: Range<usize>,
        signed_by: SignedBy,
    ) {
        // No target is longer: http refuses it.
        let short = |at: usize| u16::try_from(at).unwrap_or(u16::MAX);
        let parts = [sdkappid, identifier, usersig];
        self.credentials = Some(CredentialsAt {
            parts: parts.map(|range| (short(range.start), short(range.end))),
            signed_by,
        });
    }

    /// The same request for another path, with headers of its own.
    #[must_use]
    pub fn for_path(&self, path: &str, headers: HeaderMap) -> Head {
        let query = self.target.query().unwrap_or_default();
        let target = format!("{path}?{query}").parse();
        Head {
            method: self.method.clone(),
            target: target.expect("a known path and a query that came in are a legal target"),
            headers: headers.into(),
            credentials: self.credentials,
        }
    }

    /// Who asks; `None` of what passes through or is under a rule, where nobody looks.
    pub fn credentials(&self) -> Option<Credentials<'_>> {
        Some(Credentials {
            query: self.target.query().unwrap_or_default(),
            at: self.credentials.as_ref()?,
        })
    }
}

/// The headers of a request that may be sent several times.
///
/// hyper parses the headers of a reply into the memory that those of its request were in, and those of
/// the next request into that of its answer. So what was read into goes out first: it has room for the
/// gateway's own. What stays for a repeat is a copy, which is as large as it must be.
pub struct Headers(Mutex<Kept>);

impl From<HeaderMap> for Headers {
    fn from(headers: HeaderMap) -> Headers {
        Headers(Mutex::new(Kept::Map(Box::new(headers))))
    }
}

impl Clone for Headers {
    fn clone(&self) -> Headers {
        Headers(Mutex::new(self.0.lock().clone()))
    }
}

impl Headers {
    /// For an attempt that may be followed by another, whatever comes of it.
    pub fn to_send(&self) -> HeaderMap {
        let mut kept = self.0.lock();
        let copy = kept.clone();
        std::mem::replace(&mut *kept, copy).into_map()
    }

    /// For an attempt that is followed by another only if they come [back](Self::put_back).
    pub fn take(&self) -> HeaderMap {
        std::mem::take(&mut *self.0.lock()).into_map()
    }

    /// They were not sent.
    pub fn put_back(&self, headers: HeaderMap) {
        *self.0.lock() = Kept::Map(Box::new(headers));
    }
}

impl fmt::Debug for Head {
    /// Without query and headers: they hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("method", &self.method)
            .field("path", &self.target.path())
            .finish_non_exhaustive()
    }
}

/// A call of a known command that has passed every documented limit. Only
/// [`validate`](crate::validate) makes one.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its entry in the catalogue.
    pub command: &'static Command,
    /// What goes upstream if it travels alone.
    pub head: Arc<Head>,
    /// Who sent it to the gateway.
    pub caller: Caller,
    /// The body, as it came.
    pub body: Bytes,
    /// Whose state it reads or writes.
    pub target: Target,
    /// Whether it may share an upstream call with others.
    pub travels: Travels,
    /// The pairs it names; 1 for a command without pairs.
    pub pairs: u32,
    /// When it was read.
    pub received: Instant,
    /// When the caller wants to have heard.
    pub deadline: Instant,
    /// Where it is recorded.
    pub span: Span,
}

/// Whose call it is, where callers take turns. Callers that the gateway cannot tell apart are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    /// Someone in this process.
    Local,
    /// Whoever connects from this address, by any of its ports.
    Address(IpAddr),
    /// Whoever has a token of this name, wherever he connects from.
    Token(Arc<str>),
}

impl From<IpAddr> for Caller {
    /// An IPv4 address is the same caller on a socket that listens for IPv6.
    fn from(address: IpAddr) -> Caller {
        Caller::Address(address.to_canonical())
    }
}

/// Whether a call may share an upstream call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Travels {
    /// Every part of it is understood.
    Together,
    /// The caller asked for it, merging is off, or part of it is not wholly understood: it is sent
    /// byte for byte.
    Alone,
}

/// Whose signature a call has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignedBy {
    /// The caller's own.
    Caller,
    /// The one that the gateway makes with `[credentials]`.
    Gateway,
}

/// The three parameters that say who asks, compared as the bytes that came: credentials that
/// differ in a byte never share a call.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    query: &'a str,
    at: &'a CredentialsAt,
}

/// Where they are in the query: two bytes for each end, for every call that waits has them.
#[derive(Clone, Copy)]
struct CredentialsAt {
    /// `sdkappid`, `identifier` and `usersig`.
    parts: [(u16, u16); 3],
    signed_by: SignedBy,
}

impl<'a> Credentials<'a> {
    /// The raw bytes of `sdkappid`, `identifier` and `usersig`. Secret: never to be shown.
    pub fn parts(&self) -> [&'a str; 3] {
        self.at
            .parts
            .map(|(start, end)| &self.query[usize::from(start)..usize::from(end)])
    }

    /// Who asks, decoded: however it is written, it is the same account.
    pub fn identifier(&self) -> Arc<str> {
        let [_, identifier, _] = self.parts();
        // `+` is no space in an account; the decoder of forms would make it one.
        let pair = format!("i={}", identifier.replace('+', "%2B"));
        let decoded = form_urlencoded::parse(pair.as_bytes()).next();
        decoded.map_or_else(|| Arc::from(""), |(_, value)| Arc::from(value.as_ref()))
    }

    /// Who has to mend a signature that is refused.
    pub fn signed_by(&self) -> SignedBy {
        self.at.signed_by
    }
}

impl PartialEq for Credentials<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Credentials<'_> {}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// Whose state a call is about: a group, or one message of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The app (`sdkappid`).
    pub app: u64,
    /// `GroupId`, decoded. Under a rule, the values of its key as JSON.
    pub group: Arc<str>,
    /// `MsgSeq`, for message extensions.
    pub message: Option<i128>,
}

/// The quota that limits a write beside the API-wide one; its name is the `quota` label of the
/// metrics and the settings' `[quota.NAME]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QuotaClass {
    /// Writes of a group's attributes: 5 a second for each group.
    GroupAttributes,
    /// Writes of a message's extensions: 200 a minute for each message.
    MessageExtension,
    /// Commands that a rule of the settings gives the quota of this name.
    Ruled(&'static str),
}

impl QuotaClass {
    /// Every class of commands that the gateway knows.
    pub const KNOWN: [QuotaClass; 2] = [QuotaClass::GroupAttributes, QuotaClass::MessageExtension];

    /// The name in settings and metrics.
    pub fn name(self) -> &'static str {
        match self {
            QuotaClass::GroupAttributes => "group_attributes",
            QuotaClass::MessageExtension => "message_extension",
            QuotaClass::Ruled(name) => name,
        }
    }

    /// The pairs that a call carries; 1 where nothing counts them.
    pub fn pairs(self, call: &Call) -> u32 {
        match self {
            QuotaClass::GroupAttributes | QuotaClass::Ruled(_) => 1,
            QuotaClass::MessageExtension => call.pairs,
        }
    }

    /// The code with which the API refuses a call over this quota.
    pub fn refusal(self) -> i64 {
        match self {
            QuotaClass::GroupAttributes => 10049,
            QuotaClass::MessageExtension => 23003,
            // The vendor documents no other where a page has none of its own.
            QuotaClass::Ruled(_) => error::API_LIMIT.into(),
        }
    }
}

/// One quota key: the calls of a lane are sent one at a time, in the order in which they were read
/// or, if callers take turns, in which those of each caller were read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneKey {
    /// Which quota.
    pub class: QuotaClass,
    /// Of what.
    pub target: Target,
}

/// What the upstream answered to one attempt.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status, as it came.
    pub status: StatusCode,
    /// The end-to-end headers.
    pub headers: HeaderMap,
    /// The body, as it came.
    pub body: Bytes,
    /// `ErrorCode`, when the command is known and the body is the API's JSON.
    pub code: Option<i64>,
    /// When its first byte was here: the call had arrived by then.
    pub at: Instant,
}

impl Reply {
    /// The same with another body.
    #[must_use]
    pub fn with_body(&self, body: Bytes) -> Reply {
        let mut reply = self.clone();
        // Of the body that came; hyper writes that of this one.
        reply.headers.remove(header::CONTENT_LENGTH);
        reply.body = body;
        reply
    }
}

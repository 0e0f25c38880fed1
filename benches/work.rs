//! The work that is measured: one place for its inputs, so that time and instructions are counted
//! of the same thing.

use std::{cell::Cell, sync::Arc, time::Duration};

use bytes::Bytes;
use chat_gateway::{
    call::{Call, Caller, Head, LaneKey, QuotaClass, Reply, SignedBy, Target, Travels},
    catalogue::{Command, group_attributes, message_extension},
    clock::{self, Instant},
    config::Config,
    lane::merge::{Fate, Fold, divide},
    quota::{
        local::Quota,
        scopes::{Limiting, Scopes},
        slots::{CommandSlots, Slots},
    },
    validate::{self, Terms},
};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

/// The query that every call brings.
const QUERY: &str = "sdkappid=88888888&identifier=administrator&usersig=eJwtzN0KgjAYBuB72bE\
                     &random=99999999&contenttype=json";

/// A call as it comes from the wire, before it is looked at.
#[derive(Clone)]
pub struct Raw {
    command: &'static Command,
    head: Head,
    body: Bytes,
}

impl Raw {
    fn new(command: &'static Command, body: String) -> Raw {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        headers.insert("host", HeaderValue::from_static("127.0.0.1:8080"));
        Raw {
            command,
            head: Head::new(
                Method::POST,
                format!("{}?{QUERY}", command.path)
                    .parse()
                    .expect("a legal target"),
                headers,
            ),
            body: Bytes::from(body),
        }
    }

    /// `set_group_attr` of about so many bytes, in values of at most 4,000.
    pub fn set_group_attr(bytes: usize) -> Raw {
        let mut left = bytes.saturating_sub(80).max(1);
        let mut attributes = Vec::new();
        while left > 0 {
            let value = "x".repeat(left.min(4_000));
            left -= value.len();
            attributes.push(format!(
                r#"{{"key":"attr_key{}","value":"{value}"}}"#,
                attributes.len()
            ));
        }
        let attributes = attributes.join(",");
        Raw::new(
            &group_attributes::SET,
            format!(r#"{{"GroupId":"@TGS#1ABC","GroupAttr":[{attributes}]}}"#),
        )
    }

    /// `group_set_key_values` with one pair of its own key.
    pub fn set_extension(number: usize) -> Raw {
        Raw::new(
            &message_extension::SET,
            format!(
                r#"{{"GroupId":"@TGS#1ABC","MsgSeq":17,"OperateType":1,"ExtensionList":[{{"Key":"key{number}","Value":"a value of usual length"}}]}}"#
            ),
        )
    }

    /// Parsed, validated and found to be good.
    pub fn validate(self) -> Call {
        let now = clock::now();
        let terms = Terms {
            caller: Caller::Local,
            received: now,
            deadline: now,
            travels: Travels::Together,
            signed_by: SignedBy::Caller,
            random: 7,
        };
        validate::validate(self.command, self.head, self.body, terms).expect("a good call")
    }
}

/// Twenty calls with a pair each: as many as one call of the API takes.
pub fn twenty() -> Vec<Call> {
    (0..20).map(|n| Raw::set_extension(n).validate()).collect()
}

/// One body of the twenty.
pub fn merge(calls: &[Call]) -> Bytes {
    let mut fold = Fold::start(&calls[0]);
    for call in &calls[1..] {
        assert!(fold.add(call), "they travel together");
    }
    fold.body()
}

/// What the API answers to the twenty.
pub fn reply() -> Reply {
    let pairs: Vec<String> = (0..20)
        .map(|n| {
            format!(
                r#"{{"ErrorCode":0,"Extension":{{"Key":"key{n}","Value":"a value of usual length","Seq":{n}}}}}"#
            )
        })
        .collect();
    let pairs = pairs.join(",");
    Reply {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: Bytes::from(format!(
            r#"{{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0,"ExtensionList":[{pairs}]}}"#
        )),
        code: Some(0),
        at: clock::now(),
    }
}

/// Each caller's part of the reply.
pub fn split(calls: &[Call], reply: &Reply) -> Vec<Fate> {
    let members: Vec<&Call> = calls.iter().collect();
    let fates = divide(&message_extension::SET, &members, reply);
    assert_eq!(fates.len(), calls.len());
    fates
}

/// Windows of many keys, none of which is forgotten meanwhile.
pub struct Windows {
    quota: Quota,
    command: Arc<CommandSlots>,
    held: Vec<Arc<Slots>>,
    next: Cell<usize>,
}

impl Windows {
    /// Those of so many groups.
    pub fn of(keys: usize) -> Windows {
        let mut config = Config::default();
        config.quota.group_attributes.limit = 5;
        config.quota.api.limit = 1_000_000;
        // Short, so that every slot is free again when its key is next asked for: it cools by the
        // guard alone.
        config.quota.group_attributes.window = Duration::from_nanos(1);
        config.quota.api.window = Duration::from_nanos(1);
        config.state.hold = Duration::ZERO;
        let quota = Quota::new(&config);
        Windows {
            command: quota.command(group_attributes::SET.path, Some(1)),
            held: (0..keys).map(|n| quota.key(&group(n))).collect(),
            quota,
            next: Cell::new(0),
        }
    }

    /// The next key, as it was just read from a call: who looks it up has it at hand, but not what
    /// is kept of it.
    pub fn next_key(&self) -> LaneKey {
        // A step that is prime to the number of keys, so that the next is not in the cache.
        let next = (self.next.get() + 7_919) % self.held.len();
        self.next.set(next);
        group(next)
    }

    fn scopes(&self, key: &LaneKey) -> Scopes {
        Scopes {
            key: Some((self.quota.key(key), 1)),
            command: self.command.clone(),
        }
    }

    /// A key's window is looked up and asked whether it has a free slot.
    pub fn decide(&self, key: &LaneKey, now: Instant) -> Limiting {
        self.scopes(key).limiting(now)
    }

    /// The same, and a slot is taken there and in the command's window, and both given back: what every
    /// attempt costs.
    pub fn take(&self, key: &LaneKey) {
        let permit = self.scopes(key).acquire().now_or_never();
        permit.expect("a free slot").refund();
    }
}

fn group(number: usize) -> LaneKey {
    LaneKey {
        class: QuotaClass::GroupAttributes,
        target: Target {
            app: 88_888_888,
            group: Arc::from(format!("@TGS#group{number}")),
            message: None,
        },
    }
}

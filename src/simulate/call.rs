//! A request as the simulator understands it, read before any lock is taken.

use bytes::Bytes;
use hyper::http::request::Parts;

use super::{
    address::Caller,
    answer::Refusal,
    attributes::AttributeCall,
    body::Body,
    command::Command,
    extensions::{ExtensionCall, Message},
    quotas::QuotaKey,
    settings::{Counted, Per, Settings},
};

/// One call: who sent what, and whether it comes past the door.
pub(super) struct Call {
    pub(super) caller: Caller,
    /// The path of the URL.
    pub(super) path: String,
    /// The last segment of the path; empty where the path names no command.
    pub(super) name: String,
    pub(super) body: Bytes,
    /// A call that is refused at the door (URL, credentials, JSON) counts against no quota.
    pub(super) entry: Result<Entry, Refusal>,
}

/// A call that came past the door.
pub(super) struct Entry {
    pub(super) command: Command,
    /// The quota of its own that it spends, besides that of its command.
    pub(super) key: Option<QuotaKey>,
    pub(super) group: Option<String>,
    pub(super) pairs: usize,
    /// What it takes from the quota of `key`.
    pub(super) weight: u32,
    /// What to execute, or why that is refused; either way the call counts.
    pub(super) work: Result<Work, Refusal>,
}

/// What a command does.
pub(super) enum Work {
    Attributes(AttributeCall),
    Extensions(ExtensionCall),
    Nothing,
}

impl Call {
    /// Reads a request to a path under `/v4/`; `now` is in Unix seconds.
    pub(super) fn read(settings: &Settings, parts: &Parts, body: Bytes, now: u64) -> Self {
        let path = parts.uri.path().to_owned();
        let caller = Caller::read(parts.uri.query().unwrap_or_default());
        let found = Command::find(&path);
        let name = found.as_ref().map_or("", |(_, name)| name).to_owned();
        let entry = found.and_then(|(command, _)| {
            caller.check(settings, &parts.method, now)?;
            let body = Body::parse(&body)?;
            Ok(Entry::read(settings, &caller, command, &body))
        });
        Self {
            caller,
            path,
            name,
            body,
            entry,
        }
    }

    /// The `GroupId` of the body, if it has one.
    pub(super) fn group(&self) -> Option<&str> {
        self.entry.as_ref().ok()?.group.as_deref()
    }
}

impl Entry {
    fn read(settings: &Settings, caller: &Caller, command: Command, body: &Body) -> Self {
        let sdkappid = caller.sdkappid.as_str();
        let group = body.text("GroupId").ok().map(str::to_owned);
        let (key, work) = match command {
            Command::SetAttributes
            | Command::ModifyAttributes
            | Command::DeleteAttributes
            | Command::ClearAttributes
            | Command::GetAttributes => {
                let key = group.clone().map(|group| match settings.attributes_per {
                    Per::Group => QuotaKey::Group {
                        sdkappid: sdkappid.to_owned(),
                        group,
                    },
                    Per::Identifier => QuotaKey::Identifier {
                        sdkappid: sdkappid.to_owned(),
                        identifier: caller.identifier.clone(),
                    },
                });
                let work = AttributeCall::read(command, body).map(Work::Attributes);
                (key, work)
            }
            Command::SetGroupExtensions
            | Command::GetGroupExtensions
            | Command::SetExtensions
            | Command::GetExtensions => {
                let message = Message::read(command, body);
                let key = message
                    .as_ref()
                    .ok()
                    .map(|message| QuotaKey::of_message(sdkappid, message));
                let work = message
                    .and_then(|message| ExtensionCall::read(command, message, body))
                    .map(Work::Extensions);
                (key, work)
            }
            Command::Other => (None, Ok(Work::Nothing)),
        };
        let pairs = work.as_ref().map_or(0, Work::pairs);
        let weight = match (&work, settings.count) {
            (Ok(Work::Extensions(_)), Counted::Pairs) => u32::try_from(pairs.max(1)),
            _ => Ok(1),
        };
        Self {
            command,
            key: key.filter(|_| command.writes()),
            group,
            pairs,
            weight: weight.unwrap_or(u32::MAX),
            work,
        }
    }
}

impl Work {
    fn pairs(&self) -> usize {
        match self {
            Self::Attributes(call) => call.pairs(),
            Self::Extensions(call) => call.pairs(),
            Self::Nothing => 0,
        }
    }
}

//! The only door from bytes to a [`Call`].
//!
//! Rules of the URL first (vendor page 1047/34620), then the body against its command's table. A
//! broken one is answered with the documented code and spends no quota.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use http::{Method, uri::PathAndQuery};
use memchr::memchr;

use crate::{
    call::{Call, Caller, Head, SignedBy, Target, Travels},
    catalogue::{Command, rules},
    clock::Instant,
    error::{self, Refusal},
    json::{Node, Object},
    trace::Span,
};

/// What a request must be checked against beside its command's table.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Who sent the request.
    pub caller: Caller,
    /// When the request was read.
    pub received: Instant,
    /// When the caller wants to have heard.
    pub deadline: Instant,
    /// Whether the caller and the settings allow merging.
    pub travels: Travels,
    /// Whose signature is in the URL.
    pub signed_by: SignedBy,
    /// What `random` is to be if the caller left it out.
    pub random: u32,
}

/// A merged call goes to the path of one command with the query of another: http takes targets of 65,534
/// bytes, and no known path is longer than another by as much as is left of that here.
const LONGEST_MERGED: usize = 65_534 - 64;

/// Checks a request for `command` and makes it a [`Call`].
pub fn validate(
    command: &'static Command,
    mut head: Head,
    body: Bytes,
    terms: Terms,
) -> Result<Call, Refusal> {
    if head.method != Method::POST {
        return Err(Refusal::invalid(
            error::BAD_METHOD,
            format!(
                "the method is {}, {} takes POST only",
                head.method, command.name
            ),
        ));
    }
    let query = Query::parse(head.target.query().unwrap_or_default())?;
    let node = Node::parse(&body)
        .map_err(|e| Refusal::invalid(error::BAD_JSON, format!("the body is not JSON: {e}")))?;
    let Node::Object(object) = node else {
        return Err(Refusal::invalid(
            error::BAD_JSON,
            format!("the body is {}, it must be a JSON object", node.kind()),
        ));
    };
    let understood = rules::check(&object, command.body)
        .map_err(|broken| Refusal::invalid(broken.code, broken.message))?;

    let target = target(command, query.app, &object);
    let pairs = u32::try_from(understood.items).unwrap_or(u32::MAX).max(1);
    let filled = query.fill(&head.target, terms.random)?;
    if let Some(filled) = filled {
        head.target = filled;
    }
    let has_room = head.target.as_str().len() <= LONGEST_MERGED;
    let travels = if understood.wholly && query.wholly && has_room {
        terms.travels
    } else {
        Travels::Alone
    };
    // Parameters are filled in at the end of the query.
    head.asked_by(
        query.sdkappid,
        query.identifier,
        query.usersig,
        terms.signed_by,
    );
    drop(object);
    Ok(Call {
        command,
        head: Arc::new(head),
        caller: terms.caller,
        body,
        target,
        travels,
        pairs,
        received: terms.received,
        deadline: terms.deadline,
        span: Span::default(),
    })
}

/// The app of any request, for the API-wide limit of commands that pass through: `None` if it
/// names none or not by a number.
pub fn app(query: &str) -> Option<u64> {
    parameters(query)
        .find(|(name, ..)| *name == "sdkappid")
        .and_then(|(_, value, _)| digits(value))
}

fn target(command: &Command, app: u64, body: &Object<'_>) -> Target {
    let group = match body.get("GroupId") {
        Some(Node::Text(group)) => Arc::from(group.as_ref()),
        _ => unreachable!("every table requires GroupId to be a string"),
    };
    // Elsewhere a field of that name means nothing, and must not lead away from the group's lane.
    let of_message = command.body.iter().any(|field| field.name == "MsgSeq");
    let message = match body.get("MsgSeq") {
        Some(Node::Integer(message)) if of_message => Some(*message),
        _ => None,
    };
    Target {
        app,
        group,
        message,
    }
}

/// The documented parameters of the URL.
struct Query {
    app: u64,
    sdkappid: Range<usize>,
    identifier: Range<usize>,
    usersig: Range<usize>,
    has_random: bool,
    has_contenttype: bool,
    /// No parameter is unknown or named twice.
    wholly: bool,
}

impl Query {
    fn parse(query: &str) -> Result<Query, Refusal> {
        let [
            mut sdkappid,
            mut identifier,
            mut usersig,
            mut random,
            mut contenttype,
        ] = [const { None }; 5];
        let mut wholly = true;
        for (name, value, at) in parameters(query) {
            let place = match name {
                "sdkappid" => &mut sdkappid,
                "identifier" => &mut identifier,
                "usersig" => &mut usersig,
                "random" => &mut random,
                "contenttype" => &mut contenttype,
                _ => {
                    wholly = false;
                    continue;
                }
            };
            // The first of two counts here; which one counts over there is not documented.
            if place.is_some() {
                wholly = false;
            } else {
                *place = Some((value, at));
            }
        }
        let Some((app, sdkappid)) = sdkappid.filter(|(value, _)| !value.is_empty()) else {
            return Err(Refusal::invalid(error::NO_APP, "the URL has no sdkappid"));
        };
        let Some(app) = digits(app) else {
            return Err(Refusal::invalid(
                error::BAD_APP,
                "sdkappid in the URL is not a number",
            ));
        };
        let Some((_, identifier)) = identifier.filter(|(value, _)| !value.is_empty()) else {
            return Err(Refusal::invalid(
                error::BAD_ACCOUNT,
                "identifier in the URL is missing or empty, it must be an app administrator",
            ));
        };
        let Some((_, usersig)) = usersig.filter(|(value, _)| !value.is_empty()) else {
            return Err(Refusal::invalid(
                error::NO_SIGNATURE,
                "usersig in the URL is missing or empty",
            ));
        };
        if random
            .as_ref()
            .is_some_and(|(value, _)| digits::<u32>(value).is_none())
        {
            return Err(Refusal::invalid(
                error::BAD_REQUEST,
                "random in the URL is not an integer from 0 to 4294967295; it may be left out",
            ));
        }
        if contenttype
            .as_ref()
            .is_some_and(|(value, _)| *value != "json")
        {
            return Err(Refusal::invalid(
                error::BAD_REQUEST,
                "contenttype in the URL is not json; it may be left out",
            ));
        }
        Ok(Query {
            app,
            sdkappid,
            identifier,
            usersig,
            has_random: random.is_some(),
            has_contenttype: contenttype.is_some(),
            wholly,
        })
    }

    /// The target with `random` and `contenttype` at its end where they are missing.
    fn fill(&self, target: &PathAndQuery, random: u32) -> Result<Option<PathAndQuery>, Refusal> {
        if self.has_random && self.has_contenttype {
            return Ok(None);
        }
        let mut text = target.as_str().to_owned();
        if !self.has_random {
            text.push_str("&random=");
            text.push_str(&random.to_string());
        }
        if !self.has_contenttype {
            text.push_str("&contenttype=json");
        }
        // A legal target with plain parameters behind it is legal, unless it is too long now.
        let length = text.len();
        PathAndQuery::from_maybe_shared(Bytes::from(text))
            .map(Some)
            .map_err(|_| {
                let message = format!(
                    "the URL is {length} bytes with random and contenttype, the limit is 65534"
                );
                Refusal::invalid(error::BAD_REQUEST, message)
            })
    }
}

/// Name, value and the range of the value in the query. Names are compared as they are written:
/// an encoded one is another name.
pub(crate) fn parameters(query: &str) -> impl Iterator<Item = (&str, &str, Range<usize>)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        loop {
            let begin = start;
            let rest = query.get(begin..)?;
            let part = &rest[..memchr(b'&', rest.as_bytes()).unwrap_or(rest.len())];
            start += part.len() + 1;
            if part.is_empty() {
                continue;
            }
            let name = memchr(b'=', part.as_bytes()).unwrap_or(part.len());
            let value = part.get(name + 1..).unwrap_or_default();
            let end = begin + part.len();
            return Some((&part[..name], value, end - value.len()..end));
        }
    })
}

/// A number as people write it: `parse` would take a sign as well.
fn digits<N: std::str::FromStr>(text: &str) -> Option<N> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::{
        catalogue::{group_attributes, message_extension},
        clock,
    };

    const GOOD: &str =
        "sdkappid=88888888&identifier=admin&usersig=xx*x&random=99999999&contenttype=json";
    const BODY: &str = r#"{"GroupId":"g","GroupAttr":[{"key":"k","value":"v"}]}"#;

    fn call(method: Method, query: &str, body: &str) -> Result<Call, Refusal> {
        call_of(&group_attributes::SET, method, query, body)
    }

    fn call_of(
        command: &'static Command,
        method: Method,
        query: &str,
        body: &str,
    ) -> Result<Call, Refusal> {
        let head = Head::new(
            method,
            format!("{}?{query}", command.path).parse().unwrap(),
            HeaderMap::new(),
        );
        let now = clock::now();
        let terms = Terms {
            caller: Caller::Local,
            received: now,
            deadline: now,
            travels: Travels::Together,
            signed_by: SignedBy::Caller,
            random: 7,
        };
        validate(
            command,
            head,
            Bytes::copy_from_slice(body.as_bytes()),
            terms,
        )
    }

    #[test]
    fn a_good_call_should_keep_its_bytes() {
        let call = call(Method::POST, GOOD, BODY).unwrap();
        assert_eq!(call.head.target.query(), Some(GOOD));
        assert_eq!(call.body, BODY);
        assert_eq!(
            call.head.credentials().unwrap().parts(),
            ["88888888", "admin", "xx*x"]
        );
        assert_eq!(call.target.app, 88_888_888);
        assert_eq!(call.travels, Travels::Together);
    }

    #[test]
    fn absent_random_and_contenttype_should_be_filled_in() {
        let call = call(Method::POST, "identifier=a&usersig=s&sdkappid=1", BODY).unwrap();
        assert_eq!(
            call.head.target.query(),
            Some("identifier=a&usersig=s&sdkappid=1&random=7&contenttype=json")
        );
        assert_eq!(call.head.credentials().unwrap().parts(), ["1", "a", "s"]);
    }

    #[test]
    fn only_what_is_missing_should_be_filled_in() {
        let base = "sdkappid=1&identifier=a&usersig=s";
        for (given, filled) in [
            ("&random=1", "&random=1&contenttype=json"),
            ("&contenttype=json", "&contenttype=json&random=7"),
        ] {
            let call = call(Method::POST, &format!("{base}{given}"), BODY).unwrap();
            assert_eq!(call.head.target.query(), Some(&*format!("{base}{filled}")));
        }
    }

    #[test]
    fn the_app_of_any_request_should_be_its_sdkappid_if_that_is_a_number() {
        for (query, expected) in [
            ("x=3&sdkappid=14&identifier=a", Some(14)),
            ("sdkappid=14&sdkappid=15", Some(14)),
            ("sdkappid=x", None),
            ("sdkappid", None),
            ("x=1", None),
            ("", None),
        ] {
            assert_eq!(app(query), expected, "{query}");
        }
    }

    #[test]
    fn a_url_without_room_for_what_is_filled_in_should_be_refused() {
        let path = group_attributes::SET.path.len() + 1;
        let more = "&random=7&contenttype=json".len();
        let query = |length: usize| {
            let query = "sdkappid=1&identifier=a&usersig=";
            format!("{query}{}", "s".repeat(length - path - query.len()))
        };
        let longest = call(Method::POST, &query(65_534 - more), BODY).unwrap();
        assert_eq!(longest.head.target.as_str().len(), 65_534);
        for length in [65_534 - more + 1, 65_534] {
            let refusal = call(Method::POST, &query(length), BODY).unwrap_err();
            assert_eq!(refusal.code, 60002);
            assert_eq!(
                refusal.info,
                format!(
                    "the URL is {} bytes with random and contenttype, the limit is 65534",
                    length + more
                )
            );
        }
    }

    #[test]
    fn each_rule_of_the_url_should_have_its_code() {
        for (query, code) in [
            ("identifier=a&usersig=s", 60012),
            ("sdkappid=&identifier=a&usersig=s", 60012),
            ("sdkappid=x&identifier=a&usersig=s", 60006),
            ("sdkappid=-1&identifier=a&usersig=s", 60006),
            ("sdkappid=+1&identifier=a&usersig=s", 60006),
            ("sdkappid=1&usersig=s", 60004),
            ("sdkappid=1&identifier=&usersig=s", 60004),
            ("sdkappid=1&identifier=a", 70002),
            ("sdkappid=1&identifier=a&usersig=", 70002),
            ("sdkappid=1&identifier=a&usersig", 70002),
            ("sdkappid=1&identifier=a&usersig=s&random=x", 60002),
            ("sdkappid=1&identifier=a&usersig=s&random=", 60002),
            ("sdkappid=1&identifier=a&usersig=s&random=4294967296", 60002),
            ("sdkappid=1&identifier=a&usersig=s&random=+1", 60002),
            ("sdkappid=1&identifier=a&usersig=s&contenttype=xml", 60002),
            ("SdkAppId=1&identifier=a&usersig=s", 60012),
            ("", 60012),
        ] {
            assert_eq!(
                call(Method::POST, query, BODY).unwrap_err().code,
                code,
                "{query}"
            );
        }
        for random in ["0", "4294967295"] {
            assert!(call(Method::POST, &GOOD.replace("99999999", random), BODY).is_ok());
        }
    }

    #[test]
    fn method_and_json_should_have_their_codes() {
        assert_eq!(call(Method::GET, GOOD, BODY).unwrap_err().code, 60009);
        for body in ["", "{", "[]", "null", "1", "\u{feff}{}"] {
            assert_eq!(
                call(Method::POST, GOOD, body).unwrap_err().code,
                60003,
                "{body:?}"
            );
        }
    }

    #[test]
    fn a_query_that_is_not_wholly_understood_should_travel_alone() {
        for more in ["&x=1", "&sdkappid=2", "&random=1", "&x"] {
            let call = call(Method::POST, &format!("{GOOD}{more}"), BODY).unwrap();
            assert_eq!(call.travels, Travels::Alone, "{more}");
            assert_eq!(call.target.app, 88_888_888);
        }
    }

    #[test]
    fn no_message_should_hold_the_signature() {
        let refusal =
            call(Method::POST, "sdkappid=1&identifier=&usersig=SECRET", BODY).unwrap_err();
        assert!(!refusal.info.contains("SECRET"));
        let call = call(Method::POST, "sdkappid=1&identifier=a&usersig=SECRET", BODY).unwrap();
        assert!(!format!("{:?}", call.head.credentials()).contains("SECRET"));
    }

    #[test]
    fn pairs_should_be_counted_for_the_quota() {
        let command = &message_extension::SET;
        let pairs: Vec<_> = (0..20)
            .map(|n| format!(r#"{{"Key":"{n}","Value":""}}"#))
            .collect();
        for (operate, list, expected) in [(1, pairs.join(","), 20), (3, String::new(), 1)] {
            let body = format!(
                r#"{{"GroupId":"g","MsgSeq":5,"OperateType":{operate},"ExtensionList":[{list}]}}"#
            );
            let call = call_of(command, Method::POST, GOOD, &body).unwrap();
            assert_eq!(call.pairs, expected);
            assert_eq!(call.target.message, Some(5));
        }
    }

    #[test]
    fn an_unknown_field_should_not_change_whose_state_a_call_writes() {
        let body = r#"{"GroupId":"g","MsgSeq":5,"GroupAttr":[{"key":"k","value":"v"}]}"#;
        let call = call(Method::POST, GOOD, body).unwrap();
        assert_eq!(call.travels, Travels::Alone);
        assert_eq!(
            call.target.message, None,
            "the lane and the window of its group"
        );
    }
}

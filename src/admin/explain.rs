//! `/explain?sdkappid=&group=&msg_seq=`, or `&quota=&key=` under a rule: why a key waits.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::{
    Admin,
    status::{Key, Shared, millis},
};
use crate::{
    call::{LaneKey, QuotaClass, Target},
    clock::{self, Instant},
    lane::View,
    quota::counting::Known,
    rules,
};

#[derive(Serialize)]
struct Explanation {
    /// In plain words, the first thing that holds the key back.
    why: String,
    #[serde(flatten)]
    key: Key,
    /// How it is known what is counted.
    counts_because: &'static str,
    profile: &'static str,
    /// Since when the class has been refused nothing; `null` if it never was.
    last_refusal_ms_ago: Option<f64>,
    /// Refusals under `cautious` said that somebody else spends the same quota.
    another_spends: bool,
    /// Slots of each window that are left to him.
    left_to_another: u32,
    /// Until when the next call is spaced from the last one.
    spaced_ms: f64,
    rtt_floor_ms: f64,
    upstream: &'static str,
    /// The store that several gateways share; `null` if windows are not shared.
    shared: Option<Shared>,
}

/// Explains the key that the query names: `sdkappid` and `group` for a group's attributes,
/// `msg_seq` with them for a message's extensions; `identifier` where windows are an account's; `sdkappid`, `quota` and a `key` for each pointer
/// under a rule. What is wrong with the query otherwise.
pub(super) fn render(admin: &Admin, query: &str) -> Result<Vec<u8>, (StatusCode, String)> {
    let quota = &admin.lanes.quota;
    let (key, identifier) =
        key(query, quota.ruled()).map_err(|what| (StatusCode::BAD_REQUEST, what))?;
    let now = clock::now();
    let view = match admin.lanes.find(&key) {
        Some(lane) => lane.view(),
        None => {
            let counting = quota.class(Some(key.class)).known().counting();
            let window = quota.window_key(&key, || identifier.unwrap_or_default());
            View::of_window(quota.peek(&window), quota.pace(key.class), counting, now)
        }
    };
    let class = quota.class(Some(key.class));
    let reason = class.reason();
    let reachable = admin.lanes.upstream.breaker.next_probe(now).is_none();
    let until =
        |at: Option<Instant>| at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
    let rtt_floor = admin.lanes.upstream.floor.lock().get(now);
    let explanation = Explanation {
        why: why_shared(admin, &view, now).unwrap_or_else(|| why(&view, reachable, now)),
        shared: Shared::of(admin, now),
        counts_because: match (class.has_found_out(), class.known()) {
            (_, Known::CallsSoFar) => "nothing has shown yet whether calls or pairs are counted",
            (true, Known::Calls) => "the upstream took more pairs than its limit",
            (true, Known::Pairs) => {
                "the upstream refused a call in a window of few calls and many pairs"
            }
            (false, _) => "the vendor or the settings say so",
        },
        profile: class.profile().name(),
        last_refusal_ms_ago: reason.refused_at().map(|at| millis(now - at)),
        another_spends: reason.another_spends(),
        left_to_another: view.slots.left_to_another,
        spaced_ms: millis(until(view.slots.spaced_until)),
        rtt_floor_ms: millis(rtt_floor),
        upstream: if reachable {
            "reachable"
        } else {
            "unreachable"
        },
        key: Key::of(&key, &view, now),
    };
    Ok(serde_json::to_vec_pretty(&explanation).expect("strings and numbers serialize"))
}

fn key(
    query: &str,
    mut ruled: impl Iterator<Item = &'static str>,
) -> Result<(LaneKey, Option<Arc<str>>), String> {
    let usage = "write /explain?sdkappid=APP&group=GROUP, and &msg_seq=N for a message; under a \
                 [[rule]] /explain?sdkappid=APP&quota=QUOTA, and &key=VALUE for each of its pointers\n";
    let (mut app, mut group, mut message) = (None, None, None);
    let (mut quota, mut values) = (None, Vec::new());
    let mut identifier = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "sdkappid" => app = value.parse().ok(),
            "group" => group = Some(value.into_owned()).filter(|group| !group.is_empty()),
            "msg_seq" if value.is_empty() => {}
            "msg_seq" => match value.parse() {
                Ok(number) => message = Some(number),
                Err(_) => return Err(format!("msg_seq is not a number; {usage}")),
            },
            "identifier" => identifier = Some(Arc::from(value.as_ref())),
            "quota" => match ruled.find(|name| *name == value) {
                Some(name) => quota = Some(name),
                None => return Err(format!("no [[rule]] has the quota {value:?}; {usage}")),
            },
            "key" => values.push(rule_value(&value)),
            other => return Err(format!("{other} is no parameter; {usage}")),
        }
    }
    let app = app.ok_or_else(|| format!("sdkappid is missing or not a number; {usage}"))?;
    if let Some(quota) = quota {
        let target = Target {
            app,
            group: rules::key(&values),
            message: None,
        };
        let class = QuotaClass::Ruled(quota);
        return Ok((LaneKey { class, target }, None));
    }
    let group: String = group.ok_or_else(|| format!("group is missing; {usage}"))?;
    let class = match message {
        Some(_) => QuotaClass::MessageExtension,
        None => QuotaClass::GroupAttributes,
    };
    let target = Target {
        app,
        group: group.into(),
        message,
    };
    Ok((LaneKey { class, target }, identifier))
}

/// `5`, `true` and `null` are what JSON says; `"5"` and anything else is text.
fn rule_value(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Null | Value::Bool(_) | Value::String(_) | Value::Number(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// What holds a key back because of the shared store, if that is what does.
fn why_shared(admin: &Admin, view: &View, now: Instant) -> Option<String> {
    let store = admin.lanes.quota.store.as_ref()?.view(now);
    if view.calls == 0 || view.under_way.is_some() {
        return None;
    }
    match store.trouble {
        Some((trouble, _)) => Some(format!(
            "the shared store is away ({trouble}): this gateway has its share of the {} slots, one \
             part in {}",
            view.limit, store.replicas
        )),
        None if view.slots.free > 0 && view.slots.rests_until.is_none() => Some(
            "it waits for the time that the shared store gave it, or for slots that other gateways \
             hold"
                .to_owned(),
        ),
        None => None,
    }
}

fn why(view: &View, reachable: bool, now: Instant) -> String {
    let wait = |at: Instant| {
        let wait = at.saturating_duration_since(now);
        format!("{:.0} ms", wait.as_secs_f64() * 1e3)
    };
    if view.calls == 0 && view.under_way.is_none() {
        return "nobody waits for this key".to_owned();
    }
    if !reachable {
        return "the upstream cannot be reached; one call at a time probes it".to_owned();
    }
    if let Some(facts) = view.under_way {
        return format!(
            "{} at the upstream, attempt {}; a key sends one upstream call at a time",
            match facts.batch {
                1 => "a call is".to_owned(),
                calls => format!("{calls} calls are"),
            },
            facts.attempts
        );
    }
    if let Some(at) = view.slots.rests_until {
        return format!(
            "the key rests for {} after a refusal by the upstream",
            wait(at)
        );
    }
    match (
        view.slots.free,
        view.slots.cooling.first(),
        view.slots.spaced_until,
    ) {
        (0, Some(&at), _) => format!(
            "all {} slots of the window are spent; the next one is free in {}",
            view.limit,
            wait(at)
        ),
        (0, None, _) => "all slots are at the upstream".to_owned(),
        (_, _, Some(at)) => format!("calls are spaced; the next one may leave in {}", wait(at)),
        _ => "it waits for the API-wide limit of its command, behind other calls".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::{counting::Counting, window::Pace};

    #[test]
    fn the_query_should_name_a_group_or_a_message() {
        let known = |query| key(query, ["messages"].into_iter()).map(|(key, _)| key);
        let group = known("sdkappid=1&group=%40TGS%23a+b").unwrap();
        assert_eq!(group.class, QuotaClass::GroupAttributes);
        assert_eq!(&*group.target.group, "@TGS#a b");
        let message = known("sdkappid=1&group=g&msg_seq=158").unwrap();
        assert_eq!(message.class, QuotaClass::MessageExtension);
        assert_eq!(message.target.message, Some(158));
        assert_eq!(
            known("sdkappid=1&group=g&msg_seq=").unwrap().target.message,
            None
        );
        for wrong in [
            "",
            "group=g",
            "sdkappid=1",
            "sdkappid=x&group=g",
            "sdkappid=1&group=g&x=1",
            "sdkappid=1&quota=x",
        ] {
            assert!(
                known(wrong).unwrap_err().contains("write /explain?"),
                "{wrong}"
            );
        }
        assert!(
            known("sdkappid=1&group=g&msg_seq=x")
                .unwrap_err()
                .starts_with("msg_seq")
        );
        let ruled = known("sdkappid=1&quota=messages&key=%40TGS%23a&key=5&key=%225%22").unwrap();
        assert_eq!(ruled.class, QuotaClass::Ruled("messages"));
        assert_eq!(&*ruled.target.group, r#"["@TGS#a",5,"5"]"#);
    }

    #[test]
    fn the_first_thing_that_holds_a_key_back_should_be_named() {
        let now = clock::now();
        let soon = now + Duration::from_millis(250);
        let pace = Pace {
            limit: 5,
            window: Duration::from_secs(1),
            call_timeout: Duration::from_secs(5),
        };
        let mut view = View::of_window(None, pace, Counting::Calls, now);
        assert_eq!(why(&view, true, now), "nobody waits for this key");
        view.calls = 3;
        assert!(why(&view, false, now).starts_with("the upstream cannot be reached"));
        assert!(why(&view, true, now).contains("API-wide"));
        view.slots.spaced_until = Some(soon);
        assert!(why(&view, true, now).contains("spaced; the next one may leave in 250 ms"));
        view.slots.free = 0;
        view.slots.cooling = vec![soon];
        assert!(why(&view, true, now).contains("the next one is free in 250 ms"));
        view.slots.rests_until = Some(soon);
        assert!(why(&view, true, now).contains("rests for 250 ms"));
    }
}

//! `/status.json`: what waits, where, and until when.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;

use serde::Serialize;

use super::Admin;
use crate::{
    call::LaneKey,
    clock::{self, Instant},
    lane::View,
    log::{self, Log, events::Event, ids},
    metrics::{Metrics, quota_name},
    shutdown::Phase,
};

/// The keys that are shown: those whose first call has waited longest.
const SHOWN: usize = 50;

/// The slots of a key whose times are shown: a window may have a million.
const SHOWN_SLOTS: usize = 50;

/// How old what is shown may be. However many look on and however often, all lanes are gone through
/// once in that time.
const AGE: Duration = Duration::from_millis(500);

/// The status as it was last shown.
#[derive(Debug, Default)]
pub(super) struct Shown(Mutex<Option<(Instant, Bytes)>>);

#[derive(Serialize)]
struct Status<'a> {
    version: &'a str,
    phase: &'a str,
    uptime_seconds: f64,
    upstream: &'a str,
    upstream_milliseconds: f64,
    breaker: &'a str,
    /// When the upstream is tried next; `null` while it is there.
    next_probe_ms: Option<f64>,
    quota_refusals: u64,
    store: Store,
    quotas: Vec<InForce<'a>>,
    /// `null` if windows are not shared.
    shared: Option<Shared>,
    /// Since the start; readers take differences.
    totals: Totals,
    waiting: Vec<Waiting<'a>>,
    live_keys: usize,
    keys: Vec<Key>,
    events: Vec<Event>,
    /// The log level in force; `null` if the process does not log.
    log_level: Option<String>,
}

/// Where windows are kept.
#[derive(Serialize)]
struct Store {
    /// `own` or the name of what is shared.
    kind: &'static str,
    /// Whether it answers.
    up: bool,
    says: String,
}

/// A quota, and what of it is used.
#[derive(Serialize)]
struct InForce<'a> {
    quota: &'a str,
    profile: &'static str,
    limit: u32,
    window_ms: f64,
}

/// The store that several gateways share.
#[derive(Serialize)]
pub(super) struct Shared {
    /// Whether the store decides; if not, each gateway spends its share.
    up: bool,
    /// Why not, and for how long.
    trouble: Option<String>,
    down_ms: Option<f64>,
    /// This gateway's number among them.
    seat: Option<u32>,
    replicas: u32,
    /// Gateways that the store knows, and those of them that it has not heard of.
    members: usize,
    missing: u32,
    /// Windows in which this gateway holds or wants slots.
    windows: usize,
}

#[derive(Serialize)]
struct Totals {
    calls: u64,
    outcomes: BTreeMap<&'static str, u64>,
    upstream_calls: u64,
    writes: u64,
    merged_writes: u64,
    repeats: u64,
}

#[derive(Serialize)]
struct Waiting<'a> {
    quota: &'a str,
    calls: usize,
    bytes: usize,
}

/// One key as the status and its explanation show it.
#[derive(Serialize)]
pub(super) struct Key {
    quota: &'static str,
    /// Text, as `msg_seq`: readers of JSON round numbers over 2^53.
    sdkappid: String,
    group: String,
    msg_seq: Option<String>,
    /// How log lines and spans name it with `log.ids = "hashed"`.
    hash: String,
    wait_ms: f64,
    queue_calls: usize,
    queue_bytes: usize,
    batches: u32,
    in_flight_calls: u32,
    attempts: u32,
    limit: u32,
    /// What a slot stands for: `calls` or `pairs`.
    counts: &'static str,
    window_ms: f64,
    free_slots: u32,
    in_flight_slots: u32,
    cooling_slots: usize,
    next_slot_ms: Option<f64>,
    /// The first of the cooling slots; `cooling_slots` says how many there are.
    slots_free_in_ms: Vec<f64>,
    rests_ms: f64,
}

/// The status, as JSON that is no older than [`AGE`].
pub(super) fn render(admin: &Admin) -> Bytes {
    // Whoever comes meanwhile waits for what is made now instead of making it again.
    let mut shown = admin.shown.0.lock();
    let now = clock::now();
    match &*shown {
        Some((at, status)) if now - *at < AGE => status.clone(),
        _ => {
            let status = Bytes::from(look(admin, now));
            *shown = Some((now, status.clone()));
            status
        }
    }
}

fn look(admin: &Admin, now: Instant) -> Vec<u8> {
    let (live_keys, longest) = admin.lanes.longest_waiting(SHOWN);
    let quota = &admin.lanes.quota;
    let classes = || quota.classes();
    let probe = admin.lanes.upstream.breaker.next_probe(now);
    let log = log::current();
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        phase: match admin.lifecycle.phase() {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Draining | Phase::Expired => "draining",
        },
        uptime_seconds: (now - admin.started).as_secs_f64(),
        upstream: match probe {
            None => "reachable",
            Some(_) => "unreachable",
        },
        breaker: admin.lanes.upstream.breaker.name(),
        next_probe_ms: probe.map(|at| millis(at.saturating_duration_since(now))),
        store: Store::of(admin, now),
        quotas: classes()
            .map(|class| {
                let pace = quota.pace_of(class);
                InForce {
                    quota: quota_name(class),
                    profile: quota.class(class).profile().name(),
                    limit: pace.limit,
                    window_ms: millis(pace.window),
                }
            })
            .collect(),
        upstream_milliseconds: millis(admin.lanes.upstream.service_time.get()),
        quota_refusals: admin.metrics.quota_refusals(),
        shared: Shared::of(admin, now),
        totals: Totals::of(&admin.metrics),
        waiting: classes()
            .map(|class| {
                let (calls, bytes) = admin.lanes.room.waiting(class);
                Waiting {
                    quota: quota_name(class),
                    calls,
                    bytes,
                }
            })
            .collect(),
        live_keys,
        keys: longest
            .iter()
            .map(|lane| Key::of(lane.key(), &lane.view(), now))
            .collect(),
        events: log.map(Log::events).unwrap_or_default(),
        log_level: log.map(Log::level),
    };
    serde_json::to_vec_pretty(&status).expect("strings and numbers serialize")
}

impl Store {
    fn of(admin: &Admin, now: Instant) -> Store {
        let view = admin
            .lanes
            .quota
            .store
            .as_ref()
            .map(|store| store.view(now));
        let Some(view) = view else {
            return Store {
                kind: "own",
                up: true,
                says: "this process counts for itself".to_owned(),
            };
        };
        let says = match view.trouble {
            None => format!(
                "{} of {} gateways share the quotas",
                view.members.saturating_sub(view.missing as usize),
                view.replicas
            ),
            Some((trouble, _)) => format!(
                "away ({trouble}): this gateway spends one part in {}",
                view.replicas
            ),
        };
        Store {
            kind: "redis",
            up: view.up,
            says,
        }
    }
}

impl Shared {
    /// What there is to see at `now`.
    pub(super) fn of(admin: &Admin, now: Instant) -> Option<Shared> {
        let view = admin.lanes.quota.store.as_ref()?.view(now);
        let (trouble, down) = view.trouble.unzip();
        Some(Shared {
            up: view.up,
            trouble,
            down_ms: down.map(millis),
            seat: view.seat,
            replicas: view.replicas,
            members: view.members,
            missing: view.missing,
            windows: view.windows,
        })
    }
}

impl Totals {
    fn of(metrics: &Metrics) -> Totals {
        Totals {
            calls: metrics.calls(),
            outcomes: metrics.outcomes().collect(),
            upstream_calls: metrics.upstream_calls(),
            writes: metrics.writes(),
            merged_writes: metrics.merged_calls(),
            repeats: metrics.repeats(),
        }
    }
}

impl Key {
    /// What `view` shows of `key`.
    pub(super) fn of(key: &LaneKey, view: &View, now: Instant) -> Key {
        let until = |at: Instant| millis(at.saturating_duration_since(now));
        let rests_ms = view.slots.rests_until.map_or(0.0, until);
        let spaced_ms = view.slots.spaced_until.map_or(0.0, until);
        let next = match (view.slots.free, view.slots.cooling.first()) {
            (0, Some(&at)) => Some(until(at)),
            // Every slot is at the upstream: the next one is not known yet.
            (0, None) => None,
            _ => Some(0.0),
        };
        Key {
            quota: key.class.name(),
            sdkappid: key.target.app.to_string(),
            group: key.target.group.to_string(),
            msg_seq: key.target.message.map(|message| message.to_string()),
            hash: ids::hashed(&key.target),
            wait_ms: millis(view.oldest_wait),
            queue_calls: view.calls,
            queue_bytes: view.bytes,
            batches: view.batches,
            in_flight_calls: view.under_way.map_or(0, |facts| facts.batch),
            attempts: view.under_way.map_or(0, |facts| facts.attempts),
            limit: view.limit,
            counts: view.counting.name(),
            window_ms: millis(view.window),
            free_slots: view.slots.free,
            in_flight_slots: view.slots.in_flight,
            cooling_slots: view.slots.cooling.len(),
            next_slot_ms: next.map(|next| next.max(rests_ms).max(spaced_ms)),
            slots_free_in_ms: (view.slots.cooling.iter().take(SHOWN_SLOTS))
                .copied()
                .map(until)
                .collect(),
            rests_ms,
        }
    }
}

pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Request;
    use hyper_util::client::legacy::connect::HttpConnector;

    use super::*;
    use crate::{
        call::{Caller, QuotaClass, Target},
        catalogue::group_attributes,
        config::Config,
        quota::{counting::Counting, slots},
        serve::Core,
    };

    const MANY: usize = 100_000;

    /// Somebody writes to each of these groups and waits.
    async fn write(core: &Core, groups: impl Iterator<Item = String>) {
        for group in groups {
            let gateway = core.gateway.clone();
            let body =
                format!(r#"{{"GroupId":"{group}","GroupAttr":[{{"key":"k","value":"v"}}]}}"#);
            tokio::spawn(async move {
                let path = group_attributes::SET.path;
                let target = format!("{path}?sdkappid=1&identifier=a&usersig=s");
                let request = Request::post(target).body(()).unwrap();
                let (mut head, ()) = request.into_parts();
                let body = async { Ok(Bytes::from(body)) };
                gateway.handle(Caller::Local, &mut head, body).await
            });
        }
        clock::sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn many_live_keys_should_be_gone_through_once_for_everybody_who_looks() {
        // The windows start as spent, so that every call waits.
        let metrics = Arc::new(Metrics::new());
        let config = Config::default();
        let core = Core::new(&config, HttpConnector::new(), metrics.clone());
        let first_come: Vec<_> = (0..SHOWN).map(|n| format!("z{n:02}")).collect();
        write(&core, first_come.iter().cloned()).await;
        write(&core, (SHOWN..MANY).map(|n| format!("a{n}"))).await;
        let admin = Admin::new(
            core.lanes.clone(),
            metrics,
            core.lifecycle.clone(),
            clock::now(),
        );
        let first = render(&admin);
        let status: serde_json::Value = serde_json::from_slice(&first).unwrap();
        assert_eq!(status["live_keys"], MANY);
        let keys = status["keys"].as_array().unwrap();
        let groups: Vec<_> = keys.iter().map(|key| key["group"].clone()).collect();
        assert_eq!(groups, first_come);
        assert!(first.len() < 64 << 10, "{} bytes", first.len());
        assert_eq!(render(&admin).as_ptr(), first.as_ptr(), "it is made once");
        clock::sleep(AGE).await;
        assert_ne!(render(&admin).as_ptr(), first.as_ptr(), "and then again");
    }

    #[test]
    fn a_key_should_show_few_of_many_slots_and_count_them_all() {
        let now = clock::now();
        let window = slots::View {
            free: 0,
            in_flight: 1,
            cooling: vec![now + Duration::from_millis(250); 999],
            ..slots::View::default()
        };
        let view = View {
            calls: 3,
            bytes: 300,
            batches: 2,
            oldest_wait: Duration::from_millis(5),
            under_way: None,
            slots: window,
            limit: 1_000,
            counting: Counting::Calls,
            window: Duration::from_secs(1),
        };
        let target = Target {
            app: 1,
            group: "g".into(),
            message: None,
        };
        let key = LaneKey {
            class: QuotaClass::GroupAttributes,
            target,
        };
        let key = Key::of(&key, &view, now);
        assert_eq!(key.slots_free_in_ms, vec![250.0; SHOWN_SLOTS]);
        assert_eq!((key.in_flight_slots, key.cooling_slots), (1, 999));
        assert_eq!(key.next_slot_ms, Some(250.0));
    }
}

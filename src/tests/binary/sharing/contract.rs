//! One contract for windows in memory and windows in a store.

use std::{sync::Arc, time::Duration};

use chat_gateway::{
    call::{LaneKey, QuotaClass, Target},
    clock::{self, Instant},
    config::{Config, Sources, load},
    metrics::Metrics,
    quota::{local::Quota, permit::Permit, redis::Store, scopes::Scopes},
};

use super::server::Server;

const MS: Duration = Duration::from_millis(1);
const WINDOW: Duration = Duration::from_millis(400);
const CALL_TIMEOUT: Duration = Duration::from_millis(300);

/// The windows of a gateway that counts three calls of a group, and five of a command.
struct Subject {
    quota: Quota,
    keeper: Option<tokio::task::JoinHandle<()>>,
}

impl Subject {
    fn config(more: &[String]) -> Config {
        let settings = [
            "state.hold=0s",
            "upstream.call_timeout=300ms",
            "quota.group_attributes.limit=3",
            "quota.group_attributes.window=400ms",
            "quota.api.limit=5",
            "quota.api.window=400ms",
        ];
        let overrides = settings.iter().map(ToString::to_string);
        let sources = Sources {
            overrides: overrides.chain(more.iter().cloned()).collect(),
            ..Sources::default()
        };
        load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}"))
    }

    fn in_memory() -> Subject {
        Subject {
            quota: Quota::new(&Subject::config(&[])),
            keeper: None,
        }
    }

    async fn in_redis(server: &Server) -> Subject {
        let more = [
            format!("shared.redis={}", server.url()),
            "shared.replicas=1".to_owned(),
            "shared.budget=1s".to_owned(),
        ];
        let config = Subject::config(&more);
        let metrics = Arc::new(Metrics::new());
        let store = Store::new(&config, metrics).expect("no file is named");
        let store = store.expect("windows are shared");
        let keeper = tokio::spawn(store.clone().keep());
        while !store.view(clock::now()).up {
            clock::sleep(MS).await;
        }
        // Until then it counts as spent.
        clock::sleep(WINDOW + 50 * MS).await;
        Subject {
            quota: Quota::new(&config).shared_in(Some(store)),
            keeper: Some(keeper),
        }
    }

    fn scopes(&self, group: &str) -> Scopes {
        let target = Target {
            app: 1,
            group: group.into(),
            message: None,
        };
        let key = LaneKey {
            class: QuotaClass::GroupAttributes,
            target,
        };
        Scopes {
            key: Some((self.quota.key(&key), 1)),
            command: self.quota.command("/v4/x/y", Some(1)),
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
        }
    }
}

async fn take(scopes: &Scopes, count: usize) -> Vec<Permit> {
    let mut permits = Vec::new();
    for _ in 0..count {
        permits.push(scopes.acquire().await);
    }
    permits
}

/// Whether there is a permit within `wait`; it is given back.
async fn within(scopes: &Scopes, wait: Duration) -> bool {
    tokio::select! {
        permit = scopes.acquire() => {
            permit.refund();
            true
        }
        () = clock::sleep(wait) => false,
    }
}

#[track_caller]
fn check_wait(from: Instant, wanted: Duration) {
    let passed = clock::now() - from;
    assert!(passed >= wanted, "{passed:?}, not {wanted:?}");
    assert!(passed < wanted + 250 * MS, "{passed:?}, not {wanted:?}");
}

async fn contract(subject: &Subject) {
    a_slot_should_be_free_a_window_after_its_reply(subject).await;
    a_lost_call_should_hold_its_slot_longer(subject).await;
    what_was_not_sent_should_be_free_at_once(subject).await;
    both_windows_should_be_taken_or_neither(subject).await;
}

async fn a_slot_should_be_free_a_window_after_its_reply(subject: &Subject) {
    let scopes = subject.scopes("reply");
    let permits = take(&scopes, 3).await;
    clock::sleep(50 * MS).await;
    assert!(!within(&scopes, 100 * MS).await, "three are under way");
    let reply_at = clock::now();
    for permit in permits {
        permit.settle(reply_at, Duration::ZERO);
    }
    scopes.acquire().await.refund();
    check_wait(reply_at, WINDOW);
    clock::sleep(WINDOW * 2).await;
}

async fn a_lost_call_should_hold_its_slot_longer(subject: &Subject) {
    let scopes = subject.scopes("lost");
    let mut permits = take(&scopes, 3).await;
    let closed_at = clock::now();
    permits.pop().expect("three were taken").lose(closed_at);
    // One that is dropped is as lost.
    drop(permits);
    assert!(!within(&scopes, WINDOW + 100 * MS).await);
    scopes.acquire().await.refund();
    check_wait(closed_at, WINDOW + CALL_TIMEOUT);
    clock::sleep(WINDOW).await;
}

async fn what_was_not_sent_should_be_free_at_once(subject: &Subject) {
    let scopes = subject.scopes("refund");
    for _ in 0..4 {
        for permit in take(&scopes, 3).await {
            permit.refund();
        }
        // One who leaves while he waits has taken nothing.
        let started = clock::now();
        let permits = take(&scopes, 3).await;
        assert!(
            clock::now() - started < 300 * MS,
            "{:?}",
            clock::now() - started
        );
        assert!(!within(&scopes, 20 * MS).await);
        for permit in permits {
            permit.refund();
        }
        clock::sleep(30 * MS).await;
    }
}

async fn both_windows_should_be_taken_or_neither(subject: &Subject) {
    let (one, other) = (subject.scopes("one"), subject.scopes("other"));
    let mut permits = take(&one, 3).await;
    for _ in 0..3 {
        assert!(!within(&one, 20 * MS).await, "the group has none");
    }
    clock::sleep(50 * MS).await;
    let started = clock::now();
    permits.extend(take(&other, 2).await);
    assert!(
        clock::now() - started < 300 * MS,
        "the command had two left"
    );
    assert!(!within(&other, 100 * MS).await, "the command has none");
    for permit in permits {
        permit.refund();
    }
    clock::sleep(50 * MS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_in_memory_should_keep_the_contract() {
    contract(&Subject::in_memory()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_in_redis_should_keep_the_contract() {
    let server = Server::start().await;
    contract(&Subject::in_redis(&server).await).await;
}

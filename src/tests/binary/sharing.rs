//! `[shared]`: several gateways, one quota; judged at the upstream.

mod contract;
mod proxy;
mod script;
mod server;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use chat_gateway::{
    clock::{self, Instant},
    simulate::{Arrival, Counted, Limit, Settings, Simulator},
};
use tokio::{net::TcpListener, task::JoinSet};

pub(crate) use self::server::Server;

use self::proxy::Proxy;
use super::{
    authority::Authority,
    process::{Gateway, within},
    recorder::{self, Deed, Recorder},
    wire::{Connection, EXTEND, SET, call, one_attribute},
};
use crate::harness::{times, worst_window};

const SECOND: Duration = Duration::from_secs(1);

/// The quota of a group at the upstream.
const LIMIT: usize = 5;

/// An upstream in this process, so that every arrival is seen on the test's clock.
struct Upstream {
    simulator: Simulator,
    url: String,
    _tasks: JoinSet<()>,
}

impl Upstream {
    async fn start(settings: Settings) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("loopback has a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let simulator = Simulator::new(settings);
        let mut tasks = JoinSet::new();
        let serving = simulator.clone();
        tasks.spawn(async move { serving.serve(listener, std::future::pending()).await });
        Upstream {
            simulator,
            url,
            _tasks: tasks,
        }
    }

    async fn usual() -> Upstream {
        Upstream::start(Settings {
            latency: Duration::from_millis(3),
            jitter: Duration::from_millis(4),
            ..Settings::default()
        })
        .await
    }

    fn arrivals(&self) -> Vec<Arrival> {
        let mut arrivals = self.simulator.journal();
        arrivals.sort_by_key(|arrival| arrival.at);
        arrivals
    }

    /// No window was over the limit and nobody was refused.
    #[track_caller]
    fn check(&self) -> Vec<Instant> {
        let times = times(&self.arrivals());
        let worst = worst_window(&times, SECOND);
        assert!(worst <= LIMIT, "{worst} in a window");
        let refused = self.simulator.report().refusals;
        assert!(refused.is_empty(), "the upstream refused {refused:?}");
        times
    }
}

/// Calls between two moments.
fn between(times: &[Instant], from: Instant, to: Instant) -> usize {
    times.iter().filter(|&&at| at >= from && at < to).count()
}

/// Gateways that share `store`.
async fn gateways(count: usize, upstream: &Upstream, store: &str, more: &[&str]) -> Vec<Gateway> {
    let store = format!("shared.redis={store}");
    let mut settings = vec![store.as_str(), "shared.budget=100ms"];
    settings.extend(more);
    let mut gateways = Vec::new();
    for _ in 0..count {
        gateways.push(Gateway::with(&upstream.url, &settings).await);
    }
    gateways
}

/// Waits until all of them go by the store, or by themselves.
async fn all(gateways: &[Gateway], decides: bool) {
    for gateway in gateways {
        gateway
            .status(|status| status["shared"]["up"] == decides)
            .await;
    }
}

/// Callers who write to one group, each again as soon as he has his answer.
struct Callers {
    running: Arc<AtomicBool>,
    answers: Arc<Vec<AtomicUsize>>,
    tasks: JoinSet<()>,
}

impl Callers {
    /// So many of them at each gateway. With a gateway that is killed its callers leave.
    fn start(gateways: &[Gateway], each: usize) -> Callers {
        let running = Arc::new(AtomicBool::new(true));
        let answers: Arc<Vec<_>> = Arc::new(gateways.iter().map(|_| AtomicUsize::new(0)).collect());
        let mut tasks = JoinSet::new();
        for (n, gateway) in gateways.iter().enumerate() {
            for _ in 0..each {
                let (running, answers, to) = (running.clone(), answers.clone(), gateway.traffic);
                tasks.spawn(async move {
                    let mut connection = Connection::to(to).await;
                    let write = call(SET, "x-chat-gateway-merge: off\r\n", &one_attribute("g"));
                    while running.load(Ordering::Relaxed) {
                        connection.send(&write).await;
                        let answer = connection.answer_to("POST").await;
                        assert_eq!(answer.json()["ErrorCode"], 0);
                        answers[n].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
        Callers {
            running,
            answers,
            tasks,
        }
    }

    /// Answers that came so far, by gateway.
    fn answers(&self) -> Vec<usize> {
        self.answers
            .iter()
            .map(|n| n.load(Ordering::Relaxed))
            .collect()
    }

    /// Waits for the last answers; everybody must have been served.
    async fn end(mut self) -> Vec<usize> {
        self.running.store(false, Ordering::Relaxed);
        while let Some(caller) = within("the last answers", self.tasks.join_next()).await {
            caller.expect("a caller was told no");
        }
        self.answers()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_gateways_should_keep_the_quota_and_use_it() {
    let store = Server::start().await;
    let upstream = Upstream::usual().await;
    let gateways = gateways(3, &upstream, &store.url(), &[]).await;
    all(&gateways, true).await;
    clock::sleep(SECOND * 2).await;
    let (from, calls) = (clock::now(), store.calls());
    let callers = Callers::start(&gateways, 6);
    clock::sleep(SECOND * 7).await;
    let (to, calls) = (clock::now(), store.calls() - calls);
    callers.end().await;
    let times = upstream.check();
    let used = between(&times, from, to);
    assert!(used * 10 >= 35 * 9, "{used} calls in {:?}", to - from);
    let calls = usize::try_from(calls).expect("a few");
    assert!(calls <= 2 * used, "{calls} store calls for {used} calls");
    println!("used {used}, store calls {calls}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_freezes_dies_and_returns_empty_should_never_let_a_window_be_over() {
    let mut store = Server::start().await;
    let upstream = Upstream::usual().await;
    let gateways = gateways(3, &upstream, &store.url(), &[]).await;
    all(&gateways, true).await;
    clock::sleep(SECOND * 2).await;
    let callers = Callers::start(&gateways, 6);
    clock::sleep(SECOND * 2).await;

    store.signal("STOP");
    let frozen = clock::now();
    clock::sleep(SECOND * 3).await;
    all(&gateways, false).await;
    store.signal("CONT");
    let thawed = clock::now();
    all(&gateways, true).await;
    clock::sleep(SECOND * 2).await;

    store.kill();
    let killed = clock::now();
    clock::sleep(SECOND * 3).await;
    all(&gateways, false).await;
    store.restart().await;
    let returned = clock::now();
    all(&gateways, true).await;
    clock::sleep(SECOND * 4).await;
    let end = clock::now();

    for gateway in &gateways {
        assert_eq!(gateway.look("/readyz").await.status(), 200);
        let log = gateway.process.stderr();
        let said = |what| log.lines().filter(|line| line.contains(what)).count();
        assert_eq!(
            said("the shared store is away"),
            2,
            "once for each time:\n{log}"
        );
        assert_eq!(said("the shared store decides"), 3, "{log}");
    }
    callers.end().await;
    let times = upstream.check();
    // Calls leave in bunches, a window and a little apart: only so many are in between for certain.
    let used = |from: Instant, to: Instant| {
        let bunches = (to - from).as_millis() / 1_100;
        let least = LIMIT * usize::try_from(bunches).expect("a few");
        let used = u32::try_from(between(&times, from, to)).expect("a few");
        f64::from(used) / f64::from(u32::try_from(least).expect("a few"))
    };
    let (frozen, dead) = (used(frozen, thawed), used(killed, returned));
    // Whoever has no covered claim when it freezes leaves the window alone for a while.
    assert!(
        frozen >= 0.8 && dead >= 0.9,
        "frozen {frozen:.2}, dead {dead:.2}"
    );
    let back = used(returned + SECOND * 2, end);
    assert!(back >= 0.9, "{back:.2} when it was back");
    println!("of what is certain: {frozen:.2} frozen, {dead:.2} dead, {back:.2} back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_cut_off_should_spend_its_share_and_leave_the_rest_to_the_others() {
    let store = Server::start().await;
    let upstream = Upstream::usual().await;
    let way = Proxy::start(store.port).await;
    let mut gateways = gateways(2, &upstream, &store.url(), &[]).await;
    gateways.extend(self::gateways(1, &upstream, &way.url(), &[]).await);
    all(&gateways, true).await;
    clock::sleep(SECOND * 2).await;
    let callers = Callers::start(&gateways, 6);
    clock::sleep(SECOND * 2).await;
    let before = callers.answers();
    // Half open: nothing comes through, and nobody is told.
    way.stall(true);
    let cut = clock::now();
    clock::sleep(SECOND * 6).await;
    all(&gateways[..2], true).await;
    all(&gateways[2..], false).await;
    let after = callers.answers();
    let mended = clock::now();
    way.stall(false);
    all(&gateways, true).await;
    clock::sleep(SECOND * 2).await;
    callers.end().await;
    let times = upstream.check();
    let used = between(&times, cut, mended);
    assert!(used * 10 >= LIMIT * 6 * 8, "{used} in 6 s");
    let alone = after[2] - before[2];
    assert!(
        (5..=13).contains(&alone),
        "its share is 1 or 2 in a window: {alone}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_of_a_gateway_that_was_killed_should_come_back() {
    let store = Server::start().await;
    let upstream = Upstream::start(Settings {
        latency: Duration::from_millis(700),
        ..Settings::default()
    })
    .await;
    let quick = ["upstream.call_timeout=1s"];
    let mut gateways = gateways(3, &upstream, &store.url(), &quick).await;
    all(&gateways, true).await;
    clock::sleep(SECOND * 2).await;
    let callers = Callers::start(&gateways[1..], 6);
    let doomed = gateways.remove(0);
    let write = call(SET, "x-chat-gateway-merge: off\r\n", &one_attribute("g"));
    let mut connection = Connection::to(doomed.traffic).await;
    connection.send(&write).await;
    clock::sleep(SECOND / 2).await;
    drop(doomed);
    let killed = clock::now();
    clock::sleep(SECOND * 6).await;
    let to = clock::now();
    callers.end().await;
    let times = upstream.check();
    // One slot in five is kept for a gateway that may only be cut off, and the reply takes 0.7 s.
    let used = between(&times, killed + SECOND * 3, to);
    assert!(used >= 6, "{used} in {:?}", to - killed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_stopped_should_not_use_an_old_grant() {
    let store = Server::start().await;
    let upstream = Upstream::usual().await;
    let gateways = gateways(3, &upstream, &store.url(), &["upstream.call_timeout=1s"]).await;
    all(&gateways, true).await;
    clock::sleep(SECOND * 2).await;
    let callers = Callers::start(&gateways, 6);
    clock::sleep(SECOND * 2).await;
    for pause in [300, 1_200, 4_000] {
        gateways[0].process.signal("STOP");
        clock::sleep(Duration::from_millis(pause)).await;
        gateways[0].process.signal("CONT");
        clock::sleep(Duration::from_millis(1_500)).await;
    }
    callers.end().await;
    upstream.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_gateway_should_get_at_least_a_fifth() {
    let store = Server::start().await;
    let upstream = Upstream::usual().await;
    let gateways = gateways(3, &upstream, &store.url(), &[]).await;
    all(&gateways, true).await;
    clock::sleep(SECOND * 2).await;
    let callers = Callers::start(&gateways, 6);
    clock::sleep(SECOND * 10).await;
    let answers = callers.answers();
    callers.end().await;
    upstream.check();
    let sum: usize = answers.iter().sum();
    assert!(answers.iter().all(|&own| own * 5 >= sum), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_slow_should_be_left_alone_and_come_back_by_itself() {
    let store = Server::start().await;
    let upstream = Upstream::usual().await;
    let way = Proxy::start(store.port).await;
    let gateways = gateways(3, &upstream, &way.url(), &[]).await;
    all(&gateways, true).await;
    clock::sleep(SECOND * 2).await;
    let callers = Callers::start(&gateways, 6);
    clock::sleep(SECOND * 2).await;
    way.delay(Duration::from_millis(150));
    all(&gateways, false).await;
    let slow = clock::now();
    clock::sleep(SECOND * 3).await;
    let quick = clock::now();
    way.delay(Duration::ZERO);
    all(&gateways, true).await;
    clock::sleep(SECOND).await;
    callers.end().await;
    let times = upstream.check();
    let used = between(&times, slow, quick);
    assert!(used * 10 >= LIMIT * 3 * 6, "{used} in 3 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_that_never_reach_the_store_should_each_spend_a_rounded_share() {
    let upstream = Upstream::usual().await;
    // Nobody listens there.
    let nowhere = format!("redis://127.0.0.1:{}", server::free_port());
    let gateways = gateways(3, &upstream, &nowhere, &[]).await;
    let callers = Callers::start(&gateways, 2);
    clock::sleep(SECOND * 5).await;
    assert_eq!(gateways[0].look("/readyz").await.status(), 200);
    let status = gateways[0].status(|_| true).await;
    assert!(
        status["shared"]["trouble"]
            .as_str()
            .is_some_and(|why| why.contains("refused"))
    );
    let metrics = gateways[0].look("/metrics").await.text();
    assert!(
        metrics.contains("chat_gateway_shared_store_up 0"),
        "{metrics}"
    );
    callers.end().await;
    let times = upstream.check();
    assert!(worst_window(&times, SECOND) <= 3, "5 / 3 is 1 for each");
    assert!(times.len() >= 3 * 3, "{} calls", times.len());
}

/// Serves for 2 s, lets `fail` happen, and serves until all go by the store again.
async fn through(store: &str, more: &[&str], fail: impl AsyncFnOnce()) {
    let upstream = Upstream::usual().await;
    let gateways = gateways(3, &upstream, store, more).await;
    all(&gateways, true).await;
    clock::sleep(SECOND * 2).await;
    let callers = Callers::start(&gateways, 6);
    clock::sleep(SECOND * 2).await;
    let before = clock::now();
    fail().await;
    all(&gateways, true).await;
    clock::sleep(SECOND * 2).await;
    let after = clock::now();
    callers.end().await;
    let times = upstream.check();
    let used = between(&times, before, after);
    let whole = (after - before).as_secs_f64() * 5.0;
    let used = f64::from(u32::try_from(used).expect("a few"));
    assert!(used >= whole * 0.6, "{used} of {whole}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_should_lead_to_the_primary_also_after_a_failover() {
    let mut primary = Server::start().await;
    let of = primary.port.to_string();
    let replica = Server::with(&["--replicaof", "127.0.0.1", &of]).await;
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let port = server::free_port();
    let file = folder.path().join("sentinel.conf");
    let text = format!(
        "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {of} 1\n\
         sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
    );
    std::fs::write(&file, text).expect("it can be written");
    let file = file.display().to_string();
    let sentinel = Server::run("redis-sentinel", port, &[&file]).await;
    let replicas = async {
        while !sentinel
            .ask(&["SENTINEL", "replicas", "main"])
            .contains("127.0.0.1")
        {
            clock::sleep(Duration::from_millis(100)).await;
        }
    };
    within("the Sentinel to find the replica", replicas).await;
    let url = format!("redis+sentinel://127.0.0.1:{port}/main");
    through(&url, &[], async || {
        // Nothing more reaches the replica: its last writes are lost.
        replica.signal("STOP");
        clock::sleep(Duration::from_millis(300)).await;
        primary.kill();
        replica.signal("CONT");
        clock::sleep(SECOND).await;
    })
    .await;
    assert!(replica.ask(&["ROLE"]).contains("master"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_should_be_followed_to_the_node_that_has_the_keys() {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Server::with(&["--cluster-enabled", "yes"]).await);
    }
    for (node, [from, to]) in
        nodes
            .iter()
            .zip([["0", "5460"], ["5461", "10922"], ["10923", "16383"]])
    {
        assert!(
            node.ask(&["CLUSTER", "ADDSLOTSRANGE", from, to])
                .contains("+OK")
        );
        let port = nodes[0].port.to_string();
        node.ask(&["CLUSTER", "MEET", "127.0.0.1", &port]);
    }
    let whole = async {
        while !nodes
            .iter()
            .all(|node| node.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
        {
            clock::sleep(Duration::from_millis(50)).await;
        }
    };
    within("the cluster", whole).await;
    let hosts: Vec<_> = nodes
        .iter()
        .map(|node| format!("127.0.0.1:{}", node.port))
        .collect();
    // Whichever is asked first: at most one of them has the keys.
    let url = format!("redis://{}", hosts.join(","));
    through(&url, &["shared.prefix=a"], async || {}).await;
    let keys = nodes
        .iter()
        .filter(|node| !node.ask(&["DBSIZE"]).contains(":0"));
    assert_eq!(keys.count(), 1, "all keys are on one node");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_should_be_reached_over_tls_with_certificates_and_a_password() {
    let authority = Authority::new();
    let own = authority.issue("server", "localhost", |_| {});
    let client = authority.issue("client", "gateway", |_| {});
    let text = |path: &std::path::Path| path.display().to_string();
    let port = server::free_port().to_string();
    let store = Server::with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &text(&own.cert),
        "--tls-key-file",
        &text(&own.key),
        "--tls-ca-cert-file",
        &text(&authority.ca()),
        "--tls-auth-clients",
        "yes",
        "--user",
        "gateway",
        "on",
        ">open-sesame",
        "~*",
        "+@all",
    ])
    .await;
    let password = authority.folder().join("password");
    std::fs::write(&password, "open-sesame\n").expect("it can be written");
    let settings = [
        format!("shared.ca={}", text(&authority.ca())),
        format!("shared.cert={}", text(&client.cert)),
        format!("shared.key={}", text(&client.key)),
        "shared.username=gateway".to_owned(),
        format!("shared.password_file={}", text(&password)),
    ];
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let url = format!("rediss://localhost:{port}");
    through(&url, &settings, async || {}).await;
    assert!(store.ask(&["DBSIZE"]).contains(':'));

    // Without what it needs it says why, and goes on by itself.
    let upstream = Upstream::usual().await;
    let without = gateways(1, &upstream, &url, &settings[..1]).await;
    let status = without[0]
        .status(|status| status["shared"]["down_ms"].as_f64() > Some(500.0))
        .await;
    assert_eq!(status["shared"]["up"], false);
    std::fs::write(&password, "wrong").expect("it can be written");
    let wrong = gateways(1, &upstream, &url, &settings).await;
    let status = wrong[0]
        .status(|status| {
            status["shared"]["trouble"]
                .as_str()
                .is_some_and(|why| why.contains("WRONGPASS") || why.contains("uthentication"))
        })
        .await;
    assert!(!status.to_string().contains("wrong\""), "{status}");
    assert!(!wrong[0].process.stderr().contains("open-sesame"));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_gateways_than_slots_should_take_turns_without_the_store() {
    let mut store = Server::start().await;
    let upstream = Upstream::usual().await;
    let quota = [
        "quota.group_attributes.limit=1",
        "quota.group_attributes.window=500ms",
    ];
    let gateways = gateways(3, &upstream, &store.url(), &quota).await;
    all(&gateways, true).await;
    clock::sleep(SECOND * 2).await;
    let callers = Callers::start(&gateways, 3);
    clock::sleep(SECOND * 3).await;
    store.kill();
    clock::sleep(SECOND * 9).await;
    let answers = callers.answers();
    drop(callers);
    let times = times(&upstream.arrivals());
    let worst = worst_window(&times, SECOND / 2);
    assert!(worst <= 1, "{worst} in a window");
    assert!(answers.iter().all(|&own| own >= 3), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sent_should_not_be_asked_for() {
    let store = Server::start().await;
    let upstream = Upstream::usual().await;
    let gateways = gateways(1, &upstream, &store.url(), &[]).await;
    all(&gateways, true).await;
    let text = |n: usize| "x".repeat(n);
    let before = store.calls();
    let started = clock::now();
    for _ in 0..50 {
        let bad = call(
            SET,
            "",
            &format!(
                r#"{{"GroupId":"g","GroupAttr":[{{"key":"{}","value":""}}]}}"#,
                text(40)
            ),
        );
        let answer = gateways[0].call(&bad).await;
        assert_eq!(answer.one("x-chat-gateway-reason"), "invalid");
    }
    let calls = store.calls() - before;
    // It says that it is there, now and then.
    let heartbeats = 2 + 2 * (clock::now() - started).as_secs();
    assert!(calls <= heartbeats, "{calls} store calls for nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shed_or_refused_should_not_be_asked_for() {
    let store = Server::start().await;
    let refusal = r#"{"ActionStatus":"FAIL","ErrorInfo":"expired","ErrorCode":70001}"#;
    let upstream = Recorder::start(move |request| {
        Deed::ok(if request.body.windows(4).any(|part| part == b"\"no\"") {
            refusal
        } else {
            recorder::OK
        })
    })
    .await;
    let shared = format!("shared.redis={}", store.url());
    let settings = [
        shared.as_str(),
        "state.hold=0s",
        "shared.budget=100ms",
        "shared.replicas=1",
        "quota.group_attributes.limit=1",
        "quota.group_attributes.window=60s",
    ];
    let gateway = Gateway::with(&upstream.url(), &settings).await;
    all(std::slice::from_ref(&gateway), true).await;
    let write = |headers, group| call(SET, headers, &one_attribute(group));
    let reason = async |request: &[u8]| {
        let answer = gateway.call(request).await;
        let reasons = answer.all("x-chat-gateway-reason");
        reasons.first().copied().unwrap_or_default().to_owned()
    };
    // The window of the group is full; and then the API refuses the credentials.
    assert_eq!(reason(&write("", "g")).await, "");
    for (first, then, group) in [("deadline", "deadline", "g"), ("", "unauthorized", "no")] {
        assert_eq!(
            reason(&write("x-chat-gateway-timeout: 9s\r\n", group)).await,
            first
        );
        clock::sleep(SECOND / 2).await;
        let (before, started) = (store.calls(), clock::now());
        for _ in 0..50 {
            let hurried = write("x-chat-gateway-timeout: 9s\r\n", group);
            assert_eq!(reason(&hurried).await, then);
        }
        let calls = store.calls() - before;
        let heartbeats = 2 + 2 * (clock::now() - started).as_secs();
        assert!(calls <= heartbeats, "{calls} store calls for nothing");
    }
    assert_eq!(upstream.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_that_are_counted_should_be_as_many_as_there_may_be_however_wide_the_batches() {
    const LIMIT: u32 = 50;
    let store = Server::start().await;
    let window = SECOND * 2;
    let mut counted = Settings {
        latency: Duration::from_millis(3),
        jitter: Duration::from_millis(4),
        count: Counted::Pairs,
        ..Settings::default()
    };
    counted.limits.message_extension = Limit::new(LIMIT, window);
    let upstream = Upstream::start(counted).await;
    let settings = [
        "quota.message_extension.count=pairs",
        "quota.message_extension.limit=50",
        "quota.message_extension.window=2s",
        "shared.replicas=2",
    ];
    let gateways = gateways(2, &upstream, &store.url(), &settings).await;
    all(&gateways, true).await;
    clock::sleep(SECOND * 4).await;
    // Up to twenty pairs travel together; those of one call always do.
    let mut callers = JoinSet::new();
    for (gateway, caller) in (0..2).flat_map(|gateway| (0..9).map(move |caller| (gateway, caller)))
    {
        let to = gateways[gateway].traffic;
        let count = if caller == 8 { 9 } else { 1 + caller % 2 * 2 };
        let pairs: Vec<_> = (0..count)
            .map(|n| format!(r#"{{"Key":"{gateway}{caller}{n}","Value":"v"}}"#))
            .collect();
        let body = format!(
            r#"{{"GroupId":"g","MsgSeq":1,"OperateType":1,"ExtensionList":[{}]}}"#,
            pairs.join(",")
        );
        callers.spawn(async move {
            let mut connection = Connection::to(to).await;
            loop {
                connection.send(&call(EXTEND, "", &body)).await;
                let answer = connection.answer_to("POST").await;
                assert_eq!(answer.json()["ErrorCode"], 0);
            }
        });
    }
    let from = clock::now();
    clock::sleep(SECOND * 10).await;
    let to = clock::now();
    callers.shutdown().await;
    let arrivals = upstream.arrivals();
    let each = |arrival: &Arrival| std::iter::repeat_n(arrival.at, arrival.pairs);
    let times: Vec<_> = arrivals.iter().flat_map(each).collect();
    let worst = worst_window(&times, window);
    assert!(worst <= LIMIT as usize, "{worst} pairs in a window");
    let refused = upstream.simulator.report().refusals;
    assert!(refused.is_empty(), "the upstream refused {refused:?}");
    let widest = arrivals.iter().map(|arrival| arrival.pairs).max();
    assert!(widest >= Some(16), "{widest:?} pairs in a call");
    let used = between(&times, from, to);
    println!("{used} pairs of 250 in {} calls", arrivals.len());
    assert!(used >= 225, "{used} pairs in {:?}", to - from);
}

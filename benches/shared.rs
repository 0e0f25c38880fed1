//! What a shared store costs: `cargo bench --bench shared`, with `redis-server` installed.
//!
//! - *permits in memory*: a slot in two windows, taken and settled, without a store.
//! - *permits by the store*: the same through one gateway's connection to a Redis on loopback, for so
//!   many groups at a time; what was settled travels with the next call.
//! - *the script*: calls of `take.lua` that one Redis makes, over a window that is nearly full; and
//!   its time in the server, as the server counts it.

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use chat_gateway::{
    call::{LaneKey, QuotaClass, Target},
    clock,
    config::{Config, Sources, load},
    metrics::Metrics,
    quota::{local::Quota, redis::Store, scopes::Scopes},
};

const SPAN: Duration = Duration::from_secs(3);

struct Server(Child, u16);

impl Drop for Server {
    fn drop(&mut self) {
        // It is of no use any more, however it ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn server() -> Server {
    let free = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let port = free.local_addr().expect("it is bound").port();
    drop(free);
    let child = Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
        ])
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed");
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        clock::sleep(Duration::from_millis(5)).await;
    }
    Server(child, port)
}

fn config(limit: u32, window: &str, more: &[String]) -> Config {
    let settings = [
        "state.hold=0s".to_owned(),
        format!("quota.group_attributes.limit={limit}"),
        format!("quota.group_attributes.window={window}"),
        format!("quota.api.limit={limit}"),
        format!("quota.api.window={window}"),
    ];
    let sources = Sources {
        overrides: settings.into_iter().chain(more.iter().cloned()).collect(),
        ..Sources::default()
    };
    load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn scopes(quota: &Quota, group: usize) -> Scopes {
    let target = Target {
        app: 1,
        group: format!("group {group}").into(),
        message: None,
    };
    let key = LaneKey {
        class: QuotaClass::GroupAttributes,
        target,
    };
    Scopes {
        key: Some((quota.key(&key), 1)),
        command: quota.command("/v4/x/y", Some(1)),
    }
}

/// Permits a second, for so many groups at a time.
async fn permits(quota: &Quota, groups: usize) -> f64 {
    let until = clock::now() + SPAN;
    let mut tasks = tokio::task::JoinSet::new();
    for group in 0..groups {
        let scopes = scopes(quota, group);
        tasks.spawn(async move {
            let mut made = 0_u32;
            while clock::now() < until {
                scopes.acquire().await.settle(clock::now(), Duration::ZERO);
                made += 1;
                tokio::task::yield_now().await;
            }
            made
        });
    }
    let made: u32 = tasks.join_all().await.iter().sum();
    f64::from(made) / SPAN.as_secs_f64()
}

/// Calls of the script so far, and the time that they took in the server.
async fn script_calls(port: u16) -> (f64, f64) {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).expect("a legal URL");
    let mut connection = client
        .get_multiplexed_async_connection()
        .await
        .expect("it listens");
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut connection)
        .await
        .expect("it answers");
    let line = stats
        .lines()
        .find(|line| line.starts_with("cmdstat_evalsha:"));
    let field = |name: &str| {
        let rest = line?.split_once(name)?.1;
        rest.split(',').next()?.parse::<f64>().ok()
    };
    (
        field("calls=").unwrap_or(0.0),
        field("usec=").unwrap_or(0.0),
    )
}

async fn shared(limit: u32, window: &str, groups: usize) {
    let server = server().await;
    let more = [
        format!("shared.redis=redis://127.0.0.1:{}", server.1),
        "shared.replicas=1".to_owned(),
        "shared.budget=1s".to_owned(),
    ];
    let config = config(limit, window, &more);
    let store = Store::new(&config, Arc::new(Metrics::new())).expect("no file is named");
    let store = store.expect("windows are shared");
    let keeper = tokio::spawn(store.clone().keep());
    while !store.view(clock::now()).up {
        clock::sleep(Duration::from_millis(1)).await;
    }
    clock::sleep(Duration::from_millis(1_100)).await;
    let quota = Quota::new(&config).shared_in(Some(store));
    let (calls, micros) = script_calls(server.1).await;
    let made = permits(&quota, groups).await;
    let (calls_after, micros_after) = script_calls(server.1).await;
    let calls = calls_after - calls;
    println!(
        "limit {limit:>7} in {window:>4}, {groups:>3} groups: {made:>8.0} permits/s by the store, \
         {:>8.0} calls/s, {:>6.1} us a call in Redis, {:.2} calls a permit",
        calls / SPAN.as_secs_f64(),
        (micros_after - micros) / calls,
        calls / (made * SPAN.as_secs_f64()),
    );
    keeper.abort();
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    runtime.block_on(async {
        // Windows of a millisecond are never full: what is measured is the way, not the wait.
        let in_memory = Quota::new(&config(1_000_000, "1ms", &[]));
        for groups in [1, 64] {
            let made = permits(&in_memory, groups).await;
            println!("{groups:>3} groups: {made:>8.0} permits/s in memory");
        }
        for groups in [1, 16, 64] {
            shared(1_000_000, "1ms", groups).await;
        }
        // The quota of a command, full all the time.
        shared(200, "1s", 64).await;
    });
}

//! What is measured, line by line of the table.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::{
    Result, Run,
    bench::{Bench, OPEN, Proxy, USUAL, alternate, cpu_per_call, good_load, plain},
    load::{Kind, Order},
    measure::{Rounds, row},
    plot::{self, Point, Series},
    process::{Load, OTHER, OWN, Process, load},
};

/// The table of ratios.
pub fn table(run: &Run) -> Result<()> {
    let bench = Bench::new(run)?;
    println!("| work | measured | goal |\n|---|---|---|");
    for (name, scenario) in [
        ("pass", pass as fn(&Bench<'_>) -> Result<()>),
        ("write", write),
        ("keys", keys),
        ("latency", latency),
        ("cores", cores),
        ("crowd", crowd),
        ("state", state),
        ("shared", shared),
        ("memory", memory),
        ("start", start),
    ] {
        if bench.wants(name) {
            scenario(&bench)?;
        }
    }
    Ok(())
}

fn pass(bench: &Bench<'_>) -> Result<()> {
    let gateway = bench.gateway(OWN, OPEN)?;
    let mut proxies = vec![(&gateway, bench.order(gateway.port, Kind::Unknown))];
    let peers = [
        bench.peer("nginx")?,
        bench.peer("HAProxy")?,
        Some(bench.bare()?),
    ];
    for peer in peers.iter().flatten() {
        proxies.push((peer, bench.order(peer.port, Kind::Unknown)));
    }
    let spent = alternate(bench, &proxies)?;
    row("pass-through, us of CPU per call", &spent[0], "");
    for ((peer, _), rounds) in proxies.iter().zip(&spent).skip(1) {
        let goal = if peer.name == "nginx" { "1.0" } else { "" };
        let work = format!("pass-through, CPU over {}'s", peer.name);
        row(&work, spent[0].over(rounds), goal);
    }
    Ok(())
}

fn write(bench: &Bench<'_>) -> Result<()> {
    let gateway = bench.gateway(OWN, USUAL)?;
    let Some(nginx) = bench.peer("nginx")? else {
        return Ok(());
    };
    let lua = bench.peer("nginx with Lua")?;
    for (bytes, name, goals) in [
        (300, "300 B", ["1.15", "0.6"]),
        (8_192, "8 KB", ["", "0.4"]),
    ] {
        let order = |port, kind| Order {
            bytes,
            ..bench.order(port, kind)
        };
        let mut proxies = vec![
            (&gateway, order(gateway.port, Kind::Attributes)),
            (&nginx, order(nginx.port, Kind::Unknown)),
        ];
        proxies.extend(
            lua.iter()
                .map(|lua| (lua, order(lua.port, Kind::Attributes))),
        );
        let spent = alternate(bench, &proxies)?;
        row(
            &format!("set_group_attr {name}, us of CPU per call"),
            &spent[0],
            "",
        );
        for (((peer, _), rounds), goal) in proxies.iter().zip(&spent).skip(1).zip(goals) {
            let work = format!("set_group_attr {name}, CPU over {}'s", peer.name);
            row(&work, spent[0].over(rounds), goal);
        }
    }
    Ok(())
}

/// Writes to new groups through a gateway with its windows in a Redis, and through one without. Redis shares
/// the core of load and upstream.
fn shared(bench: &Bench<'_>) -> Result<()> {
    let Some((redis, store)) = bench.redis()? else {
        return Ok(());
    };
    let (with, without) = (bench.gateway(OWN, &store)?, bench.gateway(OWN, USUAL)?);
    // A new Redis is believed after a while.
    std::thread::sleep(Duration::from_secs(5));
    let mut rates = [Rounds::default(), Rounds::default()];
    let mut spent = [Rounds::default(), Rounds::default()];
    let mut in_redis = Rounds::default();
    for round in 0..=bench.run.rounds {
        for (n, proxy) in [&with, &without].into_iter().enumerate() {
            let (own, before) = (proxy.process.cpu()?, redis.cpu()?);
            let outcome = good_load(proxy, &bench.order(proxy.port, Kind::Attributes))?;
            let calls = outcome.good as f64;
            let micros = |time: Duration| time.as_secs_f64() * 1e6 / calls;
            if round == 0 {
                continue;
            }
            rates[n].0.push(calls / outcome.seconds);
            spent[n].0.push(micros(proxy.process.cpu()? - own));
            if n == 0 {
                in_redis.0.push(micros(redis.cpu()? - before));
            }
        }
    }
    row("writes a second, windows in memory", &rates[1], "");
    row("the same, windows in a Redis", &rates[0], "");
    row(
        "writes a second, in a Redis over in memory",
        rates[0].over(&rates[1]),
        "",
    );
    row(
        "CPU of the gateway per write, in a Redis over in memory",
        spent[0].over(&spent[1]),
        "",
    );
    row("us of CPU of Redis per write", &in_redis, "");
    Ok(())
}

fn keys(bench: &Bench<'_>) -> Result<()> {
    // 64 callers of ten groups would have their calls merged, which costs less whatever the number.
    let unmerged = format!("{OPEN_LONG}[merge]\nenabled = false\n");
    let [few, many] = [(); 2].map(|()| bench.gateway(OWN, &unmerged));
    let (few, many) = (few?, many?);
    let order = |proxy: &Proxy, keys| Order {
        keys,
        ..bench.order(proxy.port, Kind::Attributes)
    };
    // All of them live before the first round counts.
    let warm = Order {
        millis: 60_000,
        calls: 100_000 / 64 + 1,
        ..order(&many, 100_000)
    };
    load(&warm)?;
    let spent = alternate(
        bench,
        &[(&few, order(&few, 10)), (&many, order(&many, 100_000))],
    )?;
    row(
        "100,000 live groups, CPU over that of 10",
        spent[1].over(&spent[0]),
        "1.2",
    );
    Ok(())
}

/// As [`OPEN`], with windows that outlast the bench.
const OPEN_LONG: &str = r#"
[quota.group_attributes]
limit = 1000000
window = "60s"
[quota.api]
limit = 1000000
[state]
hold = "0s"
"#;

/// Load and upstream are one thread here: two would wait for each other on their core, and that is what
/// would be measured.
fn latency(bench: &Bench<'_>) -> Result<()> {
    let bench = &bench.without_upstream("latency")?;
    let gateway = bench.gateway(OWN, USUAL)?;
    let Some(nginx) = bench.peer("nginx")? else {
        return Ok(());
    };
    let [mut direct, mut own, mut peers] = [(); 3].map(|()| [Rounds::default(), Rounds::default()]);
    for _ in 0..bench.run.rounds {
        for (port, quantiles) in [
            (bench.upstream, &mut direct),
            (gateway.port, &mut own),
            (nginx.port, &mut peers),
        ] {
            let order = Order {
                connections: 1,
                rate: 1_000,
                upstream: bench.upstream,
                ..bench.order(port, Kind::Attributes)
            };
            let outcome = load(&order)?;
            quantiles[0].0.push(outcome.p50 as f64);
            quantiles[1].0.push(outcome.p99 as f64);
        }
    }
    row(
        "1 connection, 1,000 calls/s: p50 without a proxy, us",
        &direct[0],
        "",
    );
    row("p50 with the gateway, us", &own[0], "");
    row("p50 with nginx, us", &peers[0], "");
    let added = |quantiles: &[Rounds; 2], n: usize| quantiles[n].less(&direct[n]);
    let p50 = added(&own, 0).over(&added(&peers, 0));
    row(
        "p50 that the gateway adds, over what nginx adds",
        p50,
        "1.3",
    );
    row("p99 that the gateway adds, us", added(&own, 1), "1000");
    row("p99 that nginx adds, us", added(&peers, 1), "");
    Ok(())
}

/// With two cores in all, load and upstream take their part of both: what is compared is the CPU
/// that a call costs, which says how much twice the cores could carry.
fn cores(bench: &Bench<'_>) -> Result<()> {
    let both = format!("{OWN},{OTHER}");
    let (one, two) = (bench.gateway(OWN, USUAL)?, bench.gateway(&both, USUAL)?);
    let order = |proxy: &Proxy| bench.order(proxy.port, Kind::Attributes);
    let spent = alternate(bench, &[(&one, order(&one)), (&two, order(&two))])?;
    let ratio = Rounds(spent[0].over(&spent[1]).0.iter().map(|r| 2.0 * r).collect());
    row("two cores instead of one, by CPU per call", ratio, "1.8");
    Ok(())
}

fn crowd(bench: &Bench<'_>) -> Result<()> {
    let callers = 10_000;
    let arguments = [
        "--latency",
        "10ms",
        "--message-extension",
        "1000000/1m",
        "--group-attributes",
        "1000000/1s",
        "--api",
        "1000000/1s",
    ];
    let (_simulator, simulated) = bench.simulator(&arguments)?;
    let gateway = bench.gateway_before(&plain(simulated), OWN, OPEN)?;
    let alone = Order {
        connections: 1,
        ..bench.order(gateway.port, Kind::Attributes)
    };
    let uncontended = cpu_per_call(&gateway, &alone)?;
    let crowd = Order {
        connections: callers,
        calls: 1,
        millis: 600_000,
        ..bench.order(gateway.port, Kind::Extension)
    };
    let contended = cpu_per_call(&gateway, &crowd)?;
    row(
        "10,000 callers on one message: CPU per call over an uncontended one's",
        format!("{:.2}", contended / uncontended),
        "2",
    );
    let batches = |part| {
        let name = format!("chat_gateway_batch_calls_{part}");
        gateway.metric(&name, "command=\"group_set_key_values\"")
    };
    row(
        "the same: callers' calls in one at the upstream",
        format!("{:.1}", batches("sum")? / batches("count")?),
        "20",
    );
    Ok(())
}

/// Writes with and without a state file: in windows so short that they need none, in long ones, and
/// where there are so few slots that each attempt is written down before it is sent.
fn state(bench: &Bench<'_>) -> Result<()> {
    let of_a_minute = "[quota.group_attributes]\nlimit = 200\nwindow = \"60s\"\n";
    for (n, (quota, hold, kind, work)) in [
        ("", "1s", Kind::Attributes, "ever new groups"),
        (
            of_a_minute,
            "1s",
            Kind::Attributes,
            "200 a minute of ever new groups",
        ),
        ("", "1s", Kind::Extension, "64 callers of one message"),
        ("", "0s", Kind::Attributes, "each attempt written down"),
    ]
    .into_iter()
    .enumerate()
    {
        let settings = format!(
            "[quota.api]\nlimit = 1000000\n[quota.message_extension]\nlimit = 1000000\n\
             {quota}[state]\nhold = \"{hold}\"\n"
        );
        let file = bench.folder.join(format!("windows-{n}"));
        let remembering = format!("{settings}file = \"{}\"\n", file.display());
        let (without, with) = (
            bench.gateway(OWN, &settings)?,
            bench.gateway(OWN, &remembering)?,
        );
        let order = |proxy: &Proxy| bench.order(proxy.port, kind);
        let spent = alternate(bench, &[(&without, order(&without)), (&with, order(&with))])?;
        let work = format!("state.file, {work}: CPU over that without");
        row(&work, spent[1].over(&spent[0]), "1.05");
    }
    Ok(())
}

fn memory(bench: &Bench<'_>) -> Result<()> {
    let gateway = bench.gateway(OWN, USUAL)?;
    let idle = gateway.process.resident()?;
    row(
        "resident memory idle, MiB",
        format!("{:.1}", idle as f64 / 1024.0),
        "12",
    );
    drop(gateway);

    let keys = 100_000;
    let gateway = bench.gateway(OWN, OPEN_LONG)?;
    let many = Order {
        keys,
        calls: keys / 64 + 1,
        millis: 120_000,
        ..bench.order(gateway.port, Kind::Attributes)
    };
    let before = gateway.process.resident()?;
    load(&many)?;
    let grown = gateway.process.resident()? - before;
    row(
        "memory per remembered key, KiB",
        format!("{:.2}", grown as f64 / keys as f64),
        "3",
    );
    drop(gateway);

    // One group at 10 a second, and time enough that all are let in: nearly everybody waits.
    let waiting = 10_000;
    let gateway = bench.gateway(OWN, "[quota.group_attributes]\nlimit = 10\n[queue]\ndeadline = \"30m\"\n[state]\nhold = \"0s\"\n[merge]\nenabled = false\n")?;
    let crowd = Order {
        connections: waiting,
        calls: 1,
        keys: 1,
        bytes: 300,
        millis: 8_000,
        ..bench.order(gateway.port, Kind::Attributes)
    };
    let before = gateway.process.resident()?;
    let crowd = Load::start(&crowd)?;
    all_wait(&gateway, waiting)?;
    let grown = gateway.process.resident()?.saturating_sub(before);
    row(
        "memory per connection with a waiting call of 300 B, KiB",
        format!("{:.2}", grown as f64 / waiting as f64),
        "2 and the body",
    );
    drop(gateway);
    // They hear nothing any more.
    let _ = crowd.finish();

    let gateway = bench.gateway(OWN, USUAL)?;
    let before = gateway.process.resident()?;
    let of = |calls: usize| Order {
        calls: calls / 64,
        millis: 600_000,
        ..bench.order(gateway.port, Kind::Attributes)
    };
    load(&of(20_000))?;
    std::thread::sleep(Duration::from_secs(5));
    let warm = gateway.process.resident()?;
    load(&of(1_000_000))?;
    std::thread::sleep(Duration::from_secs(5));
    let after = gateway.process.resident()?;
    let idle = before as f64 / 1024.0;
    eprintln!(
        "{idle:.1} MiB idle, {:.1} after 20,000 keys, {:.1} after 1,000,000 more",
        warm as f64 / 1024.0,
        after as f64 / 1024.0
    );
    row(
        "resident memory after 1,000,000 keys over that after 20,000",
        format!("{:.2}", after as f64 / warm as f64),
        "1.2",
    );
    Ok(())
}

fn start(bench: &Bench<'_>) -> Result<()> {
    let size = fs::metadata(&bench.run.gateway)?.len();
    row(
        "release binary, MiB",
        format!("{:.1}", size as f64 / f64::from(1 << 20)),
        "10",
    );
    let mut ready = Rounds::default();
    for _ in 0..bench.run.rounds {
        ready
            .0
            .push(bench.gateway(OWN, USUAL)?.process.ready_after.as_secs_f64() * 1e3);
    }
    row("start to ready, ms", ready, "50");
    Ok(())
}

/// CPU per call and memory, as one thing grows.
pub fn growth(run: &Run) -> Result<()> {
    let bench = Bench::new(run)?;
    let all = [
        Series {
            name: "live keys",
            points: grow(&[1, 10, 1_000, 100_000], |keys| {
                let gateway = bench.gateway(OWN, OPEN_LONG)?;
                let order = Order {
                    keys,
                    ..bench.order(gateway.port, Kind::Attributes)
                };
                // All of them live before the first round counts.
                load(&Order {
                    calls: keys / 64 + 1,
                    millis: 60_000,
                    ..order.clone()
                })?;
                point(&bench, &gateway, keys, &order)
            })?,
        },
        Series {
            name: "connections",
            points: grow(&CONNECTIONS, |connections| {
                passing(&bench, &bench.gateway(OWN, OPEN)?, connections)
            })?,
        },
        Series {
            name: "connections, nginx",
            points: grow(&CONNECTIONS, |connections| {
                let nginx = bench.peer("nginx")?.ok_or("it is compared with nginx")?;
                passing(&bench, &nginx, connections)
            })?,
        },
        Series {
            name: "calls that wait beside",
            points: grow(&[0, 100, 1_000, 10_000, 100_000], |calls| {
                let gateway = bench.gateway(OWN, WAITING)?;
                let _waiting = Process::waiting(gateway.port, calls)?;
                all_wait(&gateway, calls)?;
                let order = bench.order(gateway.port, Kind::Attributes);
                point(&bench, &gateway, calls, &order)
            })?,
        },
    ];
    println!("| what | how many | CPU per call, us | resident, MiB |\n|---|---|---|---|");
    for Series { name, points } in &all {
        for Point { count, cpu, memory } in points {
            println!("| {name} | {count} | {cpu:.1} | {memory:.1} |");
        }
    }
    plot::draw(&run.benches.join("growth.svg"), &all)
}

/// One group that is as good as closed, with room for all that wait for it and time to let them in.
const WAITING: &str = r#"
[quota.group_attributes]
limit = 2
[quota.api]
limit = 1000000
[queue]
deadline = "24h"
max_calls = 1000000
max_calls_per_key = 1000000
max_bytes = "1GiB"
[merge]
enabled = false
[state]
hold = "0s"
"#;

/// Each with another to the upstream, while those of the round before may still be there: the last are
/// as many as 20,000 open files allow.
const CONNECTIONS: [usize; 5] = [1, 10, 100, 1_000, 6_000];

/// Calls that no proxy knows, over so many connections.
fn passing(bench: &Bench<'_>, proxy: &Proxy, connections: usize) -> Result<Point> {
    let order = Order {
        connections,
        ..bench.order(proxy.port, Kind::Unknown)
    };
    point(bench, proxy, connections, &order)
}

fn grow(counts: &[usize], measure: impl Fn(usize) -> Result<Point>) -> Result<Vec<Point>> {
    counts.iter().map(|count| measure(*count)).collect()
}

/// The middle of the rounds, after one that is thrown away.
fn point(bench: &Bench<'_>, gateway: &Proxy, count: usize, order: &Order) -> Result<Point> {
    let rounds = alternate(bench, &[(gateway, order.clone())])?;
    Ok(Point {
        count,
        cpu: rounds[0].median(),
        memory: gateway.process.resident()? as f64 / 1024.0,
    })
}

/// Waits until nearly all of them wait.
fn all_wait(gateway: &Proxy, calls: usize) -> Result<()> {
    let began = Instant::now();
    while gateway.metric("chat_gateway_queue_calls", "group_attributes")? < calls as f64 * 0.95 {
        if began.elapsed() > Duration::from_secs(60) {
            return Err("not all of the calls wait".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

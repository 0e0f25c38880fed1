//! What a release is laid out by: calls of every kind through a gateway that counts which ways its code takes
//! (profile-guided optimisation). What is not called here is taken for rare and built to be small.

use std::{fs, thread, time::Duration};

use crate::{
    Result, Run,
    bench::{self, Bench, OPEN, Proxy, USUAL, plain},
    load::{Kind, Order},
    process::{OWN, Process, load},
};

/// Calls through the gateway under several settings, each ended in order, for its profile is written then: where
/// `LLVM_PROFILE_FILE` says.
pub fn run(run: &Run) -> Result<()> {
    let bench = Bench::new(run)?;
    common(&bench)?;
    waiting(&bench)?;
    encrypted(&bench)?;
    shared(&bench)
}

/// What most calls are: nothing waits, nothing fails. Twice what the others have.
fn common(bench: &Bench<'_>) -> Result<()> {
    let gateway = bench.gateway(OWN, OPEN)?;
    let of = |kind| bench.order(gateway.port, kind);
    for _ in 0..2 {
        for order in [
            of(Kind::Unknown),
            of(Kind::Attributes),
            Order {
                bytes: 8_000,
                ..of(Kind::Attributes)
            },
            Order {
                keys: 100,
                ..of(Kind::Attributes)
            },
            Order {
                connections: 1_000,
                ..of(Kind::Unknown)
            },
        ] {
            good(&gateway, &order)?;
        }
    }
    over_http2(&gateway, 20_000)?;
    gateway.metric("chat_gateway_requests_total", "")?;
    gateway.process.end()
}

/// Calls that wait and travel together, those of ever new groups with their windows in a file.
fn waiting(bench: &Bench<'_>) -> Result<()> {
    let file = bench.folder.join("windows");
    let settings = format!(
        "{USUAL}file = \"{}\"\n[quota.message_extension]\nlimit = 1000000\n",
        file.display()
    );
    let gateway = bench.gateway(OWN, &settings)?;
    for (kind, keys) in [
        (Kind::Attributes, 0),
        (Kind::Attributes, 10),
        (Kind::Extension, 0),
    ] {
        let order = bench.order(gateway.port, kind);
        good(&gateway, &Order { keys, ..order })?;
    }
    over_http2(&gateway, 2_000)?;
    gateway.process.end()
}

/// Through a gateway that calls another over TLS, in front of an API that fails now and then.
fn encrypted(bench: &Bench<'_>) -> Result<()> {
    let authority = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let (certificate, key) = (bench.folder.join("tls.crt"), bench.folder.join("tls.key"));
    fs::write(&certificate, authority.cert.pem())?;
    fs::write(&key, authority.signing_key.serialize_pem())?;
    let (certificate, key) = (certificate.display(), key.display());

    let arguments = [
        "--api",
        "1000000/1s",
        "--fail",
        "10002=0.02",
        "--fail",
        "reset-after=0.01",
    ];
    let (_simulator, api) = bench.simulator(&arguments)?;
    let tls = format!("{USUAL}[listen.tls]\ncert = \"{certificate}\"\nkey = \"{key}\"\n");
    let inner = bench.gateway_before(&plain(api), OWN, &tls)?;
    for http2 in [false, true] {
        let url = format!(
            "url = \"https://127.0.0.1:{}\"\nca = \"{certificate}\"\nhttp2 = {http2}",
            inner.port
        );
        let outer = bench.gateway_before(&url, OWN, USUAL)?;
        for kind in [Kind::Unknown, Kind::Attributes] {
            let outcome = load(&bench.order(outer.port, kind))?;
            if outcome.good < outcome.bad {
                return Err(format!("over TLS: {outcome:?}").into());
            }
        }
        outer.process.end()?;
    }
    inner.process.end()
}

/// With the windows in a Redis, if there is one.
fn shared(bench: &Bench<'_>) -> Result<()> {
    let Some((_redis, settings)) = bench.redis()? else {
        return Ok(());
    };
    let gateway = bench.gateway(OWN, &settings)?;
    // A new Redis is believed after a while.
    thread::sleep(Duration::from_secs(5));
    for keys in [0, 10] {
        let order = bench.order(gateway.port, Kind::Attributes);
        good(&gateway, &Order { keys, ..order })?;
    }
    gateway.process.end()
}

fn good(gateway: &Proxy, order: &Order) -> Result<()> {
    bench::good_load(gateway, order).map(drop)
}

/// So many calls at a time.
fn over_http2(gateway: &Proxy, calls: usize) -> Result<()> {
    let calls = Process::waiting(gateway.port, calls)?;
    thread::sleep(Duration::from_secs(2));
    drop(calls);
    Ok(())
}

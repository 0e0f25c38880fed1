//! A panic says where it was and nothing of what a call holds (P6).
//!
//! The program has no way to be made panic, so its parts are run with an upstream connection that does,
//! in a process of its own: what is done about panics is done for a whole process.

use std::{
    env, io,
    process::{Command, Output},
    sync::Arc,
};

use bytes::Bytes;
use chat_gateway::{
    call::Caller,
    config::{Config, Sources, load},
    log,
    metrics::Metrics,
    serve::Core,
};
use http::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const ROLE: &str = "CHAT_GATEWAY_PANICS";
const SIGNATURE: &str = "eJwVERYSECRETSIGNATURE0123456789abcdefx";
const VALUE: &str = "the-value-that-nobody-else-may-see";

/// What the process says that plays `role`, and how it ended.
fn played(role: &str) -> (bool, String) {
    let own = env::current_exe().expect("the tests run");
    let test = "panics::panics_should_not_quote_calls";
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(own)
        .args(["--exact", test, "--nocapture"])
        .env(ROLE, role)
        .output()
        .expect("it can be run again");
    let said = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (status.success(), said.concat())
}

#[test]
fn panics_should_not_quote_calls() {
    match env::var(ROLE).as_deref() {
        Ok("as they are") => play(),
        Ok(_) => {
            log::panics::report();
            play();
        }
        Err(_) => {
            let (ended_well, said) = played("as they are");
            assert!(ended_well, "{said}");
            for secret in [SIGNATURE, VALUE] {
                assert!(
                    said.contains(secret),
                    "nothing was there to be hidden: {said}"
                );
            }
            let (ended_well, said) = played("reported");
            assert!(ended_well, "{said}");
            for part in [
                "panicked",
                "src/tests/panics.rs:",
                "60008",
                "metrics:",
                "status:",
            ] {
                assert!(said.contains(part), "{part} in {said}");
            }
            for secret in [
                &SIGNATURE[..12],
                &SIGNATURE[20..],
                &VALUE[..12],
                &VALUE[20..],
            ] {
                assert!(!said.contains(secret), "{secret} in {said}");
            }
        }
    }
}

/// One call that panics while it is read, and one that does on its way; then all that can be asked for.
#[tokio::main(flavor = "current_thread")]
async fn play() {
    let settings = ["state.hold=0s", "log.level=trace", "queue.deadline=2s"];
    let sources = Sources {
        overrides: settings.map(str::to_owned).into(),
        ..Sources::default()
    };
    let config: Config = load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    log::init(&config.log);
    let connector = tower::service_fn(|_: Uri| {
        // A task of its own, as the client has them for connections.
        let connecting = tokio::spawn(async { broken() });
        async { connecting.await.unwrap_or_else(|_| broken()) }
    });
    let connector = tower::ServiceExt::map_future(connector, Box::pin);
    let core = Core::new(&config, connector, Arc::new(Metrics::new()));
    let core = Arc::new(core);
    let call = |breaks: bool| {
        let core = core.clone();
        async move {
            let query = format!("sdkappid=88888888&identifier=admin&usersig={SIGNATURE}");
            let target = format!("/v4/group_open_http_svc/set_group_attr?{query}");
            let request = Request::post(target).body(()).expect("a legal target");
            let (mut head, ()) = request.into_parts();
            let value = format!(r#"{{"key":"k","value":"{VALUE}"}}"#);
            let body = Bytes::from(format!(r#"{{"GroupId":"g","GroupAttr":[{value}]}}"#));
            let body = async move {
                assert!(!breaks, "{body:?} of {SIGNATURE}");
                Ok(body)
            };
            core.gateway.handle(Caller::Local, &mut head, body).await
        }
    };
    let broken = tokio::spawn(call(true)).await;
    assert!(broken.is_err(), "it panicked");
    let answer = tokio::spawn(call(false)).await.expect("the caller is told");
    println!("answer: {:?} {:?}", answer.headers(), answer.body());
    let admin = chat_gateway::admin::Admin::new(
        core.lanes.clone(),
        core.metrics.clone(),
        core.lifecycle.clone(),
        chat_gateway::clock::now(),
    );
    for (name, path) in [("metrics", "/metrics"), ("status", "/status.json")] {
        let request = Request::get(path)
            .body(Bytes::new())
            .expect("a legal target");
        println!("{name}: {:?}", admin.answer(&request).body());
    }
}

fn broken() -> io::Result<TokioIo<TcpStream>> {
    panic!("connecting for {SIGNATURE} with {VALUE}")
}

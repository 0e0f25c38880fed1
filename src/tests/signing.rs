//! Signatures that the gateway makes, and those that the API refuses, in paused time.

use std::{fs, time::Duration};

use chat_gateway::{clock, simulate::sign};
use http::Request;
use tempfile::NamedTempFile;

use crate::harness::{ATTRIBUTES, GET_ATTRIBUTES, Heard, World, attribute};

const KEY: &str = "5bd2850fff3ecb11d7c805251c51ee46";
const APP: u64 = 88_888_888;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

fn key_file(key: &str) -> NamedTempFile {
    let file = NamedTempFile::new().expect("there is a directory for temporary files");
    fs::write(file.path(), key).expect("it can be written");
    file
}

/// A gateway that signs with the key of `file`, before an API that knows [`KEY`].
fn world(file: &NamedTempFile, settings: &[&str]) -> World {
    let path = file.path().display();
    let sign = [
        format!("credentials.sdkappid={APP}"),
        "credentials.identifier=root admin".to_owned(),
        format!("credentials.secret_key_file={path}"),
    ];
    let mut all: Vec<&str> = sign.iter().map(String::as_str).collect();
    all.extend(settings);
    let mut simulator = World::upstream(20, 0, 1);
    simulator.key = Some(KEY.to_owned());
    World::new(simulator, &all)
}

fn modify(query: &str) -> String {
    format!("{ATTRIBUTES}modify_group_attr{query}")
}

async fn post(world: &World, target: &str, body: &str) -> Heard {
    let request = Request::post(target).body(body);
    world.request(request.expect("a legal request")).await
}

/// The query of a caller who signs with `key`.
fn own(key: &str, app: u64, identifier: &str) -> String {
    let now = clock::unix_now().as_secs();
    let usersig = sign(key, app, identifier, now, 86_400);
    format!("?sdkappid={app}&identifier={identifier}&usersig={usersig}")
}

#[tokio::test(start_paused = true)]
async fn calls_without_a_signature_should_be_signed_and_travel_together() {
    let file = key_file(KEY);
    let world = world(&file, &[]);
    let queries = [
        String::new(),
        "?random=5&contenttype=json".to_owned(),
        format!("?sdkappid={APP}"),
    ];
    let calls: Vec<_> = (0..30)
        .map(|n| {
            let target = modify(&queries[n % 3]);
            world.spawn(move |world| async move {
                let body = attribute("g", &format!("k{}", n % 16), "v");
                post(&world, &target, &body).await
            })
        })
        .collect();
    let mut alone = 0;
    for call in calls {
        let heard = call.await.expect("no call panics");
        assert_eq!((heard.code(), heard.origin()), (0, "upstream"), "{heard:?}");
        alone += usize::from(heard.batch() == 1);
    }
    let arrivals = world.arrivals();
    assert!(alone <= 1 && arrivals.len() <= 3, "{}", arrivals.len());
    for arrival in &arrivals {
        assert_eq!(arrival.identifier, "root admin");
        assert_eq!(arrival.usersig, arrivals[0].usersig);
    }
}

#[tokio::test(start_paused = true)]
async fn reads_without_a_signature_should_share_a_call() {
    let file = key_file(KEY);
    let world = world(&file, &[]);
    let calls: Vec<_> = (0..5)
        .map(|_| {
            world.spawn(
                |world| async move { post(&world, GET_ATTRIBUTES, r#"{"GroupId":"g"}"#).await },
            )
        })
        .collect();
    for call in calls {
        let heard = call.await.expect("no call panics");
        assert_eq!((heard.code(), heard.batch()), (0, 5), "{heard:?}");
    }
    assert_eq!(world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_signs_himself_should_pass_as_he_is_and_alone() {
    let file = key_file(KEY);
    let world = world(&file, &["quota.group_attributes.limit=1"]);
    let mine = own(KEY, APP, "other");
    let usersig = mine.rsplit('=').next().expect("a signature").to_owned();
    let first = world
        .spawn(|world| async move { post(&world, &modify(""), &attribute("g", "a", "v")).await });
    clock::sleep(Duration::from_millis(1)).await;
    let second = world
        .spawn(|world| async move { post(&world, &modify(""), &attribute("g", "b", "v")).await });
    clock::sleep(Duration::from_millis(1)).await;
    let third = post(&world, &modify(&mine), &attribute("g", "c", "v")).await;
    for heard in [first.await.unwrap(), second.await.unwrap(), third] {
        assert_eq!((heard.code(), heard.batch()), (0, 1), "{heard:?}");
    }
    let signatures: Vec<_> = world.arrivals().into_iter().map(|a| a.usersig).collect();
    assert_eq!(signatures[2], usersig);
    assert_eq!(signatures[0], signatures[1]);
    assert_ne!(signatures[0], usersig);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_signs_should_be_refused_here_if_it_is_known_and_pass_if_not() {
    let file = key_file(KEY);
    let world = world(&file, &[]);
    for (query, code) in [
        ("?sdkappid=1", 70_002),
        ("?identifier=somebody", 70_002),
        ("?sdkappid=x&usersig=y", 60_006),
    ] {
        let heard = post(&world, &modify(query), &attribute("g", "a", "v")).await;
        assert_eq!((heard.code(), heard.reason()), (code, "invalid"), "{query}");
    }
    let unknown = "/v4/im_open_login_svc/account_check";
    assert_eq!(post(&world, unknown, "{}").await.code(), 0);
    let target = format!("{unknown}?sdkappid=1");
    let heard = post(&world, &target, "{}").await;
    assert_eq!((heard.code(), heard.origin()), (60_004, "upstream"));
    let identifiers: Vec<_> = world.arrivals().into_iter().map(|a| a.identifier).collect();
    assert_eq!(identifiers, ["root admin", ""]);
}

#[tokio::test(start_paused = true)]
async fn a_signature_should_be_renewed_before_it_expires() {
    let file = key_file(KEY);
    let world = world(&file, &[]);
    let mut signatures = Vec::new();
    // The first one would be bad after 48.
    for hours in [0, 23, 2, 25] {
        clock::sleep(hours * HOUR).await;
        let heard = post(&world, &modify(""), &attribute("g", "a", "v")).await;
        assert_eq!(heard.code(), 0, "{heard:?}");
        let arrival = world.arrivals().pop().expect("it has arrived");
        if signatures.last() != Some(&arrival.usersig) {
            signatures.push(arrival.usersig);
        }
    }
    assert_eq!(signatures.len(), 3, "renewed at 25 and 50 hours");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_should_split_the_calls_that_wait_once() {
    let file = key_file(KEY);
    let settings = [
        "quota.group_attributes.limit=1",
        "quota.group_attributes.window=60s",
        "queue.deadline=10m",
    ];
    let world = world(&file, &settings);
    // The first takes the window of the last minute before the renewal.
    clock::sleep(Duration::from_secs(24 * 3_600 - 10)).await;
    let mut calls = Vec::new();
    for n in 0..11 {
        calls.push(world.spawn(move |world| async move {
            let body = attribute("g", &format!("k{n}"), "v");
            post(&world, &modify(""), &body).await
        }));
        clock::sleep(2 * SECOND).await;
    }
    let mut batches = Vec::new();
    for call in calls {
        let heard = call.await.expect("no call panics");
        assert_eq!(heard.code(), 0, "{heard:?}");
        batches.push(heard.batch());
    }
    assert_eq!(batches, [1, 4, 4, 4, 4, 6, 6, 6, 6, 6, 6]);
    assert_eq!(world.arrivals().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_signature_of_ours_that_is_refused_should_rest_until_the_key_is_right() {
    let file = key_file("another-key");
    let world = world(&file, &[]);
    let call = |query: &str| {
        let target = modify(query);
        let world = world.clone();
        async move { post(&world, &target, &attribute("g", "a", "v")).await }
    };
    let first = call("").await;
    assert_eq!((first.code(), first.origin()), (70_009, "upstream"));
    let second = call("").await;
    assert_eq!((second.code(), second.reason()), (70_009, "unauthorized"));
    // Who signs himself is not held back by it, with the same app and identifier or others.
    for identifier in ["root%20admin", "other"] {
        let mine = own(KEY, APP, &identifier.replace("%20", " ")).replace(' ', "%20");
        assert_eq!(call(&mine).await.code(), 0);
    }
    clock::sleep(6 * SECOND).await;
    assert_eq!(call("").await.origin(), "upstream");
    fs::write(file.path(), KEY).unwrap();
    let signer = world.core.keys.signers.each().next().expect("one app");
    assert_eq!(signer.reread(), Ok(true));
    assert_eq!(call("").await.code(), 0);
}

#[tokio::test(start_paused = true)]
async fn credentials_should_be_refused_here_by_exactly_their_bytes() {
    let file = key_file(KEY);
    for (code, seconds) in [(70_001, 5), (70_052, 5), (70_050, 60)] {
        let world = world(&file, &["state.hold=0s"]);
        let good = own(KEY, APP, "admin");
        let ask = |query: &str| {
            let target = modify(query);
            let world = world.clone();
            async move { post(&world, &target, &attribute("g", "a", "v")).await }
        };
        world.script(&[chat_gateway::simulate::Fault::Code(code)]);
        let heard = ask(&good).await;
        assert_eq!((heard.code(), heard.origin()), (code, "upstream"));
        let learnt = clock::now();
        let heard = ask(&good).await;
        assert_eq!((heard.code(), heard.reason()), (code, "unauthorized"));
        assert!(!heard.json()["ErrorInfo"].to_string().contains("usersig"));
        // A read with them, and a call of another group.
        let target = format!("{GET_ATTRIBUTES}{good}");
        let heard = post(&world, &target, r#"{"GroupId":"other"}"#).await;
        assert_eq!(heard.reason(), "unauthorized");
        // One byte of one of the three is another.
        for other in [
            good.replace("identifier=admin", "identifier=admin2"),
            good.replace("identifier=admin", "identifier=%61dmin"),
            good.replace("sdkappid=8", "sdkappid=08"),
            format!("{good}x"),
        ] {
            assert_eq!(ask(&other).await.origin(), "upstream", "{other}");
        }
        // Other parameters in another order are the same credentials.
        let again = format!("?random=77&{}", &good[1..]);
        assert_eq!(ask(&again).await.reason(), "unauthorized");
        clock::sleep_until(learnt + Duration::from_millis(seconds * 1_000 - 30)).await;
        assert_eq!(ask(&good).await.reason(), "unauthorized");
        clock::sleep(Duration::from_millis(31)).await;
        assert_eq!(ask(&good).await.code(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_with_refused_credentials_should_not_be_sent() {
    let file = key_file(KEY);
    let world = world(&file, &["queue.deadline=60s"]);
    let bad = own("stolen", APP, "admin");
    let good = own(KEY, APP, "admin");
    // Deletes travel alone: each of them would be a refusal more.
    let mut calls = Vec::new();
    for n in 0..40 {
        let is_bad = n % 2 == 0;
        let query = if is_bad { &bad } else { &good };
        let target = format!("{ATTRIBUTES}delete_group_attr{query}");
        let call = world.spawn(move |world| async move {
            let body = r#"{"GroupId":"g","GroupAttr":[{"key":"k"}]}"#;
            post(&world, &target, body).await
        });
        calls.push((is_bad, call));
    }
    // So do reads that wait for their command's quota.
    let mut heard_here = 0;
    for (is_bad, call) in calls {
        let heard = call.await.expect("no call panics");
        if is_bad {
            assert_eq!(heard.code(), 70_009, "{heard:?}");
            heard_here += u32::from(heard.reason() == "unauthorized" && heard.attempts() == 0);
        } else {
            assert_eq!((heard.code(), heard.origin()), (10_050, "upstream"));
        }
    }
    // 20 good ones take four seconds at five a second: one refusal is all that they carry along.
    assert_eq!(heard_here, 19);
    let refused = world.arrivals().into_iter().filter(|a| a.key.is_none());
    assert_eq!(refused.count(), 1);
}

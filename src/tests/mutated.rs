//! Bodies that are nearly right: whatever a byte is changed to, there is one answer, and nothing
//! waits for ever.

use std::{fs, path::Path};

use bytes::Bytes;
use chat_gateway::{
    call::{Caller, QuotaClass},
    catalogue::COMMANDS,
};
use http::Request;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use crate::harness::{CREDENTIALS, World, attribute, pair};

/// Every code with which the gateway refuses a call by itself.
const OWN: [i64; 9] = [
    10004, 10045, 10046, 10047, 10048, 10049, 23003, 60003, 60007,
];

/// The bodies that are changed: good ones, and those that the fuzzers keep.
fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/body");
    let mut seeds: Vec<Vec<u8>> = fs::read_dir(folder)
        .expect("the corpus is there")
        .map(|entry| fs::read(entry.expect("an entry").path()).expect("readable"))
        .filter(|seed| seed.len() < 4_000)
        .collect();
    assert!(seeds.len() > 10, "{}", seeds.len());
    // A directory has no order of its own; a seed of the generator should.
    seeds.sort();
    for n in 0..seeds.len() {
        seeds.push(attribute(&format!("g{}", n % 3), "key", "value").into_bytes());
        seeds.push(pair(&format!("g{}", n % 3), 7, "key", "value").into_bytes());
        seeds.push(br#"{"GroupId":"g1","GroupAttr":[{"key":"a"},{"key":"b"}]}"#.to_vec());
        seeds.push(br#"{"GroupId":"g2"}"#.to_vec());
    }
    seeds
}

fn mutate(body: &mut Vec<u8>, random: &mut StdRng) {
    const TELLING: &[u8] = b"{}[]\",:\\0-9.eE\0\xff\xc3 \n";
    if body.is_empty() {
        body.push(b'{');
    }
    let at = random.random_range(0..body.len());
    let telling = TELLING[random.random_range(0..TELLING.len())];
    match random.random_range(0..6) {
        0 => body[at] ^= 1 << random.random_range(0..8),
        1 => body[at] = telling,
        2 => body.insert(at, telling),
        3 => drop(body.remove(at)),
        4 => body.truncate(at),
        _ => {
            let end = (at + random.random_range(1..40)).min(body.len());
            let piece = body[at..end].to_vec();
            let to = random.random_range(0..=body.len());
            body.splice(to..to, piece);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn changed_bodies_should_each_have_one_answer() {
    const ROUNDS: usize = 100;
    const AT_ONCE: usize = 30;
    let world = World::new(World::upstream(5, 5, 1), &[]);
    let seeds = seeds();
    let mut random = StdRng::seed_from_u64(20);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        let calls = (0..AT_ONCE).map(|_| {
            let mut body = seeds[random.random_range(0..seeds.len())].clone();
            for _ in 0..random.random_range(0..4) {
                mutate(&mut body, &mut random);
            }
            let path = COMMANDS[random.random_range(0..COMMANDS.len())].path;
            let uri = format!("{path}?{CREDENTIALS}&random=7&contenttype=json");
            let request = Request::post(uri).body(()).expect("a legal request");
            let world = world.clone();
            tokio::spawn(async move {
                let bytes = Bytes::from(body.clone());
                let gateway = &world.core.gateway;
                let (mut head, ()) = request.into_parts();
                let answer = gateway.handle(Caller::Local, &mut head, async { Ok(bytes) });
                (body, answer.await)
            })
        });
        let calls: Vec<_> = calls.collect();
        for call in calls {
            let (body, answer) = call.await.expect("no panic");
            let body = String::from_utf8_lossy(&body);
            let envelope: Value = serde_json::from_slice(answer.body())
                .unwrap_or_else(|error| panic!("{error}: {answer:?} to {body}"));
            let code = envelope["ErrorCode"].as_i64().expect("a code");
            if answer.headers()["x-chat-gateway-origin"] == "gateway" {
                refused += 1;
                assert!(OWN.contains(&code), "{code} to {body}");
            } else {
                taken += 1;
                // The simulator checks for itself: what it calls malformed should not have come.
                assert_ne!(code, 60003, "{body}");
            }
        }
    }
    assert_eq!(taken + refused, ROUNDS * AT_ONCE);
    assert!(
        taken > 300 && refused > 300,
        "{taken} taken, {refused} refused"
    );
    let classes = [
        Some(QuotaClass::GroupAttributes),
        Some(QuotaClass::MessageExtension),
        None,
    ];
    for class in classes {
        assert_eq!(world.core.lanes.room.waiting(class), (0, 0));
    }
}

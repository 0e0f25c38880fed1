//! The store in memory against a real Redis: the same commands and scripts have the same answers.

use chat_gateway::clock;
use mlua::Lua;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use redis::Value;

use super::store::{Data, Reply, command, encode};
use crate::binary::Redis;

fn reply(value: Value) -> Reply {
    match value {
        Value::Nil => Reply::Nil,
        Value::Okay => Reply::Ok,
        Value::Int(number) => Reply::Number(number),
        Value::BulkString(text) => Reply::Text(text),
        Value::Array(list) => Reply::List(list.into_iter().map(reply).collect()),
        other => panic!("{other:?}"),
    }
}

/// A command that the scripts could make, of few keys, so that most of them meet something.
fn any(rng: &mut StdRng) -> Vec<String> {
    let member = format!("{}:{}", rng.random_range(1..4), rng.random_range(0..4));
    let score = rng.random_range(0..6) * 1_000_000_000_000_000_i64;
    let place = rng.random_range(-4..6).to_string();
    let sorted = ["z1", "z2"].choose(rng).expect("not empty").to_string();
    let hash = ["h1", "h2"].choose(rng).expect("not empty").to_string();
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    let (score, sorted, hash) = (score.to_string(), sorted.as_str(), hash.as_str());
    match rng.random_range(0..17) {
        0..4 => words(&["ZADD", sorted, &score, &member]),
        4 => words(&["ZREM", sorted, &member]),
        5 => words(&["ZCARD", sorted]),
        6 => words(&["ZSCORE", sorted, &member]),
        7 => words(&["ZRANGE", sorted, &place, "-1", "WITHSCORES"]),
        8 => words(&["ZRANGE", sorted, "0", &place]),
        9 => words(&["ZRANGEBYSCORE", sorted, "-inf", &score]),
        10 => words(&["ZREMRANGEBYSCORE", sorted, "-inf", &score]),
        11 => words(&["HSET", hash, &member, &score]),
        12 => words(&["HGET", hash, &member]),
        13 => words(&["HDEL", hash, &member]),
        14 => words(&["HGETALL", hash]),
        15 => words(&["HINCRBY", hash, &member, &place]),
        _ => words(&["EXISTS", if rng.random_bool(0.5) { sorted } else { hash }]),
    }
}

#[tokio::test]
async fn commands_in_memory_should_answer_as_redis_does() {
    let server = Redis::start().await;
    let client = redis::Client::open(server.url()).expect("a legal URL");
    let connection = client.get_multiplexed_async_connection().await;
    let mut connection = connection.expect("it listens");
    let mut data = Data::default();
    let mut rng = StdRng::seed_from_u64(1);
    for n in 0..4_000 {
        let words = any(&mut rng);
        let mut asked = redis::cmd(&words[0]);
        asked.arg(&words[1..]);
        let wanted: Value = asked
            .query_async(&mut connection)
            .await
            .expect("it is legal");
        let bytes: Vec<_> = words.iter().map(|word| word.clone().into_bytes()).collect();
        let got = data.call(&bytes).expect("it is legal");
        assert_eq!(got, reply(wanted), "number {n}: {words:?}");
    }
}

#[tokio::test]
async fn keys_in_memory_should_end_as_those_of_redis() {
    let server = Redis::start().await;
    let mut data = Data::default();
    data.now = i64::try_from(clock::unix_now().as_micros()).expect("it is not so late");
    let soon = (data.now / 1_000 + 60_000).to_string();
    for words in [
        vec!["ZADD", "z", "1", "a"],
        vec!["PEXPIREAT", "z", soon.as_str()],
        vec!["EXISTS", "z"],
        vec!["PEXPIREAT", "z", "1"],
        vec!["EXISTS", "z"],
        vec!["PEXPIREAT", "z", "1"],
        vec!["HSET", "h", "a", "1", "b", "2"],
        vec!["PEXPIRE", "h", "60000"],
        vec!["HKEYS", "h"],
        vec!["PEXPIRE", "h", "0"],
        vec!["HGETALL", "h"],
    ] {
        let bytes: Vec<_> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let mut got = Vec::new();
        encode(&data.call(&bytes).expect("it is legal"), &mut got);
        assert_eq!(
            String::from_utf8_lossy(&got),
            server.ask(&words),
            "{words:?}"
        );
    }
    data.call(&[b"ZADD".into(), b"z".into(), b"1".into(), b"a".into()])
        .expect("legal");
    data.call(&[b"PEXPIRE".into(), b"z".into(), b"100".into()])
        .expect("legal");
    data.now += 99_000;
    assert_eq!(
        data.call(&[b"EXISTS".into(), b"z".into()]),
        Ok(Reply::Number(1))
    );
    data.now += 2_000;
    assert_eq!(
        data.call(&[b"EXISTS".into(), b"z".into()]),
        Ok(Reply::Number(0))
    );
}

#[test]
fn numbers_of_scripts_should_be_written_as_redis_writes_them() {
    // Lua 5.1 of both: what is below 2^53 and whole has no exponent.
    let lua = Lua::new();
    let text: String = lua
        .load("return string.format('%.0f', 1800000000123456)")
        .eval()
        .expect("it is Lua");
    assert_eq!(text, 1_800_000_000_123_456.0_f64.to_string());
}

#[test]
fn a_command_should_be_taken_whole_or_not_at_all() {
    let whole = b"*2\r\n$4\r\nHGET\r\n$3\r\na\r\n\r\n*1\r\n$4\r\nTIME\r\n".to_vec();
    for cut in 0..23 {
        let mut part = whole[..cut].to_vec();
        assert_eq!(command(&mut part), None, "{cut}");
        assert_eq!(part.len(), cut);
    }
    let mut bytes = whole;
    assert_eq!(
        command(&mut bytes),
        Some(vec![b"HGET".to_vec(), b"a\r\n".to_vec()])
    );
    assert_eq!(command(&mut bytes), Some(vec![b"TIME".to_vec()]));
    assert!(bytes.is_empty());
}

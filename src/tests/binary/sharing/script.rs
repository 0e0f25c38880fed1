//! `take.lua` by itself, against a real server.

use std::time::Duration;

use chat_gateway::{
    clock,
    quota::{
        journal::record::WindowId,
        redis::script::{Answer, Ask, Done, Keys, Mode, Name, Note, Owner, Want, join, take},
    },
};
use redis::{Script, Value, aio::MultiplexedConnection};

use super::server::Server;

const SECOND: Duration = Duration::from_secs(1);

/// Gateways that speak to one server.
struct Bench {
    server: Server,
    connection: MultiplexedConnection,
    script: Script,
    keys: Keys,
    born: String,
    sequence: u64,
}

impl Bench {
    async fn start() -> Bench {
        let server = Server::start().await;
        let client = redis::Client::open(server.url()).expect("a legal URL");
        let connection = client.get_multiplexed_async_connection().await;
        Bench {
            server,
            connection: connection.expect("it listens"),
            script: take(),
            keys: Keys::new("t"),
            born: String::new(),
            sequence: 0,
        }
    }

    async fn join(&mut self, words: &[&str]) -> Vec<String> {
        let script = join();
        let mut call = script.prepare_invoke();
        call.key(self.keys.members())
            .key(self.keys.state())
            .arg(words);
        let answer: Vec<Value> = call
            .invoke_async(&mut self.connection)
            .await
            .expect("it answers");
        let text = |value| match value {
            Value::Int(number) => number.to_string(),
            Value::BulkString(bytes) => String::from_utf8(bytes).expect("text"),
            other => panic!("{other:?}"),
        };
        answer.into_iter().map(text).collect()
    }

    /// One more gateway, of `replicas`.
    async fn gateway(&mut self, replicas: &str) -> Owner {
        let hello = self.join(&["hello", "0"]).await;
        self.born.clone_from(&hello[2]);
        let entered = ["enter", &hello[0], "", "-1", replicas];
        let owner = Owner::parse(&self.join(&entered).await[0]).expect("an owner");
        let here = self.wants(Vec::new());
        assert!(matches!(self.ask(&owner, here).await, Answer::Done(_)));
        self.sequence = 0;
        owner
    }

    async fn ask(&mut self, owner: &Owner, ask: Ask) -> Answer {
        let ask = Ask {
            owner: owner.clone(),
            sequence: self.sequence,
            ..ask
        };
        self.sequence += 1;
        let (keys, arguments) = ask.encode(&self.keys);
        let mut call = self.script.prepare_invoke();
        for key in keys {
            call.key(key);
        }
        call.arg(arguments);
        let answer: Vec<Value> = call
            .invoke_async(&mut self.connection)
            .await
            .expect("it answers");
        Answer::parse(&answer, ask.wants.len()).unwrap_or_else(|| panic!("{answer:?}"))
    }

    fn now(&self) -> i64 {
        let time = self.server.ask(&["TIME"]);
        let mut numbers = time.lines().filter_map(|line| line.parse::<i64>().ok());
        numbers.next().expect("seconds") * 1_000_000 + numbers.next().expect("microseconds")
    }

    fn wants(&self, wants: Vec<Want>) -> Ask {
        Ask {
            owner: Owner { id: 0, seat: 0 },
            born: self.born.as_str().into(),
            era: "0".into(),
            deadline: self.now() + 1_000_000,
            lease: SECOND * 60,
            replicas: 3,
            list: false,
            notes: Vec::new(),
            releases: Vec::new(),
            wants,
            sequence: 0,
        }
    }

    async fn take(&mut self, owner: &Owner, want: Want) -> Done {
        let ask = self.wants(vec![want]);
        match self.ask(owner, ask).await {
            Answer::Done(done) => done,
            other => panic!("{other:?}"),
        }
    }

    /// Slots of a window in the store.
    fn slots(&self, want: &Want) -> usize {
        let [slots, _] = self.keys.window(&want.window, "0");
        let answer = self.server.ask(&["ZCARD", &slots]);
        let count = answer
            .lines()
            .next()
            .and_then(|line| line.strip_prefix(':'));
        count.expect("a number").parse().expect("a number")
    }
}

/// What became of an attempt of `owner` that had one slot: it holds so many, for so long.
fn settled(window: &Want, owner: &Owner, sequence: u64, slots: u32, left: Duration) -> Note {
    Note {
        window: window.window,
        name: Name {
            id: owner.id,
            sequence,
        },
        slots,
        had: 1,
        left,
        cools: SECOND,
    }
}

fn want(name: &str, limit: u32) -> Want {
    Want {
        window: WindowId::of_command(name, Some(1)),
        min: 1,
        max: 1,
        limit,
        gap: Duration::ZERO,
        horizon: SECOND,
        hold: SECOND * 6,
        mode: Mode::Ask,
    }
}

#[tokio::test]
async fn an_order_that_comes_too_late_should_change_nothing() {
    let mut bench = Bench::start().await;
    let owner = bench.gateway("3").await;
    let late = Ask {
        deadline: bench.now() - 1,
        ..bench.wants(vec![want("w", 5)])
    };
    assert_eq!(bench.ask(&owner, late).await, Answer::Late);
    assert_eq!(bench.slots(&want("w", 5)), 0);
}

#[tokio::test]
async fn a_store_that_was_emptied_should_know_nobody() {
    let mut bench = Bench::start().await;
    let owner = bench.gateway("3").await;
    bench.server.ask(&["FLUSHALL"]);
    let ask = bench.wants(vec![want("w", 5)]);
    assert_eq!(bench.ask(&owner, ask).await, Answer::Unknown);
    assert!(bench.server.ask(&["DBSIZE"]).contains(":0"));
}

#[tokio::test]
async fn what_is_wanted_should_be_taken_whole_or_not_at_all() {
    let mut bench = Bench::start().await;
    let owner = bench.gateway("1").await;
    let (wide, narrow) = (want("wide", 5), want("narrow", 1));
    for taken in [true, false] {
        let mut ask = bench.wants(vec![wide.clone(), narrow.clone()]);
        ask.replicas = 1;
        let Answer::Done(done) = bench.ask(&owner, ask).await else {
            panic!("it knows him")
        };
        assert_eq!(done.taken, taken);
        assert_eq!((bench.slots(&wide), bench.slots(&narrow)), (1, 1));
    }
}

#[tokio::test]
async fn a_share_that_is_claimed_and_covered_should_be_left_free() {
    let mut bench = Bench::start().await;
    let (one, other) = (bench.gateway("3").await, bench.gateway("3").await);
    assert_eq!((one.seat, other.seat), (0, 1));
    let window = want("w", 5);
    // The other one claims the window: his share is two of five, and he has taken one.
    let first = bench.take(&other, window.clone()).await;
    assert!(first.taken && first.got[0].covered);
    for n in 0..5 {
        let done = bench.take(&one, window.clone()).await;
        assert_eq!(done.taken, n < 3, "one is left to him");
    }
    assert_eq!(bench.slots(&window), 4);
    let second = bench.take(&other, window.clone()).await;
    assert!(second.taken && second.wait.is_zero());
    // He gives the claim up: nothing is kept for him any more.
    let mut release = bench.wants(Vec::new());
    release.releases = vec![window.window];
    assert!(matches!(bench.ask(&other, release).await, Answer::Done(_)));
}

#[tokio::test]
async fn a_slot_that_cools_should_be_given_ahead_to_whoever_asks_first() {
    let mut bench = Bench::start().await;
    let (one, other) = (bench.gateway("3").await, bench.gateway("3").await);
    let window = want("w", 5);
    for sequence in 0..5 {
        bench.take(&one, window.clone()).await;
        let mut settle = bench.wants(Vec::new());
        settle.notes = vec![settled(
            &window,
            &one,
            sequence * 2,
            1,
            Duration::from_millis(500 + 100 * sequence),
        )];
        bench.ask(&one, settle).await;
    }
    let first = bench.take(&other, window.clone()).await;
    let second = bench.take(&one, window.clone()).await;
    assert!(first.taken && second.taken);
    assert!(first.wait > Duration::from_millis(300) && first.wait < Duration::from_millis(505));
    assert!(second.wait > first.wait, "each slot is given once");
    assert_eq!(bench.slots(&window), 5, "no more than the limit");
}

#[tokio::test]
async fn a_window_should_have_no_more_entries_than_slots_and_every_key_should_expire() {
    let mut bench = Bench::start().await;
    let owner = bench.gateway("1").await;
    let window = Want {
        hold: Duration::from_millis(200),
        horizon: Duration::from_millis(200),
        ..want("w", 4)
    };
    for _ in 0..40 {
        let mut ask = bench.wants(vec![window.clone()]);
        ask.replicas = 1;
        bench.ask(&owner, ask).await;
        assert!(bench.slots(&window) <= 4);
        clock::sleep(Duration::from_millis(5)).await;
    }
    let script = "local o = 0 for _, k in ipairs(redis.call('KEYS', '*')) do \
                  if redis.call('PTTL', k) < 0 then return -1 end o = o + 1 end return o";
    let answer = bench.server.ask(&["EVAL", script, "0"]);
    assert!(
        answer.starts_with(":4"),
        "members, state, slots and claims, all with an end: {answer}"
    );
}

#[tokio::test]
async fn seats_should_be_kept_for_those_who_are_away() {
    let mut bench = Bench::start().await;
    let seats = [
        bench.gateway("3").await,
        bench.gateway("3").await,
        bench.gateway("3").await,
    ];
    assert_eq!(seats.each_ref().map(|owner| owner.seat), [0, 1, 2]);
    assert_eq!(bench.gateway("3").await.seat, 3, "there is none left");
    // One comes back under a new number.
    let hello = bench.join(&["hello", "0"]).await;
    let entered = ["enter", &hello[0], &seats[1].id.to_string(), "1", "3"];
    let again = Owner::parse(&bench.join(&entered).await[0]).expect("an owner");
    assert_eq!(again.seat, 1);
    // The store forgets everybody: those who were known keep their seats.
    bench.server.ask(&["FLUSHALL"]);
    let hello = bench.join(&["hello", "0"]).await;
    let entered = ["enter", &hello[0], "", "2", "3", "0", "1", "2"];
    let answer = bench.join(&entered).await;
    assert!(
        answer[0].ends_with(".2") && answer.contains(&"0.0".to_owned()),
        "{answer:?}"
    );
    assert_eq!(
        bench.gateway("3").await.seat,
        3,
        "the seats of the others are theirs"
    );
}

#[tokio::test]
async fn who_came_back_and_was_not_heard_since_should_be_left_his_share() {
    let mut bench = Bench::start().await;
    let (one, other) = (bench.gateway("3").await, bench.gateway("3").await);
    let window = want("w", 5);
    let first = bench.take(&one, window.clone()).await;
    assert!(first.taken && first.got[0].covered);
    // He comes back under a new number, and the answer is lost: he goes on as he was.
    let hello = bench.join(&["hello", "0"]).await;
    let seat = one.seat.to_string();
    let entered = ["enter", &hello[0], &one.id.to_string(), &seat, "3"];
    let again = Owner::parse(&bench.join(&entered).await[0]).expect("an owner");
    assert_eq!(again.seat, one.seat);
    // What he held is free by now.
    let mut settle = bench.wants(Vec::new());
    settle.notes = vec![settled(&window, &one, 0, 0, SECOND)];
    bench.ask(&other, settle).await;
    let mut taken = 0;
    for _ in 0..5 {
        taken += u32::from(bench.take(&other, window.clone()).await.taken);
    }
    assert_eq!(taken, 4, "one of five is his share");
    // Once he is heard, he has what he claims, and no more.
    bench.take(&again, want("another", 5)).await;
    assert!(bench.take(&other, window.clone()).await.taken);
}

#[tokio::test]
async fn a_call_should_have_its_turn_in_every_window_that_is_shared_by_turns() {
    let mut bench = Bench::start().await;
    let owners = [bench.gateway("3").await, bench.gateway("3").await];
    // The third is missing, so everybody takes turns: seat 0 every 3.75 s and every 1.875 s; seat 1 as
    // often, but never in both at once.
    let hello = bench.join(&["hello", "0"]).await;
    bench.join(&["enter", &hello[0], "", "-1", "3"]).await;
    let mut taken = [0; 2];
    for attempt in 0..20 {
        let owner = &owners[attempt % 2];
        let (one, two) = (
            want(&format!("one {attempt}"), 1),
            want(&format!("two {attempt}"), 2),
        );
        // In either order.
        let wants = if attempt < 10 { [one, two] } else { [two, one] };
        let ask = bench.wants(wants.to_vec());
        let Answer::Done(done) = bench.ask(owner, ask).await else {
            panic!("it knows him")
        };
        assert_eq!(done.missing, 1);
        if !done.taken {
            assert!(
                done.wait > SECOND && done.wait < SECOND * 8,
                "{:?}",
                done.wait
            );
            continue;
        }
        taken[attempt % 2] += 1;
        let at = u64::try_from(done.now).expect("after 1970")
            + u64::try_from(done.wait.as_micros()).expect("soon");
        for piece in [1_250_000, 625_000] {
            let turn = u64::from(owner.seat) * piece;
            assert_eq!(at % (3 * piece), turn, "seat {} of {piece}", owner.seat);
        }
    }
    assert_eq!(taken, [10, 0]);
}

#[tokio::test]
async fn who_waits_should_have_the_next_slot_unless_he_leaves() {
    for leaves in [false, true] {
        let mut bench = Bench::start().await;
        let (one, two) = (bench.gateway("3").await, bench.gateway("3").await);
        let three = bench.gateway("3").await;
        let window = want("w", 1);
        assert!(bench.take(&one, window.clone()).await.taken);
        assert!(!bench.take(&two, window.clone()).await.taken);
        let mut ask = bench.wants(Vec::new());
        if leaves {
            ask.releases = vec![window.window];
        }
        bench.ask(&two, ask).await;
        // It cools from now on, and would be for whoever asks first.
        let mut settle = bench.wants(Vec::new());
        settle.notes = vec![settled(&window, &one, 0, 1, SECOND)];
        bench.ask(&one, settle).await;
        let denied = bench.take(&three, window.clone()).await;
        assert_eq!(denied.taken, leaves);
        if !leaves {
            assert_eq!(denied.got[0].slots, 0);
            assert!(bench.take(&two, window.clone()).await.taken);
            // He is the next now, once that one has been sent.
            let denied = bench.take(&three, window.clone()).await;
            assert!(
                denied.wait > SECOND / 2 && denied.wait <= SECOND,
                "{:?}",
                denied.wait
            );
        }
    }
}

#[tokio::test]
async fn the_seat_of_one_who_may_only_be_cut_off_should_not_be_given_away() {
    let mut bench = Bench::start().await;
    bench.gateway("3").await;
    // Two are not heard of, one of them at least is gone when somebody else comes: which one?
    let mut seats = Vec::new();
    for _ in 0..4 {
        let hello = bench.join(&["hello", "0"]).await;
        let answer = bench.join(&["enter", &hello[0], "", "-1", "3"]).await;
        let owner = Owner::parse(&answer[0]).expect("an owner");
        if seats.len() >= 2 {
            let here = bench.wants(Vec::new());
            bench.ask(&owner, here).await;
        }
        seats.push(owner.seat);
    }
    // Both are, once two have come.
    assert_eq!(seats, [1, 2, 3, 1]);
}

#[tokio::test]
async fn a_seat_should_be_given_away_if_nobody_who_has_one_was_heard_of_for_long() {
    for (silent, seat) in [([30, 40, 20], 1), ([30, 40, 9], 3), ([30, 40, -1], 3)] {
        let mut bench = Bench::start().await;
        let members = bench.keys.members();
        for seconds in silent {
            let owner = bench.gateway("3").await;
            let heard = (bench.now() - seconds * 1_000_000).to_string();
            bench.server.ask(&["ZADD", &members, &heard, &owner.text()]);
        }
        assert_eq!(bench.gateway("3").await.seat, seat, "{silent:?}");
    }
}

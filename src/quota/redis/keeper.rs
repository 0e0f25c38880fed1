//! The task that keeps the store at hand: connects, joins, says that this gateway is here, tells what
//! no call took along, and tries again when it is away.

use std::{sync::Arc, time::Duration};

use rand::RngExt as _;
use redis::{Script, Value};

use super::{
    LEASE, NOTES, Phase, Store,
    book::notes_at,
    line::{Connection, Trouble, describe, too_slow, within},
    script::{self, Answer, Ask, Owner, integer, text},
    seats,
};
use crate::clock::{self, Instant};

/// Whoever has said nothing for so long says that he is here.
const HEARTBEAT: Duration = Duration::from_millis(600);

/// How long what is new waits for a call that takes it along.
const ALONG: Duration = Duration::from_millis(10);

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// A store that was there for so long is tried again at once when it is away.
const STEADY: Duration = Duration::from_secs(10);

/// Clocks that are further apart than they should be have been moved.
const CLOCK_MOVED: Duration = Duration::from_millis(50);

impl Store {
    /// Keeps the store at hand, for as long as it is polled.
    pub async fn keep(self: Arc<Self>) {
        let join = script::join();
        let mut backoff = FIRST_BACKOFF;
        loop {
            let attempted_at = clock::now();
            match self.join(&join).await {
                Ok(epoch) => {
                    self.serve(epoch).await;
                    if clock::now() - attempted_at > STEADY {
                        backoff = FIRST_BACKOFF;
                    }
                }
                Err(trouble) => self.still_away(trouble),
            }
            let jitter = rand::rng().random_range(0.5..1.0);
            clock::sleep(backoff.mul_f64(jitter)).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Tells what is new until what may be spent changes.
    async fn serve(&self, epoch: u64) {
        loop {
            tokio::select! {
                biased;
                () = self.changed(epoch) => return,
                () = async {
                    self.news.notified().await;
                    clock::sleep(ALONG).await;
                } => {}
                () = clock::sleep(HEARTBEAT) => {}
            }
            let (is_due, without_seat) = {
                let inner = self.inner.lock();
                let now = clock::now();
                let silent = inner.heard.is_none_or(|at| now - at >= HEARTBEAT);
                let joined = inner
                    .owner
                    .as_ref()
                    .is_some_and(|owner| owner.seat >= self.replicas);
                let long_enough = now - inner.down.1 > LEASE * 2;
                (inner.book.has_news() || silent, joined && long_enough)
            };
            if is_due {
                self.tell(epoch).await;
            }
            if without_seat {
                self.take_a_seat(epoch);
            }
        }
    }

    /// Whoever held the seats when we joined may be gone by now.
    fn take_a_seat(&self, epoch: u64) {
        let mut inner = self.inner.lock();
        let free = inner.seats.len() <= self.replicas as usize && inner.missing > 0
            || (0..self.replicas).any(|seat| !inner.seats.contains(&seat));
        if free && self.epoch() == epoch {
            tracing::info!("a seat at the shared store has become free: joining again");
            inner.phase = Phase::Down;
            inner.connection = None;
            self.epoch.send_modify(|epoch| *epoch += 1);
        }
    }

    /// Connects and becomes a member; the epoch that begins with it.
    async fn join(&self, join: &Script) -> Result<u64, String> {
        let connection = self.line.connect().await?;
        let connection = self.line.follow(connection, &self.keys.state()).await?;
        let (id, born, age, told_at) = self.hello(join, &connection).await?;
        let result = self.enter(join, &connection, id, born, age, told_at).await;
        if result.is_err() {
            let mut inner = self.inner.lock();
            self.fail(&mut inner, String::new(), clock::now());
        }
        result
    }

    /// Our number, when the store came to be, how long ago that is and when it said so.
    async fn hello(
        &self,
        join: &Script,
        connection: &Connection,
    ) -> Result<(u64, String, Duration, Instant), String> {
        let mut jumped = false;
        loop {
            let asked_at = clock::now();
            let arguments = ["hello".to_owned(), u8::from(jumped).to_string()];
            let answer = self.invoke(join, connection, &arguments).await?;
            let told_at = clock::now();
            let parse = || {
                let id = u64::try_from(integer(answer.first()?)?).ok()?;
                let now = integer(answer.get(1)?)?;
                let born = text(answer.get(2)?)?;
                let age =
                    Duration::from_micros(u64::try_from(now - born.parse::<i64>().ok()?).ok()?);
                Some((id, now, born, age))
            };
            let Some((id, now, born, age)) = parse() else {
                // It was born in the future: its clock was set back.
                if jumped {
                    return Err("its answer is not one of our script".to_owned());
                }
                jumped = true;
                continue;
            };
            let mut inner = self.inner.lock();
            if *inner.born == *born && !jumped && clock_moved(inner.clock, now, asked_at, told_at) {
                tracing::warn!(
                    "the clock of the shared store was moved: it is believed after a window"
                );
                jumped = true;
                continue;
            }
            inner.clock = Some((now, asked_at, told_at));
            return Ok((id, born, age, told_at));
        }
    }

    async fn enter(
        &self,
        join: &Script,
        connection: &Connection,
        id: u64,
        born: String,
        age: Duration,
        told_at: Instant,
    ) -> Result<u64, String> {
        self.write_down(connection, id, &born).await?;
        let asked_at = clock::now();
        let (arguments, reborn) = self.entering(id, &born, asked_at);
        let answer = self.invoke(join, connection, &arguments).await;
        let mut inner = self.inner.lock();
        // It may have heard us even if we have not heard it.
        let heard = inner.heard.replace(asked_at);
        let answer = answer?;
        let owner = answer.first().and_then(text);
        let owner = owner.as_deref().and_then(Owner::parse);
        let (Some(owner), Some(confirmed)) = (owner, answer.get(1).and_then(text)) else {
            return Err("its answer is not one of our script".to_owned());
        };
        if confirmed != born {
            return Err("it has lost its memory".to_owned());
        }
        inner.born = born.into();
        inner.born_at = told_at.checked_sub(age);
        if heard.is_none() {
            inner.found = Some(inner.born.clone());
        }
        let now = clock::now();
        // While it is not believed nobody takes more than his share, so ours stays as it was.
        let born_at = inner.born_at;
        let missing_from = heard.map(|heard| self.surely_missing(heard));
        inner.book.claims_forgotten(|period, covered| {
            born_at.is_some_and(|born| now < born + period)
                && (covered || missing_from.is_some_and(|from| now >= from + period))
        });
        let members = answer[2..].iter().filter_map(|m| Owner::parse(&text(m)?));
        let members: Vec<_> = members.collect();
        inner.seats = seats(&members);
        inner.members = members.len();
        inner.connection = Some(super::ConnectionOf(connection.clone()));
        inner.phase = Phase::Up;
        self.epoch.send_modify(|epoch| *epoch += 1);
        self.metrics.shared_store(true);
        self.announce(
            &owner,
            connection,
            members.len(),
            now - inner.down.1,
            reborn,
        );
        inner.owner = Some(owner);
        Ok(self.epoch())
    }

    /// Tells what was spent, and what is spent while we tell it. In the end nothing is, until we are
    /// counted in.
    async fn write_down(&self, connection: &Connection, id: u64, born: &str) -> Result<(), String> {
        let mut pending = {
            let mut inner = self.inner.lock();
            inner.phase = Phase::Joining(id);
            self.epoch.send_modify(|epoch| *epoch += 1);
            inner.book.sweep(clock::now());
            inner.book.rename(id)
        };
        let mut closed = false;
        loop {
            while !pending.is_empty() {
                let rest = pending.split_off(NOTES.min(pending.len()));
                if let Err(trouble) = self.push(connection, id, born, &pending).await {
                    pending.extend(rest);
                    self.inner.lock().book.lost(pending);
                    return Err(trouble);
                }
                pending = rest;
            }
            if closed {
                return Ok(());
            }
            closed = true;
            let mut inner = self.inner.lock();
            inner.phase = Phase::Entering;
            self.epoch.send_modify(|epoch| *epoch += 1);
            (pending, _, _) = inner.book.tell(clock::now(), usize::MAX, &[]);
        }
    }

    /// How we ask to be counted in, and whether the store has forgotten those who were.
    fn entering(&self, id: u64, born: &str, now: Instant) -> (Vec<String>, bool) {
        let inner = self.inner.lock();
        let before = inner.owner.as_ref();
        let reborn = !inner.born.is_empty() && *inner.born != *born;
        let waited = now - inner.down.1 > LEASE * 2;
        let mut arguments = vec![
            "enter".to_owned(),
            id.to_string(),
            before.map(Owner::text).unwrap_or_default(),
            before.map_or_else(|| "-1".to_owned(), |owner| owner.seat.to_string()),
            self.replicas.to_string(),
            LEASE.as_micros().to_string(),
            u8::from(waited).to_string(),
        ];
        if reborn {
            arguments.extend(inner.seats.iter().map(ToString::to_string));
        }
        (arguments, reborn)
    }

    fn announce(
        &self,
        owner: &Owner,
        connection: &Connection,
        members: usize,
        away: Duration,
        forgot: bool,
    ) {
        let away_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            address = %connection.address,
            seat = owner.seat,
            replicas = self.replicas,
            members,
            away_ms,
            forgot,
            "the shared store decides"
        );
        if owner.seat >= self.replicas {
            tracing::warn!(
                replicas = self.replicas,
                "more gateways share the store than shared.replicas says: without it they would \
                 spend more than the limits"
            );
        }
    }

    /// Writes down what was spent, as one who is no member yet.
    async fn push(
        &self,
        connection: &Connection,
        id: u64,
        born: &str,
        pending: &[super::Pending],
    ) -> Result<(), String> {
        let now = clock::now();
        let ask = {
            let inner = self.inner.lock();
            Ask {
                owner: Owner {
                    id,
                    seat: self.replicas,
                },
                born: born.into(),
                deadline: inner.deadline(now, self.budget).unwrap_or_default(),
                lease: Duration::ZERO,
                replicas: self.replicas,
                list: false,
                notes: notes_at(pending, now),
                releases: Vec::new(),
                wants: Vec::new(),
                sequence: 0,
            }
        };
        match self.call(&ask, connection.clone()).await? {
            Answer::Done(_) => Ok(()),
            Answer::Late => Err("it was asked too late, or its clock was moved".to_owned()),
            Answer::Unknown => Err("it has lost its memory".to_owned()),
        }
    }

    /// Says goodbye, so that nobody keeps our share for us.
    pub async fn leave(&self) {
        self.tell(self.epoch()).await;
        let (owner, connection) = {
            let mut inner = self.inner.lock();
            inner.phase = Phase::Down;
            self.epoch.send_modify(|epoch| *epoch += 1);
            (inner.owner.clone(), inner.connection.take())
        };
        if let (Some(owner), Some(connection)) = (owner, connection) {
            let arguments = ["leave".to_owned(), owner.text()];
            // If it does not hear us, it misses us.
            let _ = self
                .invoke(&script::join(), &connection.0, &arguments)
                .await;
        }
    }

    async fn invoke(
        &self,
        script: &Script,
        connection: &Connection,
        arguments: &[String],
    ) -> Result<Vec<Value>, String> {
        let mut connection = connection.clone();
        let mut invocation = script.prepare_invoke();
        invocation.key(self.keys.members()).key(self.keys.state());
        for argument in arguments {
            invocation.arg(argument);
        }
        match within(self.budget, invocation.invoke_async(&mut connection.inner)).await {
            Ok(values) => Ok(values),
            Err(Trouble::Redis(error)) => Err(describe(&error)),
            Err(Trouble::TooSlow) => Err(too_slow(self.budget)),
        }
    }

    fn still_away(&self, trouble: String) {
        let mut inner = self.inner.lock();
        if inner.down.0 != trouble {
            // Once for each reason, not for each attempt.
            tracing::warn!(reason = %trouble, "the shared store cannot be reached");
            inner.down.0 = trouble;
        }
    }
}

/// Whether the store's clock shows something else than it would if it ran as ours does.
fn clock_moved(
    known: Option<(i64, Instant, Instant)>,
    now: i64,
    asked_at: Instant,
    told_at: Instant,
) -> bool {
    let Some((then, before, after)) = known else {
        return false;
    };
    let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    let passed = told_at.saturating_duration_since(before);
    let slack = micros(CLOCK_MOVED + passed / 2_000);
    let least = then + micros(asked_at.saturating_duration_since(after));
    let most = then + micros(passed);
    now < least - slack || now > most + slack
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_ran_on_should_not_count_as_moved() {
        let ms = Duration::from_millis;
        let start = clock::now();
        let known = Some((1_000_000, start, start + ms(10)));
        let check = |now, at| clock_moved(known, now, start + ms(at), start + ms(at + 10));
        assert!(!check(2_000_000, 1_000));
        assert!(
            !check(1_945_000, 1_000) && check(1_900_000, 1_000),
            "set back"
        );
        assert!(
            !check(2_055_000, 1_000) && check(2_100_000, 1_000),
            "set forward"
        );
        assert!(!clock_moved(None, 0, start, start));
    }
}

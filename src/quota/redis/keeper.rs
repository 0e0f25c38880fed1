//! The task that keeps the store at hand: connects, joins, says that this gateway is here, tells what
//! no call took along, and tries again when it is away.

use std::{sync::Arc, time::Duration};

use redis::{Script, Value};

use super::{
    LEASE, NOTES, Phase, Store, believed_from,
    book::notes_at,
    line::{Connection, Trouble, describe, too_slow, within},
    reading::Reading,
    script::{self, Answer, Ask, Owner, integer, text},
    seats, without,
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

/// Where nobody who has a seat was heard of for so long, a seat is given away (`join.lua`).
const LONG: Duration = Duration::from_secs(10);

/// What the store says of itself to one who comes.
struct Hello {
    /// His number.
    id: u64,
    /// When it came to be, in its own words, and how long that was ago.
    born: String,
    age: Duration,
    /// Another one after its clock was set.
    era: String,
    told_at: Instant,
}

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
            let jitter = f64::midpoint(1.0, self.random());
            clock::sleep(backoff.mul_f64(jitter)).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Tells what is new until what may be spent changes.
    async fn serve(&self, epoch: u64) {
        let joined_at = clock::now();
        // It keeps all of our shares until it hears that we know that we are in.
        self.tell(epoch).await;
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
            let (is_due, may_sit) = {
                let inner = self.inner.lock();
                let now = clock::now();
                let silent = inner.heard.is_none_or(|at| now - at >= HEARTBEAT);
                let owner = inner.owner.as_ref();
                let without_seat = owner.is_some_and(|owner| owner.seat >= self.replicas);
                let waited = now - joined_at;
                let nobody = inner.missing >= self.replicas && waited > LONG;
                let free = inner.has_free_seat(self.replicas) && waited > LEASE || nobody;
                (inner.book.has_news() || silent, without_seat && free)
            };
            if is_due {
                self.tell(epoch).await;
            }
            if may_sit {
                self.take_a_seat(epoch);
            }
        }
    }

    /// Whoever held the seats when we joined may be gone by now.
    fn take_a_seat(&self, epoch: u64) {
        let mut inner = self.inner.lock();
        if self.epoch() == epoch {
            tracing::info!("a seat at the shared store may have become free: joining again");
            inner.book.away();
            inner.phase = Phase::Down;
            inner.connection = None;
            self.epoch.modify(|epoch| *epoch += 1);
        }
    }

    /// Connects and becomes a member; the epoch that begins with it.
    async fn join(&self, join: &Script) -> Result<u64, String> {
        let connection = self.line.connect().await?;
        let connection = self.line.follow(connection, &self.keys.state()).await?;
        self.line.load(&connection, [join, &self.take]).await?;
        let hello = self.hello(join, &connection).await?;
        let result = self.enter(join, &connection, hello).await;
        if result.is_err() {
            let mut inner = self.inner.lock();
            self.fail(&mut inner, String::new(), clock::now());
        }
        result
    }

    /// What the store says of itself.
    async fn hello(&self, join: &Script, connection: &Connection) -> Result<Hello, String> {
        let mut jumped = false;
        loop {
            let asked_at = clock::now();
            let arguments = ["hello".to_owned(), u8::from(jumped).to_string()];
            let answer = self.invoke(join, connection, &arguments).await?;
            let told_at = clock::now();
            let parse = || {
                let there = integer(answer.get(1)?)?;
                let born = text(answer.get(2)?)?;
                let age =
                    u64::try_from(there - born.split('.').next()?.parse::<i64>().ok()?).ok()?;
                let hello = Hello {
                    id: u64::try_from(integer(answer.first()?)?).ok()?,
                    age: Duration::from_micros(age),
                    era: text(answer.get(3)?)?,
                    born,
                    told_at,
                };
                Some((hello, there))
            };
            let Some((hello, there)) = parse() else {
                // It was born in the future: its clock was set back.
                if jumped {
                    return Err("its answer is not one of our script".to_owned());
                }
                jumped = true;
                continue;
            };
            let reading = Reading {
                there,
                asked_at,
                told_at,
            };
            if reading.width() > self.budget * 2 {
                return Err(too_slow(self.budget));
            }
            let mut inner = self.inner.lock();
            // In another era somebody else has found it.
            let known = inner.clock.filter(|_| *inner.era == *hello.era && !jumped);
            if known.is_some_and(|known| reading.moved_since(&known)) {
                tracing::warn!(
                    "the clock of the shared store was moved: it is believed after a window"
                );
                jumped = true;
                continue;
            }
            let new = jumped || *inner.born != *hello.born;
            inner.read(reading, new);
            return Ok(hello);
        }
    }

    async fn enter(
        &self,
        join: &Script,
        connection: &Connection,
        hello: Hello,
    ) -> Result<u64, String> {
        self.write_down(connection, &hello).await?;
        let Hello { id, born, .. } = hello;
        let asked_at = clock::now();
        let (arguments, reborn) = self.entering(id, &born);
        {
            let tried = &mut self.inner.lock().tried;
            tried.insert(0, id);
            tried.truncate(NOTES);
        }
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
        inner.era = hello.era.into();
        inner.born_at = hello.told_at.checked_sub(hello.age);
        if heard.is_none() {
            inner.found = Some(inner.born.clone());
        }
        let now = clock::now();
        // While it is not believed nobody takes more than his share, so ours stays as it was.
        let born_at = inner.born_at;
        inner.book.claims_forgotten(|period, covered| {
            born_at.is_some_and(|born| now < believed_from(born, period))
                && (covered || heard.is_some_and(|heard| now >= self.alone_from(heard, period)))
        });
        let members = answer[2..].iter().filter_map(|m| Owner::parse(&text(m)?));
        let members: Vec<_> = members.collect();
        inner.seats = seats(&members);
        inner.members = members.len();
        inner.without = without(&members, self.replicas);
        inner.connection = Some(super::ConnectionOf(connection.clone()));
        inner.phase = Phase::Up;
        self.epoch.modify(|epoch| *epoch += 1);
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
    async fn write_down(&self, connection: &Connection, hello: &Hello) -> Result<(), String> {
        let id = hello.id;
        let mut pending = {
            let mut inner = self.inner.lock();
            inner.phase = Phase::Joining(id);
            self.epoch.modify(|epoch| *epoch += 1);
            inner.book.sweep(clock::now());
            inner.book.rename(id)
        };
        let mut closed = false;
        loop {
            while !pending.is_empty() {
                let rest = pending.split_off(NOTES.min(pending.len()));
                if let Err(trouble) = self.push(connection, hello, &pending).await {
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
            self.epoch.modify(|epoch| *epoch += 1);
            (pending, _, _) = inner.book.tell(clock::now(), usize::MAX, &[]);
        }
    }

    /// How we ask to be counted in, and whether the store has forgotten those who were.
    fn entering(&self, id: u64, born: &str) -> (Vec<String>, bool) {
        let inner = self.inner.lock();
        let before = inner.owner.as_ref();
        let is_owner = |id: &u64| before.is_some_and(|owner| owner.id == *id);
        let reborn = !inner.born.is_empty() && *inner.born != *born;
        let mut arguments = vec![
            "enter".to_owned(),
            id.to_string(),
            before
                .map(|owner| owner.id)
                .into_iter()
                .chain(inner.tried.iter().copied().filter(|id| !is_owner(id)))
                .map(|id| id.to_string())
                .collect::<Vec<_>>()
                .join(" "),
            before.map_or_else(|| "-1".to_owned(), |owner| owner.seat.to_string()),
            self.replicas.to_string(),
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
        hello: &Hello,
        pending: &[super::Pending],
    ) -> Result<(), String> {
        let now = clock::now();
        let ask = {
            let inner = self.inner.lock();
            Ask {
                owner: Owner {
                    id: hello.id,
                    seat: self.replicas,
                },
                born: hello.born.as_str().into(),
                era: hello.era.as_str().into(),
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
            self.epoch.modify(|epoch| *epoch += 1);
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

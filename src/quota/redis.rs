//! Windows that several gateways share, kept in Redis or Valkey.
//!
//! - [`script`] is what is said to the store: `take.lua` takes every window of an attempt or none,
//!   `redis/join.lua` makes a gateway known.
//! - [`share`] is what a gateway may spend while it cannot reach the store.
//! - [`book`] is what this process holds, in its own words.
//! - [`mod@line`] is the way to the server, [`keeper`] the task that keeps it open.
//! - [`reading`] is what is known of the server's clock.
//! - [`lease`] is what the store gave: slots, and the time within which they may be used.
//!
//! # Why the sum stays under the limit
//!
//! *The slots.* A window is a sorted set of slots, each scored by the time at which it is free, on the
//! server's clock. An attempt is taken before it leaves; it holds its slots for
//! [`SEND_WITHIN`] + `call_timeout` + one period unless it is settled, and settled it holds them until
//! `reply + window + guard - rtt_floor` as in [`window`](super::window). Only lengths travel, never
//! times: what is left when a message is written is never less than what is left when it is read, so
//! two clocks that run at the same rate need not show the same time.
//!
//! ```text
//!   gateway   ask          told         not before                may leave until
//!    ----------|------------|--------------|---------------------------|---------->
//!   store           take: a slot that is free at T
//!    -----------------|-----------------------|-------|--------------------------->
//!                                             T       T + SEND_WITHIN
//! ```
//!
//! A slot that cools may be taken ahead: it is given to whoever asks first, to be used not before it
//! is free, so nobody polls for it. If even those are all given, one who asks has a place in a queue, for as
//! long as he comes back when he was told to. Not before is counted from the moment the answer came, which is
//! after the store wrote it; until when it may leave is counted from the moment the question was
//! asked, which is before. An attempt that has not left by then (a process that was stopped, a
//! machine that was asleep) is given back and asked for again.
//!
//! Gateways may read new settings one after the other. The longest window that anybody asks with holds for
//! all, and for what cools already; nothing is given for as long as it became longer by, since slots that are
//! free by then may have been used within it. What was given ahead by the length before is given back.
//!
//! *The shares.* `limit` is divided among `replicas` seats. A gateway that cannot reach the store
//! spends its share and nothing else. That share is free for it if the store kept it so, and it does
//!
//! - while the gateway claims the window, that is, wants or holds slots of it, from the moment the
//!   store says that the claim is *covered*: nobody is given a slot that would leave less than every
//!   covered claim needs, and nobody beyond his own share one that leaves less than any claim needs;
//! - on every window once the gateway is *missing*: not heard of for [`LEASE`], without having said
//!   goodbye. It stays so until it is back, its seat is taken by a gateway that replaces it, or an
//!   hour has passed.
//!
//! So in the moment in which the store falls silent a gateway goes on with its share of the windows
//! that are in use, less what it holds itself. Of windows that it had no covered claim on, others may
//! hold everything: these it leaves alone until it must be missing and what was taken before has
//! cooled. An order may be under way when the line breaks; the store refuses to carry it out later than
//! its deadline, so that it cannot be taken for a sign of life.
//!
//! *The return.* What was spent meanwhile is written down before the gateway becomes a member again;
//! and it is missing until it is heard as one, since it may never learn that it is. A store that is
//! another process than before, or was emptied, is believed only after a window, and after [`BACK`]: until
//! then everybody spends his share, and says so to the store, since somebody whom nobody there knows may
//! be on his way back to it. Those that were known before keep their seats until they come back. A share
//! that was covered before stays so if the store is told that meanwhile; who is cut off before he has
//! told it counts on it no more.
//!
//! What does not hold it: two servers that both take writes (a primary that was cut off and does not
//! know; let it refuse by `min-replicas-to-write`), a clock of the server that is set forward between
//! two calls, more gateways than `replicas`, a gateway that has never reached the store while others
//! have, one that does not come back to an emptied store within [`BACK`] where nobody knew of it, and a
//! call that takes longer than a window to arrive from a gateway that then vanishes.

pub mod book;
pub mod keeper;
pub mod lease;
pub mod line;
pub mod reading;
pub mod script;
pub mod share;

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use redis::{Script, Value};
use tokio::sync::Notify;

use self::{
    book::{Book, Pending},
    line::{Connection, Dial, Line, Trouble, describe, too_slow, within},
    reading::Reading,
    script::{Answer, Ask, Done, Keys, Mode, Name, Owner, StoreTime, Want},
    share::Seat,
};
use super::{journal::record::WindowId, window::Pace};
use crate::{
    clock::{self, Instant},
    config::Config,
    metrics::Metrics,
    sync::watched::Watched,
};

/// How late an attempt may leave, from the time at which its slots may be used.
pub const SEND_WITHIN: Duration = Duration::from_millis(100);

/// For how long a gateway that says nothing is not missing yet.
pub const LEASE: Duration = Duration::from_secs(2);

/// Whoever can reach a store that has come to be is back within so long.
pub const BACK: Duration = Duration::from_secs(4);

/// What a process that has just started allows itself to reach the store before it goes on alone.
const FIRST: Duration = Duration::from_millis(250);

/// Notes that travel with one call.
const NOTES: usize = 100;

/// How often the members are listed.
const LIST: Duration = Duration::from_secs(1);

/// The windows that this process shares with others.
pub struct Store {
    /// What is known, and what is under way.
    pub(super) inner: Mutex<Inner>,
    keys: Keys,
    take: Script,
    line: Line,
    metrics: Arc<Metrics>,
    /// How many share the limits.
    pub replicas: u32,
    budget: Duration,
    hold: Duration,
    started: Instant,
    /// How long who pauses.
    random: Mutex<StdRng>,
    /// Counts changes of what may be spent; whoever waits looks again.
    epoch: Watched<u64>,
    /// There is something to tell.
    news: Notify,
}

#[derive(Debug)]
pub(super) struct Inner {
    phase: Phase,
    pub(super) book: Book,
    /// Who we are, or were when the store was last reached.
    owner: Option<Owner>,
    /// Who we may be to the store as well, the last first: it was asked to count us in, and we may not
    /// have heard that it did, or it may return with what it held then.
    tried: Vec<u64>,
    /// When the store came to be, in its own words, and on our clock.
    born: Arc<str>,
    born_at: Option<Instant>,
    /// Another one after its clock was set: what was written before is under other keys.
    era: Arc<str>,
    /// The store's clock as it was read last, and as well as it is known.
    clock: Option<Reading>,
    fine_clock: Option<Reading>,
    /// The last time at which the store may have heard us.
    heard: Option<Instant>,
    /// The store that we found when we started, by its birth.
    found: Option<Arc<str>>,
    listed: Option<Instant>,
    seats: BTreeSet<Seat>,
    /// How many there were when they were last listed, and how many of them are missing.
    members: usize,
    missing: u32,
    /// How many had no seat when they were last listed.
    without: u32,
    connection: Option<ConnectionOf>,
    /// Why it is away, and since when.
    down: (String, Instant),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

struct ConnectionOf(Connection);

impl std::fmt::Debug for ConnectionOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.address)
    }
}

/// How far we are with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It cannot be reached: everybody spends his share.
    Down,
    /// It is told what was spent; what is spent now is told too. The number is our next one.
    Joining(u64),
    /// It counts us in: nothing is spent until it has answered.
    Entering,
    /// It decides.
    Up,
}

/// What may be spent of a window now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terms {
    /// What the store gives.
    Store,
    /// So many slots, not before this time if there is one.
    Share(u32, Option<Instant>),
    /// Nothing, until the epoch changes.
    Nothing,
}

/// What came of an attempt to take slots.
pub(super) enum Took {
    /// The store gave them; it was asked at that time.
    Yes(Done, Instant),
    /// They are of our own share.
    Here,
    /// There are none now.
    Later(Done),
    /// What may be spent has changed: look again.
    Changed,
}

/// What there is to see of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Whether it decides.
    pub up: bool,
    /// Why it does not, and for how long it has not.
    pub trouble: Option<(String, Duration)>,
    /// Our seat.
    pub seat: Option<Seat>,
    /// How many share the limits by the settings, how many there are, and how many of them are
    /// missing.
    pub replicas: u32,
    /// Members, those that are missing included.
    pub members: usize,
    /// Members that the store has not heard of.
    pub missing: u32,
    /// Windows in which this process holds or wants slots.
    pub windows: usize,
}

impl Store {
    /// The store of these settings, not reached yet; `None` if windows are not shared. Reads the
    /// files that the settings name.
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> io::Result<Option<Arc<Store>>> {
        Store::over(config, metrics, None, rand::random())
    }

    /// The same over `dial` in place of TCP; its pauses are drawn from `seed`.
    pub fn over(
        config: &Config,
        metrics: Arc<Metrics>,
        dial: Option<Arc<dyn Dial>>,
        seed: u64,
    ) -> io::Result<Option<Arc<Store>>> {
        let shared = &config.shared;
        let Some(url) = &shared.redis else {
            return Ok(None);
        };
        metrics.shared_store(false);
        let now = clock::now();
        let inner = Inner {
            phase: Phase::Down,
            book: Book::default(),
            owner: None,
            tried: Vec::new(),
            born: "".into(),
            born_at: None,
            era: "0".into(),
            clock: None,
            fine_clock: None,
            heard: None,
            found: None,
            listed: None,
            seats: BTreeSet::new(),
            members: 0,
            missing: 0,
            without: 0,
            connection: None,
            down: ("it was not reached yet".to_owned(), now),
        };
        Ok(Some(Arc::new(Store {
            inner: Mutex::new(inner),
            keys: Keys::new(&shared.prefix),
            take: script::take(),
            line: Line::new(url, shared, dial)?,
            metrics,
            replicas: shared.replicas,
            budget: shared.budget,
            hold: config.state.hold,
            started: now,
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            epoch: Watched::new(0),
            news: Notify::new(),
        })))
    }

    /// What there is to see of it.
    pub fn view(&self, now: Instant) -> View {
        let inner = self.inner.lock();
        let up = inner.phase == Phase::Up;
        View {
            up,
            trouble: (!up).then(|| {
                (
                    inner.down.0.clone(),
                    now.saturating_duration_since(inner.down.1),
                )
            }),
            seat: inner.owner.as_ref().map(|owner| owner.seat),
            replicas: self.replicas,
            members: inner.members,
            missing: inner.missing,
            windows: inner.book.len(),
        }
    }

    /// A part of one.
    fn random(&self) -> f64 {
        self.random.lock().random()
    }

    /// The number of changes of what may be spent so far.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// Waits for a change of what may be spent after `epoch`.
    pub(super) async fn changed(&self, epoch: u64) {
        self.epoch.wait_for(|now| *now != epoch).await;
    }

    /// What may be spent of a window of `limit` slots.
    pub(super) fn terms(&self, window: &WindowId, pace: &Pace, limit: u32, now: Instant) -> Terms {
        let inner = self.inner.lock();
        match inner.phase {
            Phase::Entering => Terms::Nothing,
            Phase::Up if !inner.is_blind(pace.period(), now) => Terms::Store,
            _ => self.share(&inner, window, pace, limit, now),
        }
    }

    /// Slots of `window` that others hold, as far as the last answer is still true.
    pub(super) fn others(&self, window: &WindowId, now: Instant) -> u32 {
        self.inner.lock().book.others(window, now)
    }

    fn share(
        &self,
        inner: &Inner,
        window: &WindowId,
        pace: &Pace,
        limit: u32,
        now: Instant,
    ) -> Terms {
        let period = pace.period();
        let seat = inner.owner.as_ref().map(|owner| owner.seat);
        let share = share::slots(limit, self.replicas, seat);
        // A store that is as new as we are knows no more than we do.
        let is_newcomer = inner.phase == Phase::Up && inner.found.as_ref() == Some(&inner.born);
        let mut not_before = match inner.heard.filter(|_| !is_newcomer) {
            // A turn is nobody's own: others may hold the slots still.
            _ if share > 0 && inner.book.is_covered(window) => None,
            Some(heard) => Some(self.alone_from(heard, period)),
            // A process before this one may have spent it.
            None if pace.window <= self.hold => Some(self.started + period.max(FIRST)),
            None => Some(self.started + FIRST),
        };
        let without_seat = seat.is_some_and(|seat| seat >= self.replicas);
        if share == 0 && without_seat && inner.phase != Phase::Up {
            // Others have turns, and any time may be one of theirs.
            return Terms::Nothing;
        }
        if share == 0 && (is_newcomer || without_seat) {
            // Somebody who is not back yet may have the same turns.
            not_before = inner.born_at.map(|born| believed_from(born, period));
        } else if share == 0 {
            let start = not_before.unwrap_or(now).max(now);
            let wait = match (seat, inner.fine_clock) {
                (Some(seat), Some(reading)) if seat < self.replicas => {
                    let there = Duration::from_micros(reading.earliest(start).unsigned_abs());
                    share::until_turn(there, limit, self.replicas, period, seat)
                }
                // Without a seat there is no turn, only the rate.
                _ => Duration::ZERO,
            };
            not_before = Some(start + wait);
        }
        Terms::Share(share.max(1), not_before.filter(|at| *at > now))
    }

    /// When nothing counts any more that others were given of a window before the store, which was told
    /// last at `heard` that we are here, missed us. It may have heard it a budget later, by a clock that is
    /// known to within two.
    fn alone_from(&self, heard: Instant, period: Duration) -> Instant {
        heard + self.budget * 3 + LEASE + SEND_WITHIN + period
    }

    /// The time between two calls of one who has no turn, where there are too few slots for shares.
    pub(super) fn gap_alone(&self, limit: u32, period: Duration) -> Option<Duration> {
        let inner = self.inner.lock();
        let seat = inner.owner.as_ref().map(|owner| owner.seat);
        let has_turn = seat.is_some_and(|seat| seat < self.replicas);
        (limit < self.replicas && !has_turn).then(|| share::cycle(limit, self.replicas, period))
    }

    /// Takes the slots of `parts` for the attempt `sequence`. What may be spent must be as it was at
    /// `epoch`.
    pub(super) async fn take(&self, wants: &[Want], sequence: u64, epoch: u64) -> Took {
        let asked_at = clock::now();
        let (ask, pending, connection) = {
            let mut inner = self.inner.lock();
            if self.epoch() != epoch {
                return Took::Changed;
            }
            let name = Name {
                id: inner.id(),
                sequence,
            };
            if inner.phase == Phase::Entering {
                return Took::Changed;
            }
            for want in wants {
                let free_at = asked_at + want.hold;
                inner.book.take(want.window, name, want.min, free_at);
            }
            if inner.phase != Phase::Up {
                if inner.phase != Phase::Down {
                    for want in wants {
                        inner.book.announce(want.window, sequence);
                    }
                }
                return Took::Here;
            }
            let wants = wants.iter().map(|want| Want {
                mode: inner.mode(&want.window, want.horizon, asked_at),
                ..want.clone()
            });
            let wants = wants.collect();
            let call = self.ask(&mut inner, asked_at, wants, sequence, false);
            call.expect("there are a connection, an owner and a clock while it is up")
        };
        let answer = self.call(&ask, connection).await;
        let told_at = clock::now();
        let mut inner = self.inner.lock();
        let done = self.hear(&mut inner, epoch, asked_at, told_at, answer, pending);
        let Some(done) = done else {
            let tell = inner.phase != Phase::Down;
            for want in wants {
                // The store may have taken it all the same.
                let book = &mut inner.book;
                book.settle(want.window, sequence, 0, told_at, tell);
            }
            return Took::Changed;
        };
        for (want, got) in ask.wants.iter().zip(&done.got) {
            let free_at = told_at + done.wait + want.hold;
            inner.book.got(want, sequence, got, told_at, free_at);
            if !done.taken {
                inner.book.not_taken(want.window, sequence);
            }
        }
        if done.taken {
            Took::Yes(done, asked_at)
        } else {
            Took::Later(done)
        }
    }

    /// Tells the store what is new, or only that we are here.
    async fn tell(&self, epoch: u64) {
        let asked_at = clock::now();
        let call = {
            let mut inner = self.inner.lock();
            if self.epoch() != epoch || inner.phase != Phase::Up {
                return;
            }
            self.ask(&mut inner, asked_at, Vec::new(), 0, true)
        };
        let Some((ask, pending, connection)) = call else {
            return;
        };
        let answer = self.call(&ask, connection).await;
        let mut inner = self.inner.lock();
        self.hear(&mut inner, epoch, asked_at, clock::now(), answer, pending);
    }

    /// A call of the script, with what is to be told.
    fn ask(
        &self,
        inner: &mut Inner,
        now: Instant,
        wants: Vec<Want>,
        sequence: u64,
        list: bool,
    ) -> Option<(Ask, Vec<Pending>, Connection)> {
        let connection = inner.connection.as_ref()?.0.clone();
        let owner = inner.owner.clone()?;
        let deadline = inner.deadline(now, self.budget)?;
        let windows: Vec<_> = wants.iter().map(|want| want.window).collect();
        let (pending, notes, releases) = inner.book.tell(now, NOTES, &windows);
        inner.heard = Some(now);
        let list = list || inner.listed.is_none_or(|at| now - at > LIST);
        let ask = Ask {
            owner,
            born: inner.born.clone(),
            era: inner.era.clone(),
            deadline,
            lease: LEASE,
            replicas: self.replicas,
            list,
            notes,
            releases,
            wants,
            sequence,
        };
        Some((ask, pending, connection))
    }

    async fn call(&self, ask: &Ask, mut connection: Connection) -> Result<Answer, String> {
        let (keys, arguments) = ask.encode(&self.keys);
        let mut invocation = self.take.prepare_invoke();
        for key in &keys {
            invocation.key(key);
        }
        for argument in &arguments {
            invocation.arg(argument);
        }
        let started = clock::now();
        let invoking = invocation.invoke_async::<Vec<Value>>(&mut connection.inner);
        let answer = within(self.budget, invoking).await;
        self.metrics.shared_call(clock::now() - started);
        match answer {
            Ok(values) => Answer::parse(&values, ask.wants.len())
                .ok_or_else(|| "its answer is not one of our script".to_owned()),
            Err(Trouble::Redis(error)) => Err(describe(&error)),
            Err(Trouble::TooSlow) => Err(too_slow(self.budget)),
        }
    }

    /// What the store's answer changes; `None` if it did not do as asked.
    fn hear(
        &self,
        inner: &mut Inner,
        epoch: u64,
        asked_at: Instant,
        told_at: Instant,
        answer: Result<Answer, String>,
        pending: Vec<Pending>,
    ) -> Option<Done> {
        if self.epoch() != epoch {
            // It answers to somebody that we are no longer.
            inner.book.lost(pending);
            return None;
        }
        let trouble = match answer {
            Ok(Answer::Done(done)) if !inner.hears_moved_clock(done.now, asked_at, told_at) => {
                inner.missing = done.missing;
                if !done.members.is_empty() {
                    inner.listed = Some(told_at);
                    inner.seats = seats(&done.members);
                    inner.members = done.members.len();
                    inner.without = without(&done.members, self.replicas);
                }
                return Some(done);
            }
            Ok(Answer::Done(_)) => "its clock was moved".to_owned(),
            Ok(Answer::Late) => "it was asked too late, or its clock was moved".to_owned(),
            Ok(Answer::Unknown) => "it has lost its memory".to_owned(),
            Err(trouble) => trouble,
        };
        inner.book.lost(pending);
        self.fail(inner, trouble, told_at);
        None
    }

    /// The store is away: everybody spends his share from now on.
    fn fail(&self, inner: &mut Inner, trouble: String, now: Instant) {
        if inner.phase == Phase::Down {
            return;
        }
        if inner.phase == Phase::Up {
            inner.book.away();
            tracing::warn!(
                reason = %trouble,
                "the shared store is away: this gateway goes on with its share of each window"
            );
            self.metrics.shared_store(false);
            inner.down = (trouble, now);
        }
        inner.phase = Phase::Down;
        inner.connection = None;
        self.epoch.modify(|epoch| *epoch += 1);
    }

    /// An attempt has so many slots, until `free_at`; 0 gives them back.
    fn settle(&self, window: WindowId, sequence: u64, slots: u32, free_at: Instant) {
        let mut inner = self.inner.lock();
        let tell = inner.phase != Phase::Down;
        inner.book.settle(window, sequence, slots, free_at, tell);
        drop(inner);
        self.news.notify_one();
    }

    /// An attempt has no more than so many slots.
    fn trim(&self, window: WindowId, sequence: u64, slots: u32) {
        let mut inner = self.inner.lock();
        let tell = inner.phase != Phase::Down;
        inner.book.trim(window, sequence, slots, tell);
    }

    fn news(&self) {
        self.news.notify_one();
    }

    /// Forgets what has passed.
    pub(super) fn sweep(&self, now: Instant) {
        self.inner.lock().book.sweep(now);
    }
}

impl Inner {
    /// Our number, or the one that we shall have.
    fn id(&self) -> u64 {
        match self.phase {
            Phase::Joining(id) => id,
            _ => self.owner.as_ref().map_or(0, |owner| owner.id),
        }
    }

    /// Whether the store does not know yet what was spent of a window before it came to be.
    fn is_blind(&self, period: Duration, now: Instant) -> bool {
        self.born_at
            .is_some_and(|born| now < believed_from(born, period))
    }

    /// Who decides about slots of a window.
    fn mode(&self, window: &WindowId, period: Duration, now: Instant) -> Mode {
        if !self.is_blind(period, now) {
            Mode::Ask
        } else if self.born_at.is_some_and(|born| now >= born + period) {
            Mode::TellLate
        } else if self.book.is_covered(window) {
            Mode::TellCovered
        } else {
            Mode::Tell
        }
    }

    /// Whether one who has no seat would be given one.
    fn has_free_seat(&self, replicas: u32) -> bool {
        let gone = self.missing > 0 && self.without >= self.missing;
        gone || (0..replicas).any(|seat| !self.seats.contains(&seat))
    }

    /// Our `now` and `budget` more, on the store's clock.
    fn deadline(&self, now: Instant, budget: Duration) -> Option<StoreTime> {
        Some(self.clock?.latest(now + budget))
    }

    /// The store's clock was read. Of one that is `new` nothing was known.
    fn read(&mut self, reading: Reading, new: bool) {
        self.fine_clock = Some(reading.or_finer(self.fine_clock.filter(|_| !new)));
        self.clock = Some(reading);
    }

    /// Reads the store's clock from an answer; true if it was moved, which is left to be found again.
    fn hears_moved_clock(&mut self, there: StoreTime, asked_at: Instant, told_at: Instant) -> bool {
        let reading = Reading {
            there,
            asked_at,
            told_at,
        };
        if self.clock.is_some_and(|known| reading.moved_since(&known)) {
            return true;
        }
        // A process that was stopped in between has learnt little.
        self.read(reading.or_finer(self.clock), false);
        false
    }
}

/// From when on a store that came to be at `born` knows what was spent of a window before, and by whom.
fn believed_from(born: Instant, period: Duration) -> Instant {
    born + period.max(BACK)
}

/// How many of them have no seat.
fn without(members: &[Owner], replicas: u32) -> u32 {
    let without = members.iter().filter(|member| member.seat >= replicas);
    u32::try_from(without.count()).unwrap_or(u32::MAX)
}

fn seats(members: &[Owner]) -> BTreeSet<Seat> {
    members.iter().map(|member| member.seat).collect()
}

//! Lanes: the calls of one quota key, one upstream call at a time. They leave in the order in which
//! they were read or, with `queue.order = "fair"`, by turns between callers (`lane/turns.rs`).
//!
//! A lane is a queue and, while anybody waits in it, a task (`lane/worker.rs`); a call that meets
//! nobody and need not wait does without either (`lane/alone.rs`). It appears with the
//! first call for its key and leaves when nobody waits; its window stays with the quota until it
//! has passed.
//!
//! Calls are put into a lane only under the lock of the registry, and a lane that finds itself
//! empty under that lock removes itself. So no call can arrive in a lane that has just left.

pub mod alone;
pub mod merge;
pub mod queue;
pub mod room;
pub mod turns;
pub mod waiting;
mod worker;

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;

use crate::{
    admission,
    call::{Call, Caller, LaneKey, QuotaClass, Target},
    catalogue::Command,
    clock::{self, Instant},
    config::{InForce, LogIds, Order},
    error::Refusal,
    metrics::Metrics,
    quota::{
        counting::Counting,
        local::Quota,
        scopes::{Forecast, Scopes},
        slots::{CommandSlots, Slots, View as WindowView},
        window::Pace,
    },
    sharded::{Sharded, give_back_memory},
    sync::{self, Mutex, MutexGuard, Notify},
    upstream::{
        Upstream,
        meter::admit_now,
        trip::{Answer, Facts, Trip},
    },
};
use alone::Alone;
use room::{Place, Room};
use waiting::Waiting as Queued;

/// Every lane of this process.
pub struct Lanes {
    by_key: Sharded<LaneKey, Arc<Lane>>,
    /// The windows.
    pub quota: Arc<Quota>,
    /// The bound on all that waits.
    pub room: Arc<Room>,
    /// The way out.
    pub upstream: Upstream,
    metrics: Arc<Metrics>,
    settings: InForce,
    order: Order,
    /// How log lines name a key.
    pub ids: LogIds,
}

/// The calls of one key.
#[derive(Debug)]
pub struct Lane {
    key: LaneKey,
    /// The window of the call that came first; where lanes share none, of every call.
    slots: Arc<Slots>,
    state: Mutex<State>,
    /// The first call has left: what the lane waits for may have changed.
    front_left: Notify,
}

#[derive(Debug)]
struct State {
    queue: Queued<Ticket>,
    /// The window of its first call.
    slots: Arc<Slots>,
    /// The calls that are on their way now.
    under_way: Option<Arc<Trip>>,
}

/// How a waiting call is answered, and its place in the room.
#[derive(Debug)]
struct Ticket {
    answer: oneshot::Sender<Box<Answer>>,
    _place: Place,
}

/// Why a lane has no answer of the upstream for a call.
#[derive(Debug)]
pub struct NoAnswer {
    /// What the caller is told.
    pub refusal: Refusal,
    /// How far the call had come.
    pub facts: Option<Facts>,
}

impl From<Refusal> for NoAnswer {
    fn from(refusal: Refusal) -> NoAnswer {
        NoAnswer {
            refusal,
            facts: None,
        }
    }
}

impl Lanes {
    /// No lanes yet.
    pub fn new(
        settings: &InForce,
        quota: Arc<Quota>,
        upstream: Upstream,
        metrics: Arc<Metrics>,
    ) -> Arc<Lanes> {
        let config = settings.get();
        Arc::new(Lanes {
            by_key: Sharded::new(),
            room: Arc::new(
                Room::new(config.queue.max_calls, config.queue.max_bytes).for_ruled(quota.ruled()),
            ),
            quota,
            upstream,
            metrics,
            settings: settings.clone(),
            order: config.queue.order,
            ids: config.log.ids,
        })
    }

    /// Puts a call into its lane, in which it waits for its answer.
    pub fn submit(self: &Arc<Self>, class: QuotaClass, call: Call) -> Result<Submitted, Refusal> {
        let key = LaneKey {
            class,
            target: call.target.clone(),
        };
        let pairs = class.pairs(&call);
        let limit = self.quota.pace(class).limit;
        if pairs > limit && self.quota.class(Some(class)).known().counting() == Counting::Pairs {
            return Err(Refusal::invalid(
                crate::catalogue::rules::INVALID_PARAMETER,
                format!(
                    "/ExtensionList has {pairs} pairs, the quota is {limit} pairs in a window: \
                     send fewer at a time"
                ),
            ));
        }
        self.enter(key, call, pairs)
    }

    /// The lane of a key, if somebody waits in it or is under way.
    pub fn find(&self, key: &LaneKey) -> Option<Arc<Lane>> {
        self.by_key.lock(key).get(key).cloned()
    }

    /// How many lanes there are, and those of them in which somebody has waited longest, the longest
    /// wait first. Each lane is looked at, so it costs what there is: callers ask seldom.
    pub fn longest_waiting(&self, most: usize) -> (usize, Vec<Arc<Lane>>) {
        let mut lanes: Vec<_> = self
            .live()
            .into_iter()
            .map(|lane| (lane.first_received(), lane))
            .collect();
        let live = lanes.len();
        // Who is only under way waits no more: after all that do.
        let longest = |one: &(Option<Instant>, Arc<Lane>), other: &(Option<Instant>, Arc<Lane>)| {
            (one.0.is_none(), one.0, one.1.key()).cmp(&(other.0.is_none(), other.0, other.1.key()))
        };
        if live > most {
            lanes.select_nth_unstable_by(most, longest);
            lanes.truncate(most);
        }
        lanes.sort_unstable_by(longest);
        (live, lanes.into_iter().map(|(_, lane)| lane).collect())
    }

    /// Lanes in which somebody waits or is under way.
    pub fn live(&self) -> Vec<Arc<Lane>> {
        let mut live = Vec::new();
        for shard in self.by_key.each() {
            live.extend(shard.values().cloned());
        }
        live
    }

    fn enter(
        self: &Arc<Self>,
        key: LaneKey,
        mut call: Call,
        pairs: u32,
    ) -> Result<Submitted, Refusal> {
        let class = key.class;
        let mut shard = self.by_key.lock(&key);
        let lane = shard.get(&key).cloned();
        let is_new = lane.is_none();
        let lane = lane.unwrap_or_else(|| self.lane(key, &call));
        if is_new
            && let Some(permit) =
                admit_now(&self.upstream.breaker, &self.scopes(&lane, &call, pairs))
        {
            shard.insert(lane.key.clone(), lane.clone());
            drop(shard);
            let alone = self.send_alone(lane, call, permit);
            return Ok(Submitted::Alone(alone));
        }
        let place = self.room.enter(Some(class), call.body.len());
        let place = place.map_err(|full| admission::no_room(class.refusal(), full))?;
        let mut state = lane.lock();
        let max_calls = self.settings.get().queue.max_calls_per_key;
        if let Some(full) = state.queue.full(&call.caller, max_calls) {
            let mut refusal = admission::no_room(class.refusal(), full);
            refusal.retry_after =
                Some(self.forecast(&lane, &mut state, &call, pairs).at - clock::now());
            return Err(refusal);
        }
        // What is admitted may still have to leave at its deadline, if callers take turns and others
        // come later.
        let forecast = self.forecast(&lane, &mut state, &call, pairs);
        admission::admit(
            &self.upstream,
            Some(class),
            forecast,
            clock::now(),
            call.deadline,
        )?;
        let (answer, receiver) = oneshot::channel();
        let ticket = Ticket {
            answer,
            _place: place,
        };
        call.compact();
        let (caller, deadline) = (call.caller.clone(), call.deadline);
        let number = state.queue.push(call, pairs, ticket);
        drop(state);
        if is_new {
            shard.insert(lane.key.clone(), lane.clone());
            sync::spawn(worker::run(self.clone(), lane.clone()));
        }
        drop(shard);
        let seat = Seat {
            lanes: self.clone(),
            lane,
            caller,
            number,
        };
        Ok(Submitted::Waits(Waiting {
            seat,
            answer: receiver,
            deadline,
        }))
    }

    fn forecast(&self, lane: &Lane, state: &mut State, call: &Call, pairs: u32) -> Forecast {
        let now = clock::now();
        let service = self.upstream.service_time.get();
        let mut ahead = state.queue.ahead(&call.caller);
        let scopes = self.scopes(lane, call, pairs);
        if let Some((slots, _)) = &scopes.key
            && self.quota.is_shared(lane.key.class)
        {
            // Other lanes that wait for the window have their turns between ours.
            let own = !state.queue.is_empty() && state.under_way.is_none();
            let others = slots.waiting().saturating_sub(u32::from(own));
            ahead.slots += others * (ahead.batches + 1);
        }
        ahead.batches += u32::from(state.under_way.is_some());
        scopes.forecast(now, ahead, service)
    }

    fn scopes(&self, lane: &Lane, call: &Call, pairs: u32) -> Scopes {
        Scopes {
            key: Some((self.slots(lane, call), pairs)),
            command: self.command(lane, call.command),
        }
    }

    /// The window that counts a call of a lane.
    fn slots(&self, lane: &Lane, call: &Call) -> Arc<Slots> {
        if self.quota.is_shared(lane.key.class) {
            self.window(&lane.key, call)
        } else {
            lane.slots.clone()
        }
    }

    fn window(&self, key: &LaneKey, call: &Call) -> Arc<Slots> {
        let identifier = || {
            let asked_by = call.head.credentials();
            asked_by.map_or_else(|| Arc::from(""), |asked_by| asked_by.identifier())
        };
        self.quota.key(&self.quota.window_key(key, identifier))
    }

    fn command(&self, lane: &Lane, command: &Command) -> Arc<CommandSlots> {
        self.quota.command(command.path, Some(lane.key.target.app))
    }

    fn lane(&self, key: LaneKey, call: &Call) -> Arc<Lane> {
        let slots = self.window(&key, call);
        let state = State {
            queue: Queued::new(self.order, slots.counting()),
            slots: slots.clone(),
            under_way: None,
        };
        Arc::new(Lane {
            key,
            slots,
            state: Mutex::new(state),
            front_left: Notify::new(),
        })
    }

    /// Removes the lane whose task has panicked: whoever waits in it hears so at once, and whoever
    /// comes next gets a lane that is served.
    fn abandon(&self, lane: &Lane) {
        let mut shard = self.by_key.lock(&lane.key);
        shard.remove(&lane.key);
        let mut state = lane.state.lock();
        state.under_way = None;
        state.queue = Queued::new(self.order, Counting::Calls);
    }

    /// Removes the lane if nobody waits in it.
    fn retire(&self, lane: &Lane) -> bool {
        let mut shard = self.by_key.lock(&lane.key);
        // Calls enter only under this lock, so a queue that is empty now stays empty.
        if !lane.state.lock().queue.is_empty() {
            return false;
        }
        shard.remove(&lane.key);
        give_back_memory(&mut shard);
        true
    }
}

/// What becomes of a call.
pub enum Submitted {
    /// It is sent now.
    Alone(Alone),
    /// It waits in its lane.
    Waits(Waiting),
}

/// A caller who waits for the answer of a lane.
pub struct Waiting {
    seat: Seat,
    answer: oneshot::Receiver<Box<Answer>>,
    deadline: Instant,
}

impl Waiting {
    /// Whose state the call is about.
    pub fn target(&self) -> &Target {
        &self.seat.lane.key.target
    }

    /// The answer, by the caller's deadline. Dropped before, the call leaves its lane at once.
    pub async fn answer(&mut self) -> Result<Answer, NoAnswer> {
        match clock::by(self.deadline, &mut self.answer).await {
            Some(Ok(answer)) => Ok(*answer),
            // Only if the task of the lane has panicked.
            Some(Err(_)) => Err(admission::unanswered().into()),
            None => Err(self.seat.too_late()),
        }
    }
}

/// A caller's place in a lane, for as long as he waits there.
struct Seat {
    lanes: Arc<Lanes>,
    lane: Arc<Lane>,
    caller: Caller,
    number: u64,
}

impl Seat {
    /// The deadline has come: leaves the lane and says what the call was waiting for.
    fn too_late(&self) -> NoAnswer {
        let waiting = self.lane.leave(&self.caller, self.number);
        match waiting {
            Some(job) => {
                if self
                    .lanes
                    .upstream
                    .breaker
                    .next_probe(clock::now())
                    .is_some()
                {
                    return admission::unreachable_upstream().into();
                }
                let scopes = self.lanes.scopes(&self.lane, &job.call, job.call.pairs);
                let limiting = scopes.limiting(clock::now());
                let code = admission::code(limiting, Some(self.lane.key.class));
                let mut state = self.lane.lock();
                let next = self
                    .lanes
                    .forecast(&self.lane, &mut state, &job.call, job.call.pairs)
                    .at;
                admission::too_late(code, next.saturating_duration_since(clock::now())).into()
            }
            None => {
                let trip = self.lane.state.lock().under_way.clone();
                let refusal = match &trip {
                    Some(trip) if trip.found_nobody() => admission::unreachable_upstream(),
                    _ => admission::unanswered(),
                };
                NoAnswer {
                    refusal,
                    facts: trip.map(|trip| trip.facts()),
                }
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lane.leave(&self.caller, self.number);
    }
}

impl Lane {
    /// Its key.
    pub fn key(&self) -> &LaneKey {
        &self.key
    }

    /// Its calls, counted as the upstream counts them by now.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        let counting = state.slots.counting();
        state.queue.count(counting);
        state
    }

    fn first_received(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.queue.front().map(|(_, job)| job.call.received)
    }

    /// What there is to see of it.
    pub fn view(&self) -> View {
        let now = clock::now();
        let state = self.state.lock();
        let slots = state.slots.view(now);
        let oldest = state.queue.front().map(|(_, job)| now - job.call.received);
        let pace = state.slots.pace();
        View {
            calls: state.queue.calls(),
            bytes: state.queue.bytes(),
            batches: state.queue.batches(),
            oldest_wait: oldest.unwrap_or_default(),
            under_way: state.under_way.as_ref().map(|trip| trip.facts()),
            slots,
            limit: pace.limit,
            window: pace.window,
            counting: state.slots.counting(),
        }
    }

    fn leave(&self, caller: &Caller, number: u64) -> Option<queue::Job<Ticket>> {
        let mut state = self.state.lock();
        let was_front = state
            .queue
            .front()
            .is_some_and(|(front, _)| front == number);
        let left = state.queue.leave(caller, number);
        if was_front {
            self.front_left.notify_one();
        }
        left
    }
}

/// What there is to see of one lane.
#[derive(Clone, Debug)]
pub struct View {
    /// Calls that wait.
    pub calls: usize,
    /// Bytes of their bodies.
    pub bytes: usize,
    /// Upstream calls that they will make, at most.
    pub batches: u32,
    /// How long the one that leaves first has waited.
    pub oldest_wait: Duration,
    /// What is on its way.
    pub under_way: Option<Facts>,
    /// Its window.
    pub slots: WindowView,
    /// Slots of its window.
    pub limit: u32,
    /// What each stands for.
    pub counting: Counting,
    /// The length of its window.
    pub window: Duration,
}

impl View {
    /// What there is to see of a key without a lane: its window, if it is remembered.
    pub fn of_window(
        slots: Option<Arc<Slots>>,
        pace: Pace,
        counting: Counting,
        now: Instant,
    ) -> View {
        let free = WindowView {
            free: pace.limit,
            ..WindowView::default()
        };
        View {
            calls: 0,
            bytes: 0,
            batches: 0,
            oldest_wait: Duration::ZERO,
            under_way: None,
            slots: slots.map_or(free, |slots| slots.view(now)),
            limit: pace.limit,
            window: pace.window,
            counting,
        }
    }
}

//! Gateways that share their windows, and what real processes cannot be made to do on command: each is
//! a process in virtual time, the store runs the real scripts, and a seed says what fails and when. The
//! simulator judges.
//!
//! `CHAT_GATEWAY_SEED=17 cargo test --test spec shared` replays one seed; `CHAT_GATEWAY_SEEDS=10000`
//! runs that many.
//!
//! turmoil would bring hosts and a network, but no host that is stopped and goes on, no clock that is
//! set, and a step for every millisecond of every host: it is ten times as slow, and the gateway's way
//! to the store would need the same seam ([`Dial`]).

mod likeness;
mod process;
mod store;
mod wire;

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use chat_gateway::{
    call::QuotaClass,
    clock::{self, Instant},
    config::{Config, Sources, load},
    keys::Keys,
    metrics::Metrics,
    quota::{
        local::Quota,
        redis::{
            BACK, Store,
            line::{Dial, Stream},
        },
    },
    serve::Core,
    simulate::{Fault, Limit, QuotaKey, Settings, Simulator, WindowKind},
    sync::watched::Watched,
};
use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::{
    Rng, RngExt as _, SeedableRng as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    runtime::Handle,
};

use self::{
    process::{Process, TICK, Watch},
    store::{Data, Server},
    wire::Way,
};
use crate::{
    harness::{ATTRIBUTES, Pipe, World, attribute, worst_window},
    promises::each_seed,
    zoo::SOUND,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What the store's clock shows when a run begins, in microseconds.
const EPOCH: i64 = 1_800_000_000_000_000;

/// From the end of the last failure until everything must be as it was.
const RECOVERY: Duration = Duration::from_secs(9);

/// For how long what is used is counted then.
const CALM: Duration = Duration::from_secs(3);

/// One run.
#[derive(Debug)]
struct Plan {
    replicas: u32,
    gateways: usize,
    group: (u32, Duration),
    api: (u32, Duration),
    budget: Duration,
    call_timeout: Duration,
    latency: Duration,
    jitter: Duration,
    window: WindowKind,
    faults: Vec<(Fault, f64)>,
    /// The most that a piece takes longer than a tick on the way to the store, in milliseconds.
    spread: u64,
    /// What the store's clock is off by, in millionths.
    drift: i64,
    /// Of each gateway: which group each caller writes to, and how long he pauses at most.
    callers: Vec<Vec<(u32, u64)>>,
    rounds: Vec<Round>,
}

/// Failures that may overlap, and then peace for so long.
#[derive(Debug)]
struct Round {
    failures: Vec<(Duration, Failure, Duration)>,
    peace: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Failure {
    /// What this gateway and the store say to each other is held up.
    Held(usize),
    /// The connections of this gateway end, and what is under way is lost.
    Cut(usize),
    /// This gateway is stopped.
    Stopped(usize),
    /// This gateway is killed, and another takes its place when the store can be reached.
    Killed(usize),
    /// The store does nothing for a while.
    Frozen,
    /// The store is gone for a while, and returns with what it held.
    Restarted,
    /// The store is gone for a while, and returns empty.
    Emptied,
    /// Another store takes over after a while. It lacks what was written within so many ms.
    FailedOver(u64),
    /// The store's clock is set, by so many ms.
    ClockSet(i64),
    /// Everything takes longer for a while, by up to so many ms.
    Slow(u64),
}

fn generate(seed: u64) -> Plan {
    let rng = &mut StdRng::seed_from_u64(seed);
    let replicas = *[2, 3, 3, 3, 4, 5].choose(rng).expect("not empty");
    let gateways = rng.random_range(2..=replicas) as usize;
    let latency = rng.random_range(0..30);
    let jitter = rng.random_range(0..50);
    let window = rng.random_range(400..=1_000) * MS;
    let scarce = rng.random_bool(0.3);
    let faulty = rng.random_bool(0.4);
    let groups = rng.random_range(1..=3);
    let callers = |_| {
        let callers = rng.random_range(1..=5);
        let caller = |_| {
            let pause = *[0, 0, 0, 400, 3_000].choose(rng).expect("not empty");
            (rng.random_range(0..groups), pause)
        };
        (0..callers).map(caller).collect()
    };
    let callers = (0..gateways).map(callers).collect();
    let limit = *[1, 2, 3, 5, 5, 5, 8].choose(rng).expect("not empty");
    // No call waits for turns in two windows.
    let least = if limit < replicas { replicas } else { 3 };
    let api = if scarce {
        rng.random_range(least..8)
    } else {
        60
    };
    // Turns are on the store's clock: one who is cut off cannot know that it is set.
    let is_set = limit.min(api) >= replicas;
    Plan {
        replicas,
        gateways,
        group: (limit, window),
        api: (api, SECOND),
        budget: rng.random_range(60..200) * MS,
        call_timeout: rng.random_range(200..900) * MS,
        latency: Duration::from_millis(latency),
        jitter: Duration::from_millis(jitter),
        window: *SOUND.choose(rng).expect("not empty"),
        faults: if faulty {
            vec![
                (Fault::ResetBefore, 0.02),
                (Fault::ResetAfter, 0.02),
                (Fault::Hang, 0.01),
            ]
        } else {
            Vec::new()
        },
        spread: rng.random_range(0..15),
        drift: rng.random_range(-100..=100),
        callers,
        rounds: (0..rng.random_range(1..=4))
            .map(|_| round(rng, gateways, is_set))
            .collect(),
    }
}

fn round(rng: &mut StdRng, gateways: usize, is_set: bool) -> Round {
    let failure = |rng: &mut StdRng| {
        let whose = rng.random_range(0..gateways);
        match rng.random_range(0..12) {
            0 | 1 => Failure::Held(whose),
            2 => Failure::Cut(whose),
            3 | 4 => Failure::Stopped(whose),
            5 | 6 => Failure::Killed(whose),
            7 => Failure::Frozen,
            8 => Failure::Restarted,
            9 => Failure::Emptied,
            10 => Failure::FailedOver(rng.random_range(0..1_500)),
            _ if !is_set || rng.random_bool(0.5) => Failure::Slow(rng.random_range(20..400)),
            _ => {
                let by = rng.random_range(1_000..100_000);
                Failure::ClockSet(if rng.random_bool(0.5) { by } else { -by })
            }
        }
    };
    let failures = (0..rng.random_range(1..=3)).map(|_| {
        let at = rng.random_range(0..800) * MS;
        // Short ones are about as long as what they disturb.
        let length = if rng.random_bool(0.5) {
            rng.random_range(5..300)
        } else {
            rng.random_range(300..5_000)
        };
        (at, failure(rng), length * MS)
    });
    Round {
        failures: failures.collect(),
        peace: rng.random_range(1_500..4_000) * MS,
    }
}

/// What is not a gateway: the store and the upstream, in a process that never fails.
struct Outside {
    process: Process,
    simulator: Simulator,
    store: Arc<Mutex<Server>>,
    /// Whether the store answers, and whether it is there.
    state: Arc<Watched<(bool, bool)>>,
    /// How its clock is off.
    clock: Arc<Mutex<(i64, i64)>>,
}

/// One gateway; `None` while there is none.
struct Gateway {
    process: Option<Process>,
    core: Option<Arc<Core>>,
    way: Way,
    stopped: bool,
}

/// How a gateway reaches the store.
struct Road {
    way: Way,
    here: Watch,
    there: Watch,
    world: Handle,
    store: Arc<Mutex<Server>>,
    state: Arc<Watched<(bool, bool)>>,
    clock: Arc<Mutex<(i64, i64)>>,
}

impl Dial for Road {
    fn dial(&self, _: &str, _: u16) -> io::Result<Box<dyn Stream>> {
        let (_, there) = self.state.get();
        if !there {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = self.way.connect(self.here, self.there, &self.world);
        let (store, state) = (self.store.clone(), self.state.clone());
        let (clock, watch) = (self.clock.clone(), self.there);
        self.world.spawn(serve(far, store, state, clock, watch));
        Ok(Box::new(near))
    }
}

/// The store's side of one connection.
async fn serve(
    mut stream: DuplexStream,
    store: Arc<Mutex<Server>>,
    state: Arc<Watched<(bool, bool)>>,
    clock: Arc<Mutex<(i64, i64)>>,
    watch: Watch,
) {
    let mut pending = Vec::new();
    let mut buffer = vec![0; 1 << 14];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        pending.extend_from_slice(&buffer[..length]);
        while let Some(words) = store::command(&mut pending) {
            state.wait_for(|(runs, _)| *runs).await;
            let mut answer = Vec::new();
            {
                let mut store = store.lock();
                store.data.lock().now = shown(*clock.lock(), watch.now());
                let reply = store.answer(&words);
                store::encode(&reply, &mut answer);
            }
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }
}

/// The time that the store's clock shows.
fn shown((set, drift): (i64, i64), at: Duration) -> i64 {
    let at = i64::try_from(at.as_micros()).expect("a short run");
    EPOCH + set + at + at * drift / 1_000_000
}

/// Connects a gateway to the simulator.
#[derive(Clone)]
struct Upstream {
    way: Way,
    here: Watch,
    there: Watch,
    world: Handle,
    simulator: Simulator,
}

impl tower::Service<Uri> for Upstream {
    type Response = TokioIo<Pipe>;
    type Error = io::Error;
    type Future = std::future::Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (near, far) = self.way.connect(self.here, self.there, &self.world);
        let simulator = self.simulator.clone();
        self.world
            .spawn(async move { simulator.serve_connection(far).await });
        std::future::ready(Ok(TokioIo::new(Pipe::new(near))))
    }
}

/// A whole run.
struct Run {
    plan: Plan,
    random: StdRng,
    at: Duration,
    outside: Outside,
    gateways: Vec<Gateway>,
    running: Arc<AtomicBool>,
    /// Callers who wait for an answer, and answers.
    waiting: Arc<AtomicUsize>,
    answered: Arc<AtomicUsize>,
    /// Some gateway was.
    killed: bool,
    /// What the store held of late, the oldest first: what a replica of it may have.
    copies: Vec<(Duration, Data)>,
}

impl Run {
    fn new(plan: Plan, seed: u64) -> Run {
        let process = Process::new(Duration::ZERO);
        let mut settings = Settings {
            latency: plan.latency,
            jitter: plan.jitter,
            window: plan.window,
            faults: plan.faults.clone(),
            seed,
            ..Settings::default()
        };
        settings.limits.group_attributes = Limit::new(plan.group.0, plan.group.1);
        settings.limits.api = Limit::new(plan.api.0, plan.api.1);
        let simulator = {
            let _inside = process.runtime().enter();
            Simulator::new(settings)
        };
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        let outside = Outside {
            process,
            simulator,
            store: Arc::new(Mutex::new(Server::new())),
            state: Arc::new(Watched::new((true, true))),
            clock: Arc::new(Mutex::new((0, plan.drift))),
        };
        let gateways = (0..plan.gateways).map(|_| Gateway {
            process: None,
            core: None,
            way: Way::new(random.next_u64()),
            stopped: false,
        });
        let gateways = gateways.collect();
        Run {
            plan,
            random,
            at: Duration::ZERO,
            outside,
            gateways,
            running: Arc::new(AtomicBool::new(true)),
            waiting: Arc::default(),
            answered: Arc::default(),
            killed: false,
            copies: Vec::new(),
        }
    }

    fn config(&self) -> Config {
        let plan = &self.plan;
        let text = |length: Duration| humantime::format_duration(length).to_string();
        let sources = Sources {
            overrides: vec![
                "upstream.url=http://chat.test".to_owned(),
                format!("upstream.call_timeout={}", text(plan.call_timeout)),
                "queue.deadline=300s".to_owned(),
                "retry.max_attempts=1".to_owned(),
                format!("quota.group_attributes.limit={}", plan.group.0),
                format!("quota.group_attributes.window={}", text(plan.group.1)),
                format!("quota.api.limit={}", plan.api.0),
                format!("quota.api.window={}", text(plan.api.1)),
                "shared.redis=redis://store.test".to_owned(),
                format!("shared.replicas={}", plan.replicas),
                format!("shared.budget={}", text(plan.budget)),
            ],
            ..Sources::default()
        };
        load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}"))
    }

    /// Starts a gateway and its callers.
    fn start(&mut self, number: usize) {
        let config = self.config();
        let process = Process::new(self.at);
        let (here, there) = (process.watch(), self.outside.process.watch());
        let world = self.outside.process.runtime().handle().clone();
        let upstream = Upstream {
            way: Way::new(self.random.next_u64()),
            here,
            there,
            world: world.clone(),
            simulator: self.outside.simulator.clone(),
        };
        let road = Road {
            way: self.gateways[number].way.clone(),
            here,
            there,
            world,
            store: self.outside.store.clone(),
            state: self.outside.state.clone(),
            clock: self.outside.clock.clone(),
        };
        let inside = process.runtime().enter();
        let metrics = Arc::new(Metrics::new());
        let seed = self.random.next_u64();
        let store = Store::over(&config, metrics.clone(), Some(Arc::new(road)), seed);
        let store = store
            .expect("no file is named")
            .expect("windows are shared");
        tokio::spawn(store.clone().keep());
        let quota = Quota::new(&config).shared_in(Some(store));
        let core = Core::with(&config, upstream, metrics, quota, Keys::default(), None);
        core.lanes.upstream.random.seed(0);
        tokio::spawn(Core::sweep(core.lanes.quota.clone()));
        drop(inside);
        self.gateways[number].process = Some(process);
        self.gateways[number].core = Some(Arc::new(core));
        for (group, pause) in self.plan.callers[number].clone() {
            self.call(number, group, pause);
        }
    }

    /// One more caller of a gateway.
    fn call(&mut self, number: usize, group: u32, pause: u64) {
        let gateway = &self.gateways[number];
        let core = gateway.core.clone().expect("it was started");
        let process = gateway.process.as_ref().expect("it was started");
        let _inside = process.runtime().enter();
        tokio::spawn(caller(
            World::of(&self.outside.simulator, core),
            number.to_string(),
            format!("g{group}"),
            pause,
            self.random.next_u64(),
            self.running.clone(),
            Counted(self.waiting.clone(), self.answered.clone()),
        ));
    }

    /// Starts everybody, and waits until the store decides.
    fn begin(&mut self) {
        for gateway in &self.gateways {
            *gateway.way.spread.lock() = self.plan.spread;
        }
        for number in 0..self.plan.gateways {
            self.start(number);
            self.run_until(self.at + 20 * MS);
        }
        self.run_until(self.at + SECOND * 2);
    }

    /// One tick of everybody who is not stopped.
    fn tick(&mut self) {
        let to = self.at + TICK;
        let mut order: Vec<_> = (0..=self.gateways.len()).collect();
        order.shuffle(&mut self.random);
        for number in order {
            match self.gateways.get_mut(number) {
                Some(gateway) if gateway.stopped => {}
                Some(gateway) => {
                    if let Some(process) = &mut gateway.process {
                        process.turn(to);
                    }
                }
                None => self.outside.process.turn(to),
            }
        }
        self.at = to;
        if self.at.subsec_millis().is_multiple_of(50) {
            let data = self.outside.store.lock().data.lock().clone();
            self.copies.push((self.at, data));
            if self.copies.len() > 40 {
                self.copies.remove(0);
            }
        }
    }

    fn run_until(&mut self, to: Duration) {
        while self.at < to {
            self.tick();
        }
    }

    fn round(&mut self, round: &Round) {
        let start = self.at;
        // When what happens or ends.
        let mut events: BTreeMap<(Duration, usize), (Failure, bool)> = BTreeMap::new();
        for &(after, failure, length) in &round.failures {
            let at = start + after;
            let number = events.len();
            events.insert((at, number), (failure, true));
            events.insert((at + length, number + 1), (failure, false));
        }
        let mut dead = Vec::new();
        for ((at, _), (failure, begins)) in events {
            self.run_until(at);
            self.apply(failure, begins, &mut dead);
        }
        // Whoever comes first after the clock was set would believe it: the others find it by then.
        self.run_until(self.at + SECOND);
        for number in dead {
            if self.gateways[number].process.is_none() {
                self.start(number);
            }
        }
        self.run_until(self.at + round.peace);
    }

    fn apply(&mut self, failure: Failure, begins: bool, dead: &mut Vec<usize>) {
        let outside = &self.outside;
        match (failure, begins) {
            (Failure::Held(whose), held) => self.gateways[whose].way.hold(held),
            (Failure::Cut(whose), true) => self.gateways[whose].way.cut(),
            (Failure::Stopped(whose), stopped) => {
                let gateway = &mut self.gateways[whose];
                if let Some(process) = &mut gateway.process
                    && stopped
                    && !gateway.stopped
                {
                    process.settle();
                }
                gateway.stopped = stopped;
            }
            (Failure::Killed(whose), true) => {
                let gateway = &mut self.gateways[whose];
                gateway.stopped = false;
                gateway.core = None;
                gateway.process = None;
                self.killed = true;
                dead.push(whose);
            }
            (Failure::Frozen, frozen) => outside.state.modify(|(runs, _)| *runs = !frozen),
            (Failure::Restarted | Failure::Emptied | Failure::FailedOver(_), true) => {
                outside.state.modify(|(_, there)| *there = false);
                self.gateways.iter().for_each(|gateway| gateway.way.cut());
                let kept = match failure {
                    Failure::Restarted => Some(outside.store.lock().data.lock().clone()),
                    Failure::FailedOver(lost) => {
                        let from = self.at.saturating_sub(Duration::from_millis(lost));
                        let copies = self.copies.iter().rev();
                        let mut copies = copies.skip_while(|(at, _)| *at > from);
                        copies.next().map(|(_, data)| data.clone())
                    }
                    _ => None,
                };
                outside.store.lock().restart(kept);
            }
            (Failure::Restarted | Failure::Emptied | Failure::FailedOver(_), false) => {
                outside.state.modify(|(_, there)| *there = true);
            }
            (Failure::ClockSet(by), true) => outside.clock.lock().0 += by * 1_000,
            (Failure::Slow(by), slow) => {
                for gateway in &self.gateways {
                    *gateway.way.spread.lock() = if slow { by } else { self.plan.spread };
                }
            }
            (Failure::Cut(_) | Failure::Killed(_) | Failure::ClockSet(_), false) => {}
        }
    }

    /// What each gateway says of itself and of its keys, and what the store holds.
    fn tell(&self) {
        for gateway in &self.gateways {
            let (Some(process), Some(core)) = (&gateway.process, &gateway.core) else {
                continue;
            };
            let _inside = process.runtime().enter();
            let store = core.lanes.quota.store.as_ref();
            println!("{:?}", store.map(|store| store.view(clock::now())));
            let world = World::of(&self.outside.simulator, core.clone());
            for group in 0..3 {
                let query = format!("sdkappid=88888888&group=g{group}");
                println!(
                    "{}",
                    String::from_utf8_lossy(&world.look("/explain", &query))
                );
            }
        }
        println!("{:?}", self.outside.store.lock().data.lock());
    }

    fn tell_window(&self, times: &[Instant], window: Duration, limit: usize) {
        let base = self.outside.process.watch().base;
        for pair in times.windows(limit + 1) {
            if pair[limit] - pair[0] < window {
                println!("{:?}", pair.iter().map(|at| *at - base).collect::<Vec<_>>());
            }
        }
    }

    /// Arrivals by what they count against.
    fn arrivals(&self) -> BTreeMap<String, Vec<Instant>> {
        let mut windows: BTreeMap<String, Vec<Instant>> = BTreeMap::new();
        let mut arrivals = self.outside.simulator.journal();
        arrivals.sort_by_key(|arrival| arrival.at);
        for arrival in arrivals {
            let Some(key @ QuotaKey::Group { .. }) = &arrival.key else {
                panic!("{arrival:?}");
            };
            windows.entry(key.to_string()).or_default().push(arrival.at);
            windows
                .entry("api".to_owned())
                .or_default()
                .push(arrival.at);
        }
        windows
    }

    /// No window was over its limit, and nobody was refused.
    fn judge(&self, what_failed: &impl std::fmt::Debug) {
        for (key, times) in self.arrivals() {
            let (limit, window) = if key == "api" {
                self.plan.api
            } else {
                self.plan.group
            };
            let worst = worst_window(&times, window);
            if worst > limit as usize {
                self.tell_window(&times, window, limit as usize);
            }
            assert!(
                worst <= limit as usize,
                "{worst} of {limit} calls of {key} within {window:?}: {:?} {what_failed:?}",
                self.plan
            );
        }
        let refusals = self.outside.simulator.report().refusals;
        assert!(refusals.is_empty(), "the upstream refused {refusals:?}");
    }

    /// Arrivals since the first so many, by the gateway that sent them.
    fn by_gateway(&self, before: usize) -> Vec<usize> {
        let mut each = vec![0; self.plan.gateways];
        for arrival in &self.outside.simulator.journal()[before..] {
            let body: serde_json::Value = serde_json::from_slice(&arrival.body).expect("JSON");
            let who = body["GroupAttr"][0]["value"].as_str().map(str::parse);
            let who: usize = who.expect("a text").expect("the number of a gateway");
            each[who] += 1;
        }
        each
    }

    /// Calls that should arrive within `length` at least, when nothing fails.
    fn expected(&self, length: Duration) -> f64 {
        let plan = &self.plan;
        let trip = TICK * 2 + plan.latency + plan.jitter;
        let store = TICK * 2 + Duration::from_millis(plan.spread) * 2;
        // Shares of those who were killed are kept, until there are as many as there may be.
        let kept = if self.killed {
            plan.replicas - u32::try_from(plan.gateways).expect("a few")
        } else {
            0
        };
        let rate = |(limit, window): (u32, Duration)| {
            let left = if limit < plan.replicas && kept > 0 {
                // By turns, some of which nobody takes: they are longer apart than is looked at.
                0
            } else {
                limit - limit.div_ceil(plan.replicas) * kept
            };
            f64::from(left) / (window + trip + store).as_secs_f64()
        };
        let mut groups: BTreeMap<u32, u32> = BTreeMap::new();
        for callers in &plan.callers {
            let mut own: Vec<_> = callers.iter().filter(|(_, pause)| *pause == 0).collect();
            own.sort();
            own.dedup();
            for (group, _) in own {
                *groups.entry(*group).or_default() += 1;
            }
        }
        let each = groups.values().map(|&gateways| {
            // A gateway makes one call of a group at a time.
            let alone = f64::from(gateways) / (trip + store + store).as_secs_f64();
            rate(plan.group).min(alone)
        });
        let all: f64 = each.sum();
        all.min(rate(plan.api)) * length.as_secs_f64()
    }
}

/// Who waits, and answers.
struct Counted(Arc<AtomicUsize>, Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Writes, again and again.
async fn caller(
    world: World,
    who: String,
    group: String,
    pause: u64,
    seed: u64,
    running: Arc<AtomicBool>,
    counted: Counted,
) {
    counted.0.fetch_add(1, Ordering::Relaxed);
    let rng = &mut StdRng::seed_from_u64(seed);
    let body = attribute(&group, "k", &who);
    let path = format!("{ATTRIBUTES}modify_group_attr");
    while running.load(Ordering::Relaxed) {
        let heard = world
            .post_with(&path, &body, &[("x-chat-gateway-merge", "off")])
            .await;
        assert_ne!(heard.reason(), "deadline");
        counted.1.fetch_add(1, Ordering::Relaxed);
        if pause > 0 {
            clock::sleep(Duration::from_millis(rng.random_range(0..pause))).await;
        }
    }
}

/// What came of a seed: calls in the calm and how many there should have been, calls in all and how
/// many there could have been.
fn check(seed: u64) -> [f64; 4] {
    let mut run = Run::new(generate(seed), seed);
    run.begin();
    let rounds = std::mem::take(&mut run.plan.rounds);
    for round in &rounds {
        run.round(round);
    }
    run.run_until(run.at + RECOVERY);
    let before = run.outside.simulator.journal().len();
    run.run_until(run.at + CALM);
    let used = run.outside.simulator.journal().len() - before;
    for gateway in &run.gateways {
        let core = gateway.core.as_ref().expect("they are all back");
        let process = gateway.process.as_ref().expect("they are all back");
        let _inside = process.runtime().enter();
        let view = core
            .lanes
            .quota
            .store
            .as_ref()
            .map(|store| store.view(clock::now()));
        assert!(view.as_ref().is_some_and(|view| view.up), "{view:?}");
    }
    let whole = run.at;
    // Nobody is left without an answer.
    run.running.store(false, Ordering::Relaxed);
    let patience = run.at + SECOND * 90;
    while run.waiting.load(Ordering::Relaxed) > 0 && run.at < patience {
        run.tick();
    }
    let waiting = run.waiting.load(Ordering::Relaxed);
    if waiting > 0 {
        run.tell();
    }
    assert_eq!(waiting, 0, "callers wait for ever: {rounds:?}");
    let broken = run.outside.store.lock().broken.clone();
    assert_eq!(broken, None, "a script failed");
    run.judge(&rounds);
    let expected = run.expected(CALM);
    let used = f64::from(u32::try_from(used).expect("a few"));
    let all = run.answered.load(Ordering::Relaxed);
    let all = f64::from(u32::try_from(all).expect("a few"));
    [used, expected, all, run.expected(whole)]
}

#[test]
fn no_window_should_be_over_and_nobody_stalled_whatever_fails() {
    let mut sums = [0.0; 4];
    each_seed(|seed| {
        let result = check(seed);
        for (sum, one) in sums.iter_mut().zip(result) {
            *sum += one;
        }
        assert!(
            // One more may be lost and hold its slot for longer.
            result[0] + 1.0 >= result[1] * 0.6,
            "{result:?} {:?}",
            generate(seed)
        );
    });
    let [calm, expected, all, possible] = sums;
    println!(
        "used {:.2} when all is well, {:.2} through everything",
        calm / expected,
        all / possible
    );
    // Of one seed more may be away than is there.
    let many = std::env::var("CHAT_GATEWAY_SEED").is_err();
    assert!(!many || calm >= expected * 0.85 && all >= possible * 0.6);
}

/// Runs that were once over, beyond the hundred: a slot that was given ahead to one who did not hear of
/// it, a store that was restarted twice while one was cut off.
#[test]
fn what_was_over_once_should_not_be_again() {
    for seed in [373, 662, 803, 981, 1138, 1858] {
        check(seed);
    }
}

/// Two gateways of three, and callers of one group who never pause.
fn two_of_three() -> Plan {
    Plan {
        replicas: 3,
        gateways: 2,
        group: (5, 600 * MS),
        api: (60, SECOND),
        budget: 100 * MS,
        call_timeout: 500 * MS,
        latency: 5 * MS,
        jitter: Duration::ZERO,
        window: WindowKind::Log,
        faults: Vec::new(),
        spread: 0,
        drift: 0,
        callers: vec![vec![(0, 0); 3]; 2],
        rounds: Vec::new(),
    }
}

#[test]
fn who_is_not_back_yet_at_a_store_that_was_emptied_should_be_left_his_share() {
    let mut run = Run::new(two_of_three(), 1);
    run.begin();
    // The one who could tell the new store of the other is gone.
    let mut dead = Vec::new();
    run.apply(Failure::Held(1), true, &mut dead);
    run.apply(Failure::Emptied, true, &mut dead);
    run.apply(Failure::Killed(0), true, &mut dead);
    run.run_until(run.at + SECOND / 2);
    run.apply(Failure::Emptied, false, &mut dead);
    run.start(0);
    run.run_until(run.at + SECOND * 2);
    run.apply(Failure::Held(1), false, &mut dead);
    run.run_until(run.at + SECOND * 4);
    run.judge(&"a newcomer at an empty store");
}

#[test]
fn what_is_given_ahead_should_be_used_before_anybody_is_missing() {
    // When his turn comes.
    for after in 0..20 {
        let plan = Plan {
            gateways: 3,
            group: (60, SECOND),
            api: (2, 900 * MS),
            callers: vec![Vec::new(); 3],
            ..two_of_three()
        };
        let mut run = Run::new(plan, 1);
        run.begin();
        run.run_until(run.at + BACK + after * 600 * MS);
        // His last word is heard, but not the answer.
        let calls = |run: &Run| run.outside.store.lock().calls;
        let before = calls(&run);
        while calls(&run) == before {
            run.tick();
        }
        run.apply(Failure::Held(0), true, &mut Vec::new());
        run.run_until(run.at + SECOND * 3 / 2);
        // One uses the slots, the other has them ahead.
        for group in 0..5 {
            run.call(1, group, 60_000);
            run.call(2, group, 0);
            run.call(0, group, 0);
        }
        run.run_until(run.at + SECOND * 4);
        run.judge(&"a gateway that is cut off");
        assert!(run.by_gateway(0)[0] > 0, "he has turns");
    }
}

#[test]
fn a_store_that_was_never_sent_the_scripts_should_not_seem_too_slow_at_first() {
    // One round trip is well within the budget, three are not.
    let plan = Plan {
        spread: 35,
        ..two_of_three()
    };
    let mut run = Run::new(plan, 1);
    *run.gateways[0].way.spread.lock() = run.plan.spread;
    run.start(0);
    while run.at < SECOND {
        run.tick();
        let core = run.gateways[0].core.as_ref().expect("it was started");
        let store = core.lanes.quota.store.as_ref();
        let view = store.expect("windows are shared").view(clock::now());
        let trouble = view.trouble.map(|(why, _)| why);
        assert!(
            trouble.is_none_or(|why| why == "it was not reached yet"),
            "at {:?}",
            run.at
        );
        assert!(view.up || run.at < SECOND / 2);
    }
}

/// How much gets through by limits of a group and of its command, of how much; what that took in questions to
/// the store; and what came from each gateway.
fn saturated(group: u32, api: u32, gateways: usize) -> (usize, usize, u64, Vec<usize>) {
    const LENGTH: u32 = 40;
    let plan = Plan {
        replicas: u32::try_from(gateways).expect("a few"),
        gateways,
        group: (group, SECOND),
        api: (api, SECOND),
        jitter: 5 * MS,
        spread: 3,
        callers: vec![vec![(0, 0), (0, 0), (1, 0)]; gateways],
        ..two_of_three()
    };
    let mut run = Run::new(plan, 1);
    run.begin();
    run.run_until(run.at + SECOND * 4);
    let before = run.outside.simulator.journal().len();
    let asked = run.outside.store.lock().asked;
    run.run_until(run.at + SECOND * LENGTH);
    let asked = run.outside.store.lock().asked - asked;
    run.judge(&"nothing");
    let each = run.by_gateway(before);
    let possible = api.min(group * 2) * LENGTH;
    (each.iter().sum(), possible as usize, asked, each)
}

#[test]
fn who_waits_for_a_slot_should_not_poll_and_should_get_his_part() {
    // Fewer slots than gateways, as many, and more.
    for (group, api, gateways) in [
        (1, 60, 4),
        (1, 60, 5),
        (2, 60, 5),
        (3, 60, 5),
        (5, 60, 10),
        (5, 60, 20),
        (5, 60, 5),
        (5, 60, 3),
        (60, 5, 10),
        (60, 5, 3),
        (5, 8, 10),
    ] {
        let (used, possible, asked, each) = saturated(group, api, gateways);
        let what = format!(
            "{group} for a group, {api} for all, {gateways} gateways: {used} of {possible}, asked {asked} \
             times, {each:?}"
        );
        println!("{what}");
        // Of two windows that are both scarce some slots wait for the other's: 0.897 to 0.928 over 24 seeds.
        assert!(used * 100 >= possible * 88, "{what}");
        // Calls of one window were asked for and have not arrived yet.
        let granted = used + group.min(api) as usize * 2;
        assert!(
            asked <= 2 * u64::try_from(granted).expect("a few"),
            "{what}"
        );
        assert!(each.iter().all(|own| own * gateways * 2 >= used), "{what}");
    }
}

#[test]
fn who_has_no_seat_should_have_turns_that_others_leave() {
    let plan = Plan {
        gateways: 3,
        group: (1, 400 * MS),
        callers: vec![vec![(0, 0); 3]; 3],
        ..two_of_three()
    };
    let mut run = Run::new(plan, 1);
    run.begin();
    let mut dead = Vec::new();
    run.apply(Failure::Killed(1), true, &mut dead);
    run.apply(Failure::Killed(2), true, &mut dead);
    run.run_until(run.at + SECOND * 5);
    // Nobody knows which of the two is gone for good.
    run.start(1);
    run.run_until(run.at + SECOND * 5);
    let before = run.outside.simulator.journal().len();
    run.run_until(run.at + SECOND * 30);
    let each = run.by_gateway(before);
    // A turn is every 1.5 s.
    assert!(
        each[0] + each[1] >= 18 && each[0] >= 8 && each[1] >= 8,
        "{each:?}"
    );
    // Who is cut off goes on with his turns.
    for _ in 0..5 {
        run.apply(Failure::Held(0), true, &mut dead);
        run.run_until(run.at + SECOND * 5);
        run.apply(Failure::Held(0), false, &mut dead);
        run.run_until(run.at + MS * 2_370);
    }
    run.judge(&"turns");
}

#[test]
fn what_others_use_of_a_quota_should_show_in_the_share_that_is_used() {
    let mut run = Run::new(two_of_three(), 1);
    run.begin();
    run.run_until(run.at + SECOND * 4);
    for gateway in &run.gateways {
        let core = gateway.core.as_ref().expect("it was started");
        let process = gateway.process.as_ref().expect("it was started");
        let _inside = process.runtime().enter();
        let used = core.lanes.quota.fullest(Some(QuotaClass::GroupAttributes));
        assert!((0.8..=1.0).contains(&used), "{used}");
    }
}

#[test]
fn a_window_that_is_made_longer_should_count_what_others_sent_before() {
    const LONGER: Duration = Duration::from_millis(1_500);
    // Slots of one gateway, when the other has its settings first; and a group that rests meanwhile.
    for between in [0, 200, 700] {
        let mut run = Run::new(two_of_three(), 1);
        run.begin();
        run.run_until(run.at + SECOND * 4);
        run.plan.group.1 = LONGER;
        let config = run.config();
        for number in [0, 1] {
            let gateway = &run.gateways[number];
            let core = gateway.core.as_ref().expect("it was started");
            let process = gateway.process.as_ref().expect("it was started");
            let inside = process.runtime().enter();
            core.lanes.quota.follow(&config);
            drop(inside);
            if number == 0 {
                run.run_until(run.at + between * MS);
            }
        }
        let base = run.outside.process.watch().base;
        let changed = base + run.at + 50 * MS;
        run.run_until(run.at + SECOND * 12);
        let times: Vec<_> = run
            .arrivals()
            .remove("group 88888888/g0")
            .expect("it was written to");
        let late = |at: &&Instant| **at > changed;
        for at in times.iter().filter(late) {
            let inside = times
                .iter()
                .filter(|other| *other <= at && *at - **other < LONGER);
            let inside = inside.count();
            assert!(
                inside <= 5,
                "{inside} calls {between} ms apart, at {:?}",
                *at - base
            );
        }
        let late = times.iter().filter(late).count();
        assert!(late >= 28, "{late} of 40");
    }
}

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderMap, StatusCode};
use proptest::{prelude::*, sample::Index};
use serde_json::Value;

use super::{model::Model, *};
use crate::{
    call::Reply,
    catalogue::{Action, message_extension},
    clock,
    lane::merge::{
        Fate, divide,
        tests::sample::{QUERY, attributes_body, extensions_body, replayed},
    },
};

/// What happens to a lane.
#[derive(Clone, Debug)]
enum Step {
    Push(Ask),
    /// One of those who wait.
    Leave(Index),
    /// With so many slots; of the commands, by their place in [`COMMANDS`], those are allowed.
    Take(u32, [bool; 5]),
}

#[derive(Clone, Debug)]
struct Ask {
    kind: usize,
    pairs: BTreeMap<usize, usize>,
    is_other_admin: bool,
    has_more: bool,
}

static COMMANDS: [&Command; 5] = [
    &group_attributes::SET,
    &group_attributes::MODIFY,
    &group_attributes::DELETE,
    &group_attributes::CLEAR,
    &message_extension::SET,
];

#[derive(Clone, Copy, Debug)]
enum Lane {
    Group(&'static str),
    Message,
}

impl Ask {
    fn call(&self, lane: Lane) -> Call {
        // Long values fill the 16,000 bytes of a merged call, short ones make room again.
        let values = ["", "x", "\u{e9}\"\\", &"v".repeat(900), &"w".repeat(2_500)];
        let of_extensions = matches!(lane, Lane::Message);
        let pairs: Vec<_> = self
            .pairs
            .iter()
            .map(|(key, value)| {
                let value = if of_extensions { value % 4 } else { *value };
                (format!("k{key}"), values[value])
            })
            .filter({
                let mut bytes = 0;
                move |(_, value)| {
                    bytes += value.len();
                    bytes <= 16_000
                }
            })
            .collect();
        let (command, mut body) = match lane {
            Lane::Group(group) => {
                let command = COMMANDS[[0, 1, 1, 1, 2, 3][self.kind]];
                (command, attributes_body(command, group, &pairs))
            }
            Lane::Message => {
                let operate = [1, 1, 1, 2, 2, 3][self.kind];
                (COMMANDS[4], extensions_body(1, operate, &pairs))
            }
        };
        if self.has_more {
            body["More"] = Value::from(1);
        }
        let admin = if self.is_other_admin { "root" } else { "admin" };
        let query = QUERY.replace("admin", admin);
        call_with(command, &query, &body.to_string(), Travels::Together)
    }
}

fn lane() -> impl Strategy<Value = Lane> {
    prop_oneof![
        Just(Lane::Group(GROUP)),
        Just(Lane::Group(COMMUNITY)),
        Just(Lane::Message),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    let value = prop_oneof![3 => 0..4_usize, 1 => Just(4)];
    let pairs = prop_oneof![
        5 => prop::collection::btree_map(0..24_usize, value.clone(), 1..4),
        1 => prop::collection::btree_map(0..24_usize, value, 1..=16),
    ];
    (
        0..6_usize,
        pairs,
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(kind, pairs, is_other_admin, has_more)| Ask {
            kind,
            pairs,
            is_other_admin,
            has_more,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let slots = prop_oneof![0..8_u32, 8..50_u32];
    let allowed = prop::array::uniform5(prop::bool::weighted(0.8));
    prop_oneof![
        6 => ask().prop_map(Step::Push),
        1 => any::<Index>().prop_map(Step::Leave),
        1 => (slots, allowed).prop_map(|(slots, allowed)| Step::Take(slots, allowed)),
    ]
}

/// A queue, the naive record of what is in it, and the API behind it.
struct Run {
    counting: Counting,
    queue: Queue<()>,
    /// Number, call and slots of each who waits.
    waiting: BTreeMap<u64, (Call, u32)>,
    /// Those among them whose call has already taken effect, though they were not told.
    untold: BTreeSet<u64>,
    model: Model,
    /// Everybody who was answered, in order: the batch in which he travelled last, his number,
    /// call and reply. One who left untold is here without a reply.
    answered: Vec<(usize, u64, Call, Option<Value>)>,
    batches: usize,
    /// Nobody has left, was put back or was parted from his neighbours: the promised number of
    /// batches is exact.
    is_exact: bool,
}

impl Run {
    fn new(counting: Counting) -> Run {
        Run {
            counting,
            queue: Queue::new(counting),
            waiting: BTreeMap::new(),
            untold: BTreeSet::new(),
            model: Model::default(),
            answered: Vec::new(),
            batches: 0,
            is_exact: true,
        }
    }

    fn step(&mut self, step: &Step, lane: Lane) {
        match step {
            Step::Push(ask) => {
                let call = ask.call(lane);
                let slots = match self.counting {
                    Counting::Calls => 1,
                    Counting::Pairs => call.pairs,
                };
                let number = self.queue.push(call.clone(), slots, ());
                assert!(self.waiting.insert(number, (call, slots)).is_none());
            }
            Step::Leave(who) if !self.waiting.is_empty() => {
                let numbers: Vec<u64> = self.waiting.keys().copied().collect();
                let number = *who.get(&numbers);
                let job = self.queue.leave(number).unwrap();
                let (call, slots) = self.waiting.remove(&number).unwrap();
                assert_eq!((&job.call.body, job.call.pairs), (&call.body, slots));
                if self.untold.contains(&number) {
                    self.answered.push((self.batches, number, call, None));
                }
                assert!(self.queue.leave(number).is_none());
                self.is_exact = false;
            }
            Step::Leave(_) => assert!(self.queue.leave(0).is_none()),
            Step::Take(max_slots, allowed) => {
                self.take(*max_slots, *allowed);
            }
        }
        self.check();
    }

    /// The longest prefix that may travel, found by trying each.
    fn longest(&self, max_slots: u32, allowed: [bool; 5]) -> Option<(usize, &'static Command)> {
        let mut best = None;
        let mut fold: Option<Fold> = None;
        let mut slots = 0;
        for (index, (call, weight)) in self.waiting.values().enumerate() {
            let joined = match &mut fold {
                None => {
                    fold = Some(Fold::start(call));
                    true
                }
                Some(fold) => fold.add(call),
            };
            slots = match self.counting {
                Counting::Pairs => slots + weight,
                Counting::Calls => *weight,
            };
            if !joined || slots > max_slots {
                break;
            }
            let command = fold.as_ref().unwrap().command();
            if is_allowed(allowed, command) {
                best = Some((index + 1, command));
            }
        }
        best
    }

    fn take(&mut self, max_slots: u32, allowed: [bool; 5]) -> bool {
        let expected = self.longest(max_slots, allowed);
        let plan = self
            .queue
            .plan(max_slots, |command| is_allowed(allowed, command));
        let found = plan.as_ref().map(|plan| (plan.length, plan.command.name));
        assert_eq!(
            found,
            expected.map(|(length, command)| (length, command.name))
        );
        let Some(plan) = plan else { return false };
        if Some(plan.length) != self.longest(u32::MAX, [true; 5]).map(|(length, _)| length) {
            self.is_exact = false;
        }
        let (length, command, pairs) = (plan.length, plan.command, plan.pairs);
        let batch = self.queue.take(plan);
        assert_eq!(batch.jobs.len(), length);
        assert!(std::ptr::eq(batch.command, command));
        assert_eq!(batch.fold.is_some(), length > 1);
        let each = batch.jobs.iter().map(|(_, job)| job.call.pairs);
        assert_eq!(pairs, each.sum::<u32>());
        assert!(self.counting == Counting::Calls || pairs <= max_slots);
        for (number, job) in &batch.jobs {
            let (first, (call, _)) = self.waiting.pop_first().unwrap();
            assert_eq!((first, &call.body), (*number, &job.call.body));
        }
        self.send(batch);
        true
    }

    /// What the worker does, with the model as the upstream.
    fn send(&mut self, batch: Batch<()>) {
        self.batches += 1;
        let body = match &batch.fold {
            Some(fold) => fold.body(),
            None => batch.jobs[0].1.call.body.clone(),
        };
        let (code, body) = self.model.apply(batch.command, &body);
        let reply = Reply {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: body.to_string().into(),
            code: Some(code),
            at: clock::now(),
        };
        let members: Vec<&Call> = batch.jobs.iter().map(|(_, job)| &job.call).collect();
        let fates = match members.len() {
            1 => vec![Fate::Reply(reply)],
            _ => divide(batch.command, &members, &reply),
        };
        assert_eq!(fates.len(), batch.jobs.len());
        for ((number, job), fate) in batch.jobs.into_iter().zip(fates) {
            match fate {
                Fate::Reply(reply) => {
                    let told = serde_json::from_slice(&reply.body).unwrap();
                    self.answered
                        .push((self.batches, number, job.call, Some(told)));
                }
                Fate::Again => {
                    let mut call = job.call.clone();
                    call.travels = Travels::Alone;
                    self.waiting.insert(number, (call, job.call.pairs));
                    if code == 0 {
                        self.untold.insert(number);
                    }
                    self.queue.put_back(number, job.call, ());
                    self.is_exact = false;
                }
            }
        }
    }

    fn check(&self) {
        let queue = &self.queue;
        assert_eq!(queue.calls(), self.waiting.len());
        assert_eq!(queue.is_empty(), self.waiting.is_empty());
        let bodies: Vec<_> = queue.iter().map(|job| &job.call.body).collect();
        let expected: Vec<_> = self.waiting.values().map(|(call, _)| &call.body).collect();
        assert_eq!(bodies, expected);
        let front = queue.front().map(|(number, _)| number);
        assert_eq!(
            front,
            self.waiting.first_key_value().map(|(number, _)| *number)
        );
        match self.counting {
            Counting::Calls => assert_eq!(queue.slots(), queue.batches()),
            Counting::Pairs => {
                let slots: u32 = self.waiting.values().map(|(_, slots)| slots).sum();
                assert_eq!(queue.slots(), slots);
            }
        }
        let (promised, real) = (queue.batches(), self.real_batches());
        if self.is_exact || real == 0 {
            assert_eq!(promised, real, "batches promised and made, nobody has left");
        }
        assert!(promised >= real, "{promised} batches promised, {real} made");
    }

    /// The batches that those who wait would make now, found by folding them.
    fn real_batches(&self) -> u32 {
        let mut batches = 0;
        let mut fold: Option<Fold> = None;
        for (call, _) in self.waiting.values() {
            if !fold.as_mut().is_some_and(|fold| fold.add(call)) {
                fold = Some(Fold::start(call));
                batches += 1;
            }
        }
        batches
    }

    /// The same calls one by one leave the same state, and nobody was told what is not so.
    fn compare(&self) {
        let mut by_number: BTreeMap<u64, _> = BTreeMap::new();
        for (batch, number, call, told) in &self.answered {
            let is_first = by_number.insert(*number, (*batch, call, told)).is_none();
            assert!(is_first, "{number} was answered twice");
        }
        let mut one_by_one = Model::default();
        let mut sequential = Vec::new();
        for (batch, call, told) in by_number.values() {
            let (_, reply) = one_by_one.apply(call.command, &call.body);
            sequential.push((*batch, *call, *told, reply));
        }
        assert_eq!(self.model, one_by_one);
        for (index, (batch, call, told, reply)) in sequential.iter().enumerate() {
            let is_overtaken = || {
                sequential[index + 1..].iter().any(|(other, later, ..)| {
                    let replaces = [Action::SetAttributes, Action::ClearAttributes];
                    other == batch && replaces.contains(&later.command.action)
                })
            };
            let Some(told) = told else { continue };
            let is_true =
                by_key(told) == by_key(reply) || (told["ErrorCode"] == 0 && is_overtaken());
            assert!(is_true, "told {told} of {call:?}, which does {reply}");
        }
    }
}

/// A reply with its pairs in the order of their keys: who travels alone gets them as they came.
fn by_key(reply: &Value) -> Value {
    let mut reply = reply.clone();
    if let Some(Value::Array(list)) = reply.get_mut("ExtensionList") {
        list.sort_by_key(|result| result["Extension"]["Key"].to_string());
    }
    reply
}

fn is_allowed(allowed: [bool; 5], command: &Command) -> bool {
    let place = COMMANDS
        .iter()
        .position(|known| std::ptr::eq(*known, command));
    allowed[place.unwrap()]
}

fn run(lane: Lane, counting: Counting, steps: &[Step]) {
    let mut run = Run::new(counting);
    for step in steps {
        run.step(step, lane);
    }
    while run.take(u32::MAX, [true; 5]) {
        run.check();
    }
    check_empty(&run.queue);
    run.compare();
}

proptest! {
    #![proptest_config(replayed(512))]

    #[test]
    fn merged_calls_should_leave_the_state_of_the_same_calls_one_by_one(
        lane in lane(),
        asks in prop::collection::vec(ask(), 0..24),
    ) {
        let steps: Vec<_> = asks.into_iter().map(Step::Push).collect();
        run(lane, Counting::Calls, &steps);
    }

    #[test]
    fn so_should_calls_with_leavers_few_slots_and_commands_that_must_wait(
        lane in lane(),
        counting in prop::sample::select(vec![Counting::Calls, Counting::Pairs]),
        steps in prop::collection::vec(step(), 0..48),
    ) {
        run(lane, counting, &steps);
    }
}

//! The loop of one lane: wait for a slot, merge as late as possible, send, answer everybody.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};

use super::{
    Lane, Lanes, Ticket,
    merge::{self, Fate},
    queue::{Batch, Job},
};
use crate::{
    call::{Call, Head},
    clock,
    quota::{permit::Permit, scopes::Scopes},
    sync::Mutex,
    trace::Span,
    upstream::{
        Outbound, meter,
        trip::{Answer, Seat, Trip},
    },
};

/// Serves `lane` until nobody waits in it.
pub(super) async fn run(lanes: Arc<Lanes>, lane: Arc<Lane>) {
    let _served = Served {
        lanes: &lanes,
        lane: &lane,
    };
    loop {
        let Some(scopes) = next(&lanes, &lane) else {
            if lanes.retire(&lane) {
                return;
            }
            continue;
        };
        let permit = tokio::select! {
            biased;
            // Whoever is first now may need fewer slots or another command.
            () = lane.front_left.notified() => continue,
            permit = meter::admit(&lanes.upstream.breaker, &scopes) => permit,
        };
        if let Some(outbound) = depart(&lanes, &lane, permit) {
            arrive(&lanes, &lane, outbound).await;
        }
    }
}

/// Says that the lane is served. If that ends by a panic, nobody is left waiting in it.
struct Served<'a> {
    lanes: &'a Lanes,
    lane: &'a Lane,
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.lanes.abandon(self.lane);
        }
    }
}

/// The windows that the front of the lane needs; `None` if nobody waits.
fn next(lanes: &Lanes, lane: &Lane) -> Option<Scopes> {
    let mut state = lane.lock();
    let (_, front) = state.queue.front()?;
    let (slots, pairs) = (lanes.slots(lane, &front.call), front.call.pairs);
    // What follows may turn it into another command; then the permit is switched. A store that
    // others share would have to be asked again, so there it is foreseen.
    let planned = lanes.quota.store.as_ref();
    let planned = planned.and_then(|_| state.queue.plan(u32::MAX, |_| true));
    let command = planned.map_or(front.call.command, |plan| plan.command);
    let command = lanes.command(lane, command);
    state.slots = slots.clone();
    let key = Some((slots, pairs));
    Some(Scopes { key, command })
}

/// Takes what may travel as one, now that there is a permit for it. `None` if there is nothing any
/// more that this permit allows.
fn depart(lanes: &Lanes, lane: &Lane, mut permit: Permit) -> Option<Arc<Outbound>> {
    let mut state = lane.lock();
    // Whoever is first now may be counted in another window than the one that was waited for.
    let front = state.queue.front();
    if let Some((_, front)) = front
        && lanes.quota.is_shared(lane.key.class)
        && !permit.is_of(&lanes.slots(lane, &front.call))
    {
        drop(state);
        permit.refund();
        return None;
    }
    let plan = state.queue.plan(permit.slots_within_reach(), |command| {
        permit.could_switch(&lanes.command(lane, command))
    });
    let plan = plan.filter(|plan| {
        permit.switch(&lanes.command(lane, plan.command)) && permit.grow(plan.pairs)
    });
    let Some(plan) = plan else {
        drop(state);
        permit.refund();
        return None;
    };
    let batch = state.queue.take(plan);
    let (head, body) = request(&batch);
    let scopes = permit.scopes().clone();
    let command = batch.command;
    let span = match &batch.jobs[..] {
        [(_, alone)] => alone.call.span.clone(),
        members => {
            let spans = members.iter().map(|(_, job)| &job.call.span);
            Span::merged(command.name, spans, clock::now())
        }
    };
    let seats = batch.jobs.into_iter().map(seat).collect();
    let trip = Arc::new(Trip::for_batch(seats, span));
    state.under_way = Some(trip.clone());
    drop(state);
    lanes.metrics.batch(command.name, trip.batch());
    Some(Arc::new(Outbound {
        command: Some(command),
        head,
        body,
        scopes,
        permit: Mutex::new(Some(permit)),
        trip,
    }))
}

/// Sends a batch and hands out what came back.
async fn arrive(lanes: &Lanes, lane: &Lane, outbound: Arc<Outbound>) {
    let trip = outbound.trip.clone();
    let sent = outbound.command.expect("a lane sends known commands only");
    let result = lanes.upstream.send(outbound).await;
    let seats = trip.take_seats();
    let facts = trip.facts();
    let fates = match &result {
        // Everybody who travelled counts, also those who have left since.
        Ok(reply) if trip.batch() > 1 => {
            let members: Vec<&Call> = seats.iter().map(|seat| &seat.call).collect();
            merge::divide(sent, &members, reply)
        }
        Ok(reply) => seats.iter().map(|_| Fate::Reply(reply.clone())).collect(),
        Err(_) => Vec::new(),
    };
    if trip.batch() > 1 {
        trip.span.end_merged(facts, &result, clock::now());
    }
    if let Err(failure) = &result {
        lanes.lament(lane, sent.name, &trip, failure);
    }
    let mut fates = fates.into_iter();
    let mut state = lane.state.lock();
    state.under_way = None;
    for seat in seats {
        let result = match (&result, fates.next()) {
            (Err(failure), _) => Err(failure.clone()),
            (Ok(_), Some(Fate::Reply(reply))) => Ok(reply),
            (Ok(_), Some(Fate::Again) | None) => {
                if !seat.answer.is_closed() {
                    seat.call.span.waits_again(clock::now());
                    let place = lanes
                        .room
                        .reenter(Some(lane.key.class), seat.call.body.len());
                    let ticket = Ticket {
                        answer: seat.answer,
                        _place: place,
                    };
                    state.queue.put_back(seat.number, seat.call, ticket);
                }
                continue;
            }
        };
        seat.hears(Answer { result, facts });
    }
}

fn seat((number, job): (u64, Job<Ticket>)) -> Seat {
    Seat {
        number,
        call: job.call,
        answer: job.ticket.answer,
    }
}

/// What goes upstream: one call alone as it came, several as a call of our own.
fn request<T>(batch: &Batch<T>) -> (Arc<Head>, Bytes) {
    let (_, first) = &batch.jobs[0];
    let Some(fold) = &batch.fold else {
        return (first.call.head.clone(), first.call.body.clone());
    };
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    // Whose credentials are those of all: others do not travel together.
    let head = first.call.head.for_path(batch.command.path, headers);
    (Arc::new(head), fold.body())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper_util::client::legacy::connect::HttpConnector;

    use super::*;
    use crate::{
        call::{QuotaClass, Travels},
        catalogue::group_attributes::{CLEAR, MODIFY, SET},
        config::Config,
        lane::Submitted,
        lane::merge::tests::sample::{QUERY, call_with},
        lane::queue::Queue,
        metrics::Metrics,
        quota::counting::Counting,
        serve::Core,
    };

    fn call() -> Call {
        let body = r#"{"GroupId":"g","GroupAttr":[{"key":"k","value":"v"}]}"#;
        let call = call_with(&SET, QUERY, body, Travels::Together);
        Call {
            deadline: clock::now() + Duration::from_secs(30),
            ..call
        }
    }

    #[test]
    fn calls_with_the_longest_targets_should_all_be_sent() {
        const LONGEST: usize = 65_534;
        let body = |command| match command {
            "clear_group_attr" => r#"{"GroupId":"g"}"#,
            _ => r#"{"GroupId":"g","GroupAttr":[{"key":"k","value":"v"}]}"#,
        };
        for first in [&SET, &MODIFY, &CLEAR] {
            for second in [&SET, &MODIFY, &CLEAR] {
                for short_of in [0, 1, 2, 3, 100] {
                    let query = |signature: &str, random: &str| {
                        let who = format!("sdkappid=1&identifier=a&usersig={signature}");
                        format!("{who}&random={random}&contenttype=json")
                    };
                    let fixed = first.path.len() + 1 + query("", "1234567").len();
                    let signature = "x".repeat(LONGEST - short_of - fixed);
                    let mut queue = Queue::new(Counting::Calls);
                    for (command, random) in [(first, "1234567"), (second, "1")] {
                        let (query, body) = (query(&signature, random), body(command.name));
                        let call = call_with(command, &query, body, Travels::Together);
                        queue.push(call, 1, ());
                    }
                    let mut sent = 0;
                    while let Some(plan) = queue.plan(1, |_| true) {
                        let batch = queue.take(plan);
                        let (head, _) = request(&batch);
                        assert!(head.target.as_str().len() <= LONGEST);
                        sent += batch.jobs.len();
                    }
                    assert_eq!(sent, 2);
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_should_be_left_waiting_in_a_lane_whose_task_panicked() {
        // The windows start as spent, so that the call waits.
        let core = Core::new(
            &Config::default(),
            HttpConnector::new(),
            Arc::new(Metrics::new()),
        );
        let lanes = core.lanes.clone();
        let waiting = tokio::spawn({
            let lanes = lanes.clone();
            async move {
                match lanes.submit(QuotaClass::GroupAttributes, call()) {
                    Ok(Submitted::Waits(mut waiting)) => waiting.answer().await,
                    _ => panic!("it has to wait"),
                }
            }
        });
        clock::sleep(Duration::from_millis(1)).await;
        let lane = lanes.live().pop().expect("somebody waits");
        let panicked = tokio::spawn({
            let (lanes, lane) = (lanes.clone(), lane.clone());
            async move {
                let _served = Served {
                    lanes: &lanes,
                    lane: &lane,
                };
                panic!("as a bug would");
            }
        });
        assert!(panicked.await.is_err());
        let answer = waiting.await.expect("the caller's task goes on");
        assert_eq!(answer.expect_err("no answer").refusal.code, 60008);
        assert!(lanes.live().is_empty());
    }
}

//! What a gateway may spend while it cannot reach the store. Pure: no clock, no task.
//!
//! Shares add up to the limit at most: everybody has `limit / replicas` slots, rounded down, and
//! what is left over goes to those with the highest seats, one slot each. Who has no seat, since he
//! never reached the store, has the rounded share.
//!
//! Where there are fewer slots than gateways no share is whole. Then they take turns on the
//! store's clock, as each remembers it: a cycle has a piece for each seat, a call leaves only at the
//! start of its seat's piece, and so many pieces as there are slots are longer than a window:
//!
//! ```text
//!   seat   0     1     2     0     1     2          limit 1, three gateways
//!          |-----|-----|-----|-----|-----|---->
//!          ^ a window and its slack
//! ```
//!
//! A call that is counted in two such windows leaves when it is its turn in both, which may never be.
//!
//! Who has no seat, since those who had them may still be there, has no turn. The store gives him turns of
//! those who are heard of: what they leave, and every other one if they leave none.
//!
//! The slack is for the delay of calls, for store round trips and for clocks that drift apart while
//! the store is away.

use std::time::Duration;

/// A gateway's number among those that share a store, from 0; `replicas` or more if there was none
/// left.
pub type Seat = u32;

/// The most that a cycle of turns is longer than it would be if calls took no time.
const SLACK: Duration = Duration::from_millis(250);

/// Slots of a window that whoever sits on `seat` has for himself; 0 if there are too few for shares.
pub fn slots(limit: u32, replicas: u32, seat: Option<Seat>) -> u32 {
    let share = limit / replicas;
    let left_over = limit % replicas;
    let has_more = seat.is_some_and(|seat| (replicas - left_over..replicas).contains(&seat));
    share + u32::from(share > 0 && has_more)
}

/// The time from one turn of a seat to the next; `period` is how long a slot is used for.
pub fn cycle(limit: u32, replicas: u32, period: Duration) -> Duration {
    piece(limit, period) * replicas
}

/// How long after `now`, on the store's clock, the next turn of `seat` comes; at once if it began
/// less than half the slack ago.
pub fn until_turn(
    now: Duration,
    limit: u32,
    replicas: u32,
    period: Duration,
    seat: Seat,
) -> Duration {
    let cycle = micros(cycle(limit, replicas, period));
    let start = micros(piece(limit, period)) * i128::from(seat);
    let since = (micros(now) - start).rem_euclid(cycle);
    if since < micros(slack(period) / 2) {
        return Duration::ZERO;
    }
    Duration::from_micros(u64::try_from(cycle - since).unwrap_or(u64::MAX))
}

/// To the microsecond what the store makes of it (`take.lua`): after so many cycles a difference of one
/// is another turn.
fn piece(limit: u32, period: Duration) -> Duration {
    let whole = micros(period) + micros(slack(period));
    let micros = whole + i128::from(limit) - 1;
    Duration::from_micros(u64::try_from(micros / i128::from(limit)).unwrap_or(u64::MAX))
}

fn slack(period: Duration) -> Duration {
    let quarter = u64::try_from(micros(period) / 4).unwrap_or(u64::MAX);
    SLACK.min(Duration::from_micros(quarter))
}

fn micros(duration: Duration) -> i128 {
    i128::try_from(duration.as_micros()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn shares_should_add_up_to_the_limit_and_be_as_even_as_can_be() {
        for limit in 1..=60 {
            for replicas in 1..=limit {
                let all: Vec<_> = (0..replicas)
                    .map(|seat| slots(limit, replicas, Some(seat)))
                    .collect();
                assert_eq!(all.iter().sum::<u32>(), limit);
                assert!(
                    all.is_sorted() && all.last().unwrap() - all[0] <= 1,
                    "{all:?}"
                );
                assert_eq!(all[0], limit / replicas, "the first has the rounded share");
                for seat in [None, Some(replicas), Some(replicas + 7)] {
                    assert_eq!(slots(limit, replicas, seat), limit / replicas);
                }
            }
        }
        assert_eq!(slots(5, 6, Some(5)), 0, "too few for shares");
    }

    #[test]
    fn turns_should_keep_the_limit_however_many_there_are() {
        for (limit, replicas) in [(1, 2), (1, 7), (3, 4), (5, 6), (5, 50)] {
            // Everybody sends at each of his turns, every other one as late as he may.
            let mut turns: Vec<u64> = Vec::new();
            for seat in 0..replicas {
                let mut now = 7 * SECOND;
                for n in 0..4 {
                    now += until_turn(now, limit, replicas, SECOND, seat);
                    let late = u64::from((n + seat) % 2) * 124_000;
                    turns.push(u64::try_from(now.as_micros()).unwrap() + late);
                    now += Duration::from_millis(125);
                }
            }
            turns.sort_unstable();
            // What is left of the slack is for the way.
            let window = 1_000_000 + 124_000;
            for from in &turns {
                let inside = turns
                    .iter()
                    .filter(|at| (*from..from + window).contains(at));
                let inside = u32::try_from(inside.count()).unwrap();
                assert!(inside <= limit, "{inside} of {limit} for {replicas}");
            }
        }
    }

    #[test]
    fn turns_should_be_those_of_the_store_also_for_odd_windows() {
        // (horizon + floor(horizon / 4)) / 1 of 434,086 us, as the script gets it.
        let odd = Duration::from_nanos(434_086_600);
        assert_eq!(cycle(1, 3, odd), Duration::from_micros(3 * 542_607));
        assert_eq!(cycle(4, 3, odd), Duration::from_micros(3 * 135_652));
    }

    #[test]
    fn a_turn_should_be_now_or_within_a_cycle() {
        let cycle = cycle(1, 3, SECOND);
        assert_eq!(cycle, Duration::from_millis(3_750));
        let short = Duration::from_millis(400);
        assert_eq!(super::cycle(1, 3, short), 3 * (short + short / 4));
        let wait = |now, seat| until_turn(now, 1, 3, SECOND, seat);
        assert_eq!(wait(cycle * 9, 0), Duration::ZERO);
        assert_eq!(wait(cycle * 9, 1), cycle / 3);
        let late = Duration::from_millis(125);
        assert_eq!(wait(cycle * 9 + late.mul_f32(0.99), 0), Duration::ZERO);
        assert_eq!(wait(cycle * 9 + late, 0) + late, cycle);
    }
}

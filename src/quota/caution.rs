//! How a quota is used after the upstream refused what our count had room for.
//!
//! There are two explanations, and both look the same at first:
//!
//! - The upstream counts in a way that forbids bursts, or counts a little more than a window. Then
//!   the whole class steps down: `exact`, `spaced`, `cautious`; and up again after ten quiet
//!   minutes.
//! - Somebody else spends the same quota. No known way of counting refuses `cautious`, so a refusal
//!   there means that: the key leaves him one more slot of each window, and asks for it back soon;
//!   and the class steps up again as soon as he is gone.
//!
//! A refusal of a call that was nearly alone in its window is neither: it only makes the key rest.
//!
//! Nothing here reads a clock: `now` comes in as an argument.

use std::time::Duration;

use crate::clock::Instant;

/// Quiet time after which a class steps up.
const QUIET: Duration = Duration::from_secs(600);
/// The same if the refusals came from another spender.
const QUIET_AFTER_ANOTHER: Duration = Duration::from_secs(35);
/// How long a key leaves a slot to another spender before it asks for it back. One refusal in this
/// time is the price of finding out that he is still there.
const LEFT_TO_ANOTHER: Duration = Duration::from_secs(25);

/// How calls are spread over a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Profile {
    /// N in a window, as soon as there is room.
    #[default]
    Exact,
    /// N in a window, one every window / N.
    Spaced,
    /// N - 1 in a window, one every window / (N - 1).
    Cautious,
}

impl Profile {
    /// Every profile, from the fastest.
    pub const ALL: [Profile; 3] = [Profile::Exact, Profile::Spaced, Profile::Cautious];

    /// The name in settings and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Exact => "exact",
            Profile::Spaced => "spaced",
            Profile::Cautious => "cautious",
        }
    }

    fn down(self) -> Option<Profile> {
        match self {
            Profile::Exact => Some(Profile::Spaced),
            Profile::Spaced => Some(Profile::Cautious),
            Profile::Cautious => None,
        }
    }

    fn up(self) -> Option<Profile> {
        match self {
            Profile::Exact => None,
            Profile::Spaced => Some(Profile::Exact),
            Profile::Cautious => Some(Profile::Spaced),
        }
    }
}

/// The profile of a class of quotas, and why it is in force.
#[derive(Clone, Debug, Default)]
pub struct Stepping {
    profile: Profile,
    /// The profile of the settings: it never steps up beyond it.
    fastest: Profile,
    /// When the profile last changed, and when the last refusal came.
    changed_at: Option<Instant>,
    refused_at: Option<Instant>,
    another_spends: bool,
}

/// What a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// The call was sent before the last step: it says nothing about the profile in force.
    Late,
    /// The class steps down to this.
    StepDown(Profile),
    /// Somebody else spends the quota of this key.
    AnotherSpends,
}

impl Stepping {
    /// Starts with `profile`.
    pub fn new(profile: Profile) -> Stepping {
        Stepping {
            profile,
            fastest: profile,
            ..Stepping::default()
        }
    }

    /// The profile in force.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// From now on the settings say `fastest`: in force at once unless the class has stepped down
    /// below it.
    pub fn set_fastest(&mut self, fastest: Profile, now: Instant) {
        let has_stepped_down = self.profile != self.fastest;
        let profile = if has_stepped_down {
            self.profile.max(fastest)
        } else {
            fastest
        };
        if self.profile != profile {
            self.profile = profile;
            self.changed_at = Some(now);
        }
        self.fastest = fastest;
    }

    /// The last refusal.
    pub fn refused_at(&self) -> Option<Instant> {
        self.refused_at
    }

    /// Refusals under `cautious` said that another spends the same quota.
    pub fn another_spends(&self) -> bool {
        self.another_spends
    }

    /// A call that was sent at `sent_at` was refused.
    pub fn refused(&mut self, sent_at: Instant, now: Instant) -> Consequence {
        self.refused_at = Some(now);
        if self
            .changed_at
            .is_some_and(|changed_at| sent_at < changed_at)
        {
            return Consequence::Late;
        }
        match self.profile.down() {
            Some(profile) => {
                self.profile = profile;
                self.changed_at = Some(now);
                Consequence::StepDown(profile)
            }
            None => {
                self.another_spends = true;
                Consequence::AnotherSpends
            }
        }
    }

    /// A refusal has another explanation than the profile: calls that were sent before it say nothing
    /// about the profile either.
    pub fn explained(&mut self, now: Instant) {
        self.refused_at = Some(now);
        self.changed_at = Some(now);
    }

    /// Steps up after a quiet time; the new profile if it does.
    pub fn step_up(&mut self, now: Instant) -> Option<Profile> {
        let quiet = if self.another_spends {
            QUIET_AFTER_ANOTHER
        } else {
            QUIET
        };
        let since = self.refused_at.max(self.changed_at)?;
        if now - since < quiet {
            return None;
        }
        self.profile = self
            .profile
            .up()
            .filter(|&profile| profile >= self.fastest)?;
        self.changed_at = Some(now);
        if self.profile == self.fastest {
            self.another_spends = false;
        }
        Some(self.profile)
    }
}

/// Whether a call was refused beside so few `others` of ours in its window that no way of counting
/// explains it: then the key rests, and nothing is learnt about how the upstream counts.
pub fn is_nearly_alone(others: u32, limit: u32) -> bool {
    others < 2 && limit > 2
}

/// What one key leaves to another spender.
#[derive(Clone, Copy, Debug, Default)]
pub struct Left {
    slots: u32,
    changed_at: Option<Instant>,
}

impl Left {
    /// A call that was sent at `sent_at` was refused because of him: one more slot is left.
    pub fn refused(&mut self, sent_at: Instant, now: Instant) {
        if self
            .changed_at
            .is_none_or(|changed_at| sent_at >= changed_at)
        {
            self.slots += 1;
            self.changed_at = Some(now);
        }
    }

    /// Slots of each window that are his, one less after each quiet time.
    pub fn slots(&mut self, now: Instant) -> u32 {
        while self.slots > 0
            && let Some(changed_at) = self.changed_at
            && now - changed_at >= LEFT_TO_ANOTHER
        {
            self.slots -= 1;
            self.changed_at = Some(changed_at + LEFT_TO_ANOTHER);
        }
        self.slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_class_should_step_down_once_for_each_refusal_under_the_profile_in_force() {
        let now = clock::now();
        let mut stepping = Stepping::default();
        assert_eq!(
            stepping.refused(now, now + SECOND),
            Consequence::StepDown(Profile::Spaced)
        );
        // On its way when the first refusal came.
        assert_eq!(stepping.refused(now, now + SECOND), Consequence::Late);
        let later = now + 2 * SECOND;
        assert_eq!(
            stepping.refused(later, later),
            Consequence::StepDown(Profile::Cautious)
        );
        assert_eq!(
            stepping.refused(later + SECOND, later + SECOND),
            Consequence::AnotherSpends
        );
        assert_eq!(stepping.profile(), Profile::Cautious);
    }

    #[test]
    fn a_call_sent_at_the_moment_of_a_step_should_count_as_sent_after_it() {
        let now = clock::now();
        let mut stepping = Stepping::default();
        assert_eq!(stepping.refused_at(), None);
        stepping.refused(now - SECOND, now);
        let before = now - Duration::from_nanos(1);
        assert_eq!(stepping.refused(before, now + SECOND), Consequence::Late);
        assert_eq!(stepping.refused_at(), Some(now + SECOND), "late or not");
        assert_eq!(
            stepping.refused(now, now + 2 * SECOND),
            Consequence::StepDown(Profile::Cautious)
        );
    }

    #[test]
    fn profiles_should_have_the_names_of_the_settings() {
        let names = Profile::ALL.map(Profile::name);
        assert_eq!(names, ["exact", "spaced", "cautious"]);
    }

    #[test]
    fn a_class_should_step_up_after_ten_quiet_minutes() {
        let start = clock::now();
        let mut stepping = Stepping::default();
        assert_eq!(
            stepping.step_up(start + 10 * QUIET),
            None,
            "nothing to step up from"
        );
        stepping.refused(start, start);
        stepping.refused(start + SECOND, start + SECOND);
        let at = start + SECOND + QUIET;
        assert_eq!(stepping.step_up(at - Duration::from_nanos(1)), None);
        assert_eq!(stepping.step_up(at), Some(Profile::Spaced));
        assert_eq!(stepping.step_up(at), None, "one step at a time");
        assert_eq!(stepping.step_up(at + QUIET), Some(Profile::Exact));
    }

    #[test]
    fn a_class_should_step_up_soon_when_another_spender_is_gone() {
        let start = clock::now();
        let mut stepping = Stepping::default();
        for n in 0..3 {
            stepping.refused(start + n * SECOND, start + n * SECOND);
        }
        assert!(stepping.another_spends());
        let at = start + 2 * SECOND + QUIET_AFTER_ANOTHER;
        assert_eq!(stepping.step_up(at), Some(Profile::Spaced));
        assert_eq!(
            stepping.step_up(at + QUIET_AFTER_ANOTHER),
            Some(Profile::Exact)
        );
        assert!(!stepping.another_spends());
    }

    #[test]
    fn one_or_two_calls_of_a_larger_limit_should_be_nearly_alone() {
        assert!(is_nearly_alone(0, 5) && is_nearly_alone(1, 5));
        assert!(!is_nearly_alone(2, 5) && !is_nearly_alone(0, 2) && !is_nearly_alone(0, 1));
    }

    #[test]
    fn a_class_should_not_step_up_beyond_its_setting() {
        let start = clock::now();
        let mut stepping = Stepping::new(Profile::Spaced);
        assert_eq!(
            stepping.refused(start, start),
            Consequence::StepDown(Profile::Cautious)
        );
        assert_eq!(stepping.step_up(start + QUIET), Some(Profile::Spaced));
        assert_eq!(stepping.step_up(start + 10 * QUIET), None);
    }

    #[test]
    fn a_class_should_follow_its_setting_unless_it_has_stepped_down_below() {
        let now = clock::now();
        let mut stepping = Stepping::default();
        stepping.set_fastest(Profile::Spaced, now);
        assert_eq!(stepping.profile(), Profile::Spaced);
        stepping.set_fastest(Profile::Exact, now);
        assert_eq!(stepping.profile(), Profile::Exact);
        stepping.refused(now, now);
        stepping.refused(now, now);
        assert_eq!(stepping.profile(), Profile::Cautious);
        for fastest in [Profile::Exact, Profile::Spaced] {
            stepping.set_fastest(fastest, now);
            assert_eq!(stepping.profile(), Profile::Cautious, "the upstream's word");
        }
        assert_eq!(stepping.step_up(now + QUIET), Some(Profile::Spaced));
        assert_eq!(stepping.step_up(now + 9 * QUIET), None);
        let mut stepping = Stepping::default();
        stepping.refused(now, now);
        stepping.set_fastest(Profile::Cautious, now);
        assert_eq!(stepping.profile(), Profile::Cautious, "the setting's word");
    }

    #[test]
    fn a_call_sent_before_the_setting_changed_should_say_nothing_about_it() {
        let now = clock::now();
        let before = now - SECOND;
        let mut stepping = Stepping::default();
        stepping.set_fastest(Profile::Spaced, now);
        assert_eq!(stepping.refused(before, now), Consequence::Late);
        // The same setting again is no change.
        let mut stepping = Stepping::default();
        stepping.set_fastest(Profile::Exact, now);
        let down = Consequence::StepDown(Profile::Spaced);
        assert_eq!(stepping.refused(before, now), down);
    }

    #[test]
    fn calls_sent_before_an_explained_refusal_should_say_nothing_about_the_profile() {
        let now = clock::now();
        let mut stepping = Stepping::default();
        stepping.explained(now);
        assert_eq!(stepping.refused_at(), Some(now));
        assert_eq!(stepping.refused(now - SECOND, now), Consequence::Late);
        let down = Consequence::StepDown(Profile::Spaced);
        assert_eq!(stepping.refused(now, now), down);
    }

    #[test]
    fn a_key_should_leave_a_slot_for_each_refusal_and_ask_for_it_back() {
        let start = clock::now();
        let mut left = Left::default();
        assert_eq!(left.slots(start), 0);
        left.refused(start, start);
        left.refused(start - SECOND, start + SECOND);
        assert_eq!(
            left.slots(start),
            1,
            "the second was sent before the first was left"
        );
        left.refused(start + SECOND, start + SECOND);
        assert_eq!(left.slots(start + SECOND), 2);
        assert_eq!(left.slots(start + SECOND + LEFT_TO_ANOTHER), 1);
        assert_eq!(left.slots(start + SECOND + 2 * LEFT_TO_ANOTHER), 0);
        assert_eq!(left.slots(start + 100 * LEFT_TO_ANOTHER), 0);
    }
}

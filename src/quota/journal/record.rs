//! What is written about windows, and how: a header, then records of one length.
//!
//! ```text
//! chat-gateway windows 1\n
//! event 1 | class 1 | slots 4 | time 8 | window 16 | CRC-32 of these 4      34 bytes, little endian
//! ```
//!
//! A window is named by a hash of whose it is: group ids are callers' words, and the file neither
//! repeats nor has to bound them. Since every record has the same length, a damaged one hides none
//! that follow it.

use sha2::{Digest as _, Sha256};

use crate::call::{LaneKey, QuotaClass};

/// How a file of ours begins.
pub const HEADER: &[u8] = b"chat-gateway windows 1\n";

/// The bytes of a record.
pub const LENGTH: usize = 34;

/// The bytes that the checksum covers.
const CHECKED: usize = LENGTH - 4;

/// Microseconds since 1970, on the clock of the file.
pub type Micros = i64;

/// Which settings limit a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WindowClass {
    /// Those of the attributes of groups.
    GroupAttributes,
    /// Those of the extensions of messages.
    MessageExtension,
    /// Those of a quota that rules name, whose name hashes to this.
    Ruled(u8),
    /// Those of commands.
    Command,
}

/// A window, as the file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowId {
    /// Which settings limit it.
    pub class: WindowClass,
    /// Whose it is, hashed: 128 bits, so that nobody finds two with the same.
    pub digest: [u8; 16],
}

/// What became of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An attempt holds them; written before it leaves.
    Taken,
    /// The reply came: they cool.
    Replied,
    /// The connection was given up: they cool, and longer.
    Lost,
    /// Nothing was sent: they are free.
    Refunded,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Something became of slots.
    Slots {
        /// What.
        event: Event,
        /// Of which window.
        window: WindowId,
        /// How many; of message extensions the pairs of the call, whatever is counted.
        slots: u32,
        /// When.
        at: Micros,
    },
    /// The wall clock was moved: all times before this record are to be read as so much later.
    Clock {
        /// By how much; negative if it was set back.
        by: Micros,
    },
    /// The upstream was seen to count the pairs of message extensions.
    CountsPairs,
    /// From now on up to so many slots of each window of a class are taken before they are written
    /// down; 0: none is.
    Unwritten {
        /// Which windows.
        class: WindowClass,
        /// How many.
        slots: u32,
    },
    /// A process was killed while slots were unwritten: of each window of a class so many may have
    /// been lost with it.
    Missing {
        /// Which windows.
        class: WindowClass,
        /// How many.
        slots: u32,
        /// When its connections were closed, at the latest.
        at: Micros,
    },
}

impl WindowId {
    /// The window of a key.
    pub fn of_key(key: &LaneKey) -> WindowId {
        let target = &key.target;
        let message = target.message.map(i128::to_le_bytes);
        let class = WindowClass::of_keys(key.class);
        match key.class {
            // Two quotas may have the same code.
            QuotaClass::Ruled(quota) => {
                let name = format!("{quota} {}", target.group);
                WindowId::new(class, Some(target.app), message, &name)
            }
            _ => WindowId::new(class, Some(target.app), message, &target.group),
        }
    }

    /// The window of the command at `path` in `app`.
    pub fn of_command(path: &str, app: Option<u64>) -> WindowId {
        WindowId::new(WindowClass::Command, app, None, path)
    }

    fn new(
        class: WindowClass,
        app: Option<u64>,
        message: Option<[u8; 16]>,
        name: &str,
    ) -> WindowId {
        // Parts of fixed length come first, so that no two windows hash the same bytes.
        let hash = Sha256::new()
            .chain_update([
                class.code(),
                u8::from(app.is_some()),
                u8::from(message.is_some()),
            ])
            .chain_update(app.unwrap_or_default().to_le_bytes())
            .chain_update(message.unwrap_or_default())
            .chain_update(name)
            .finalize();
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash[..16]);
        WindowId { class, digest }
    }
}

impl WindowClass {
    /// That of a class of keys.
    pub fn of_keys(class: QuotaClass) -> WindowClass {
        match class {
            QuotaClass::GroupAttributes => WindowClass::GroupAttributes,
            QuotaClass::MessageExtension => WindowClass::MessageExtension,
            QuotaClass::Ruled(quota) => {
                let hash = Sha256::digest(quota);
                WindowClass::Ruled(hash[0].max(RULED))
            }
        }
    }

    fn code(self) -> u8 {
        match self {
            WindowClass::GroupAttributes => 1,
            WindowClass::MessageExtension => 2,
            WindowClass::Command => 3,
            WindowClass::Ruled(code) => code,
        }
    }

    fn of(code: u8) -> Option<WindowClass> {
        Some(match code {
            1 => WindowClass::GroupAttributes,
            2 => WindowClass::MessageExtension,
            3 => WindowClass::Command,
            RULED.. => WindowClass::Ruled(code),
            _ => return None,
        })
    }
}

impl Event {
    fn code(self) -> u8 {
        match self {
            Event::Taken => 1,
            Event::Replied => 2,
            Event::Lost => 3,
            Event::Refunded => 4,
        }
    }

    fn of(code: u8) -> Option<Event> {
        Some(match code {
            1 => Event::Taken,
            2 => Event::Replied,
            3 => Event::Lost,
            4 => Event::Refunded,
            _ => return None,
        })
    }
}

/// The lowest code of a quota that rules name.
const RULED: u8 = 16;

/// The event of [`Record::Clock`].
const CLOCK: u8 = 5;
/// The event of [`Record::CountsPairs`].
const COUNTS_PAIRS: u8 = 6;
/// The event of [`Record::Unwritten`].
const UNWRITTEN: u8 = 7;
/// The event of [`Record::Missing`].
const MISSING: u8 = 8;

impl Record {
    /// Its bytes.
    pub fn encode(&self) -> [u8; LENGTH] {
        let (event, class, slots, time, digest) = match *self {
            Record::Slots {
                event,
                window,
                slots,
                at,
            } => (event.code(), window.class.code(), slots, at, window.digest),
            Record::Clock { by } => (CLOCK, 0, 0, by, [0; 16]),
            Record::CountsPairs => (COUNTS_PAIRS, 0, 0, 0, [0; 16]),
            Record::Unwritten { class, slots } => (UNWRITTEN, class.code(), slots, 0, [0; 16]),
            Record::Missing { class, slots, at } => (MISSING, class.code(), slots, at, [0; 16]),
        };
        let mut bytes = [0; LENGTH];
        bytes[0] = event;
        bytes[1] = class;
        bytes[2..6].copy_from_slice(&slots.to_le_bytes());
        bytes[6..14].copy_from_slice(&time.to_le_bytes());
        bytes[14..CHECKED].copy_from_slice(&digest);
        let checksum = crc32fast::hash(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The record that these bytes are, unless they are damaged.
    pub fn decode(bytes: &[u8; LENGTH]) -> Option<Record> {
        let checksum = u32::from_le_bytes(part(bytes, CHECKED));
        if crc32fast::hash(&bytes[..CHECKED]) != checksum {
            return None;
        }
        let slots = u32::from_le_bytes(part(bytes, 2));
        let at = i64::from_le_bytes(part(bytes, 6));
        match bytes[0] {
            CLOCK => return Some(Record::Clock { by: at }),
            COUNTS_PAIRS => return Some(Record::CountsPairs),
            _ => {}
        }
        let class = WindowClass::of(bytes[1])?;
        Some(match bytes[0] {
            UNWRITTEN => Record::Unwritten { class, slots },
            MISSING => Record::Missing { class, slots, at },
            event => Record::Slots {
                event: Event::of(event)?,
                window: WindowId {
                    class,
                    digest: part(bytes, 14),
                },
                slots,
                at,
            },
        })
    }
}

fn part<const N: usize>(bytes: &[u8; LENGTH], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::call::Target;

    const EVENTS: [Event; 4] = [Event::Taken, Event::Replied, Event::Lost, Event::Refunded];
    fn classes() -> [WindowClass; 4] {
        [
            WindowClass::GroupAttributes,
            WindowClass::MessageExtension,
            WindowClass::of_keys(QuotaClass::Ruled("q")),
            WindowClass::Command,
        ]
    }

    fn record() -> impl Strategy<Value = Record> {
        let slots = (0..4_usize, 0..3_usize, any::<(u32, Micros, [u8; 16])>());
        let slots = slots.prop_map(|(event, class, (slots, at, digest))| Record::Slots {
            event: EVENTS[event],
            window: WindowId {
                class: classes()[class],
                digest,
            },
            slots,
            at,
        });
        let of_class = (0..4_usize, any::<(u32, Micros)>(), any::<bool>());
        let of_class = of_class.prop_map(|(class, (slots, at), missing)| {
            let class = classes()[class];
            if missing {
                Record::Missing { class, slots, at }
            } else {
                Record::Unwritten { class, slots }
            }
        });
        let clock = any::<Micros>().prop_map(|by| Record::Clock { by });
        prop_oneof![slots, of_class, clock, Just(Record::CountsPairs)]
    }

    proptest! {
        #[test]
        fn a_record_should_be_read_as_it_was_written(record in record()) {
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn a_record_with_a_flipped_byte_should_not_be_read(
            record in record(),
            at in 0..LENGTH,
            flip in 1..=u8::MAX,
        ) {
            let mut bytes = record.encode();
            bytes[at] ^= flip;
            prop_assert_eq!(Record::decode(&bytes), None);
        }
    }

    #[test]
    fn bytes_that_a_file_system_left_empty_should_not_be_a_record() {
        assert_eq!(Record::decode(&[0; LENGTH]), None);
        assert_eq!(Record::decode(&[0xff; LENGTH]), None);
    }

    /// Two quotas whose windows have the same class.
    pub(in super::super) fn of_one_code() -> [&'static str; 2] {
        let mut of_code = HashMap::new();
        let same = (0..).find_map(|n: u32| {
            let name: &'static str = Box::leak(n.to_string().into_boxed_str());
            let code = WindowClass::of_keys(QuotaClass::Ruled(name)).code();
            of_code.insert(code, name).map(|other| [name, other])
        });
        same.unwrap()
    }

    #[test]
    fn different_windows_should_have_different_names() {
        let key = |class, app, group: &str, message| {
            WindowId::of_key(&LaneKey {
                class,
                target: Target {
                    app,
                    group: group.into(),
                    message,
                },
            })
        };
        let (attributes, extension) = (QuotaClass::GroupAttributes, QuotaClass::MessageExtension);
        let rules = of_one_code().map(|quota| key(QuotaClass::Ruled(quota), 1, "g", None));
        assert_ne!(rules[0].digest, rules[1].digest);
        let all = [
            key(attributes, 1, "g", None),
            key(attributes, 2, "g", None),
            key(attributes, 1, "", None),
            key(attributes, 1, "\0g", None),
            key(extension, 1, "g", None),
            key(extension, 1, "g", Some(0)),
            key(extension, 1, "g", Some(-1)),
            key(extension, 1, &"g".repeat(100_000), Some(1)),
            WindowId::of_command("g", Some(1)),
            WindowId::of_command("g", Some(0)),
            WindowId::of_command("g", None),
        ];
        let names: HashSet<_> = all.iter().map(|window| window.digest).collect();
        assert_eq!(names.len(), all.len());
        assert_eq!(all[0], key(attributes, 1, "g", None));
    }
}

//! How a log line or a span names a group or a message.

use sha2::{Digest as _, Sha256};

use crate::{call::Target, config::LogIds};

/// Hex digits of a hash: enough to tell 100,000 keys apart, in a line that can still be read.
const DIGITS: usize = 12;

/// `sdkappid/group`, with `/msg_seq` for a message.
pub fn plain(target: &Target) -> String {
    let Target { app, group, .. } = target;
    match target.message {
        Some(message) => format!("{app}/{group}/{message}"),
        None => format!("{app}/{group}"),
    }
}

/// The start of the SHA-256 of [`plain`], which an operator can compute himself:
/// `printf %s '88888888/@TGS#room' | sha256sum | cut -c1-12`.
pub fn hashed(target: &Target) -> String {
    let digest = Sha256::digest(plain(target));
    let hex = digest.iter().map(|byte| format!("{byte:02x}"));
    hex.take(DIGITS / 2).collect()
}

/// What the settings allow to be shown of `target`.
pub fn shown(ids: LogIds, target: &Target) -> String {
    match ids {
        LogIds::Plain => plain(target),
        LogIds::Hashed => hashed(target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_should_be_what_sha256sum_prints() {
        let mut target = Target {
            app: 88_888_888,
            group: "@TGS#room".into(),
            message: None,
        };
        assert_eq!(shown(LogIds::Plain, &target), "88888888/@TGS#room");
        // printf %s '88888888/@TGS#room' | sha256sum
        assert_eq!(shown(LogIds::Hashed, &target), "ee95317bf9ae");
        target.message = Some(158);
        assert_eq!(shown(LogIds::Plain, &target), "88888888/@TGS#room/158");
        assert_eq!(shown(LogIds::Hashed, &target), "8dcb0506d99c");
    }
}

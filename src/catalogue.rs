//! The commands that the gateway knows, as data: path, limits of the body, quota, how they merge
//! and whether they may be repeated.
//!
//! Each family of commands is a file with a table per command; [`find`] is the only look-up. What
//! is not here passes through unchanged.

pub mod group_attributes;
pub mod message_extension;
pub mod rules;

use crate::call::QuotaClass;
use rules::Field;

/// One command of the API.
#[derive(Debug)]
pub struct Command {
    /// Its name: the last part of the path, and the `command` label of the metrics.
    pub name: &'static str,
    /// The whole path, compared byte for byte.
    pub path: &'static str,
    /// What it does, and so how it merges.
    pub action: Action,
    /// The documented fields of its body.
    pub body: &'static [Field],
    /// Whether it may be sent again when nobody knows if it took effect.
    pub repeat: Repeat,
}

/// What a command does with the state of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Replaces all attributes of a group.
    SetAttributes,
    /// Adds and updates attributes of a group.
    ModifyAttributes,
    /// Removes attributes of a group; a missing one is an error.
    DeleteAttributes,
    /// Removes all attributes of a group.
    ClearAttributes,
    /// Sets, deletes or clears extensions of a message; `OperateType` says which.
    WriteExtensions,
    /// Changes nothing: identical ones in flight share one call.
    Read,
    /// Nobody knows; a rule of the settings gives it the quota of this name.
    Ruled(&'static str),
}

impl Action {
    /// The quota that counts it beside the API-wide one.
    pub fn quota(self) -> Option<QuotaClass> {
        match self {
            Action::SetAttributes
            | Action::ModifyAttributes
            | Action::DeleteAttributes
            | Action::ClearAttributes => Some(QuotaClass::GroupAttributes),
            Action::WriteExtensions => Some(QuotaClass::MessageExtension),
            Action::Read => None,
            Action::Ruled(quota) => Some(QuotaClass::Ruled(quota)),
        }
    }
}

/// Whether a command may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Twice leaves the same state as once, so an unknown outcome may be tried again.
    LeavesSameState,
    /// Only while nothing of it was written to a socket.
    OnlyUnsent,
}

/// Every known command, sorted by path.
pub static COMMANDS: [&Command; 7] = [
    &group_attributes::GET,
    &group_attributes::CLEAR,
    &group_attributes::DELETE,
    &group_attributes::MODIFY,
    &group_attributes::SET,
    &message_extension::GET,
    &message_extension::SET,
];

/// The label of every command that is not in the catalogue.
pub const OTHER: &str = "other";

/// The command with exactly this path.
pub fn find(path: &str) -> Option<&'static Command> {
    COMMANDS
        .iter()
        .find(|command| command.path == path)
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_should_be_unique_sorted_and_end_in_the_name() {
        let paths: Vec<_> = COMMANDS.iter().map(|command| command.path).collect();
        assert!(paths.is_sorted_by(|a, b| a < b), "{paths:?}");
        for command in COMMANDS {
            assert!(command.path.ends_with(&format!("/{}", command.name)));
            assert!(std::ptr::eq(find(command.path).unwrap(), command));
        }
    }

    #[test]
    fn near_paths_should_be_unknown() {
        for path in [
            "/v4/group_open_http_svc/get_group_attr",
            "/v4/group_open_http_svc/set_group_attr/",
            "/v4//group_open_http_svc/set_group_attr",
            "/v4/group_open_http_svc/set%5Fgroup_attr",
            "/V4/group_open_http_svc/set_group_attr",
            "/v4/openim_msg_ext_http_svc/set_key_values",
        ] {
            assert!(find(path).is_none(), "{path}");
        }
    }
}

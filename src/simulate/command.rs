//! Which command a path names.

use super::answer::Refusal;

/// A command that the simulator executes, or `Other`, which it only counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    SetAttributes,
    ModifyAttributes,
    DeleteAttributes,
    ClearAttributes,
    GetAttributes,
    SetGroupExtensions,
    GetGroupExtensions,
    SetExtensions,
    GetExtensions,
    Other,
}

/// How every command's path begins.
pub(super) const PREFIX: &str = "/v4/";

const KNOWN: [(&str, &str, Command); 9] = [
    (
        "group_open_http_svc",
        "set_group_attr",
        Command::SetAttributes,
    ),
    (
        "group_open_http_svc",
        "modify_group_attr",
        Command::ModifyAttributes,
    ),
    (
        "group_open_http_svc",
        "delete_group_attr",
        Command::DeleteAttributes,
    ),
    (
        "group_open_http_svc",
        "clear_group_attr",
        Command::ClearAttributes,
    ),
    (
        "group_open_attr_http_svc",
        "get_group_attr",
        Command::GetAttributes,
    ),
    (
        "openim_msg_ext_http_svc",
        "group_set_key_values",
        Command::SetGroupExtensions,
    ),
    (
        "openim_msg_ext_http_svc",
        "group_get_key_values",
        Command::GetGroupExtensions,
    ),
    (
        "openim_msg_ext_http_svc",
        "set_key_values",
        Command::SetExtensions,
    ),
    (
        "openim_msg_ext_http_svc",
        "get_key_values",
        Command::GetExtensions,
    ),
];

impl Command {
    /// The command of a path under [`PREFIX`], and its name.
    ///
    /// 60009 for a path that is not a service and a command, for a known command under the wrong
    /// service (`get_group_attr` has a service of its own), and for an unknown command of a service
    /// all of whose commands are known. `group_open_http_svc` has many more commands than are
    /// executed here, so there the unknown ones are served.
    pub(super) fn find(path: &str) -> Result<(Self, &str), Refusal> {
        let no_such = || Refusal::new(60009, format!("there is no command {path}"));
        let (service, name) = path
            .strip_prefix(PREFIX)
            .and_then(|path| path.split_once('/'))
            .ok_or_else(no_such)?;
        if service.is_empty() || name.is_empty() || name.contains('/') {
            return Err(no_such());
        }
        if let Some(&(_, _, command)) = KNOWN.iter().find(|row| (row.0, row.1) == (service, name)) {
            return Ok((command, name));
        }
        let misplaced = KNOWN.iter().any(|row| row.1 == name);
        let complete = ["group_open_attr_http_svc", "openim_msg_ext_http_svc"].contains(&service);
        if misplaced || complete {
            return Err(no_such());
        }
        Ok((Self::Other, name))
    }

    /// Whether the command changes anything.
    pub(super) fn writes(self) -> bool {
        matches!(
            self,
            Self::SetAttributes
                | Self::ModifyAttributes
                | Self::DeleteAttributes
                | Self::ClearAttributes
                | Self::SetGroupExtensions
                | Self::SetExtensions
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_path_should_be_found_by_its_name() {
        for (service, name, command) in KNOWN {
            let path = format!("/v4/{service}/{name}");
            assert_eq!(Command::find(&path), Ok((command, name)));
        }
    }

    #[test]
    fn other_commands_should_be_served_unless_the_service_is_fully_known() {
        for path in ["/v4/group_open_http_svc/create_group", "/v4/openim/sendmsg"] {
            assert_eq!(Command::find(path).unwrap().0, Command::Other, "{path}");
        }
        for path in [
            "/v4/group_open_attr_http_svc/set_group_attr",
            "/v4/group_open_http_svc/get_group_attr",
            "/v4/openim_msg_ext_http_svc/group_clear_key_values",
            "/v4/group_open_http_svc/",
            "/v4/group_open_http_svc",
            "/v4/group_open_http_svc/set_group_attr/",
            "/v4//set_group_attr",
        ] {
            assert_eq!(Command::find(path).unwrap_err().code, 60009, "{path}");
        }
    }
}

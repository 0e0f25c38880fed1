//! The names of commands as settings use them.

use super::kind::shown;

/// Whether `name` is `command` or `service/command`; else what to write.
pub(super) fn check(name: &str) -> Result<(), String> {
    let is_word = |word: &str| {
        !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
    };
    let is_name = match name.split_once('/') {
        Some((service, command)) => is_word(service) && is_word(command),
        None => is_word(name),
    };
    if is_name {
        return Ok(());
    }
    Err(format!(
        "{} is not the name of a command; write one such as account_check \
         or \"open_msg_svc/get_history\"",
        shown(name)
    ))
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn a_command_has_at_most_its_service_in_front() {
        assert!(check("account_check").is_ok());
        assert!(check("open_msg_svc/get_history").is_ok());
        for name in ["", "/x", "x/", "v4/a/b", "a b", "ä", "a.b"] {
            assert!(check(name).is_err(), "{name}");
        }
    }
}

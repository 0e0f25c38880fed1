//! Open files: a caller's connection takes one and the call that he makes another.

/// What a process keeps open besides: listeners, files, the store, threads.
const OTHERS: u64 = 64;

/// Lets the process have as many as the system allows it, and says what is missing for so many connections.
pub fn raise(max_connections: usize) -> Option<String> {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(allowed) => missing(max_connections, allowed),
        Err(error) => Some(format!(
            "the limit on open files cannot be raised: {error}; see that it allows for \
             listen.max_connections"
        )),
    }
}

fn missing(max_connections: usize, allowed: u64) -> Option<String> {
    let connections = u64::try_from(max_connections).unwrap_or(u64::MAX);
    let needed = connections.saturating_mul(2).saturating_add(OTHERS);
    (allowed < needed).then(|| {
        format!(
            "listen.max_connections is {max_connections}, for which up to {needed} files are open, \
             and the system allows {allowed}: raise its limit (LimitNOFILE of systemd, ulimit -n) or \
             lower listen.max_connections"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_for_each_connection_should_be_enough_and_one_fewer_not() {
        assert_eq!(missing(1_000, 2_064), None);
        let said = missing(1_000, 2_063).expect("one is missing");
        assert!(
            said.starts_with("listen.max_connections is 1000, "),
            "{said}"
        );
        assert!(said.contains("up to 2064 files are open"), "{said}");
        assert!(missing(usize::MAX, u64::MAX - 1).is_some());
    }
}

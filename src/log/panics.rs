//! What is said of a panic: where it was, and its text only if that was written into the program.
//!
//! A text that was put together at run time may quote what a call holds, a signature or a body. The
//! place says as much to whoever mends it.

use std::{
    any::Any,
    io::{Write as _, stderr},
    panic,
};

const LEFT_OUT: &str = "(left out: it may quote a call)";

/// From now on panics are logged, or written to stderr where there is no log.
pub fn report() {
    panic::set_hook(Box::new(|panic| {
        let text = written(panic.payload());
        let place = panic.location().map(ToString::to_string);
        let place = place.as_deref().unwrap_or("an unknown place");
        if super::current().is_some_and(|log| log.filter.is_some()) {
            tracing::error!(place, text, "panicked: this is a mistake in the gateway");
        } else {
            // Nobody can be told where even that fails.
            let _ = writeln!(stderr(), "chat-gateway: panicked at {place}: {text}");
        }
    }));
}

/// The text of a panic, if the compiler knew it.
fn written(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().unwrap_or(&LEFT_OUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_was_made_at_run_time_should_be_left_out() {
        let body = std::hint::black_box("what a caller wrote");
        let of = |panic: fn(&str)| {
            let payload = panic::catch_unwind(|| panic(body)).expect_err("it panics");
            written(payload.as_ref())
        };
        assert_eq!(of(|_| panic!("the queue is empty")), "the queue is empty");
        assert_eq!(of(|body| panic!("{body} is odd")), LEFT_OUT);
        assert_eq!(of(|body| assert_eq!(body, "another")), LEFT_OUT);
        let read = |body: &str| {
            body.parse::<u64>()
                .map_err(|_| body.to_owned())
                .expect("a number");
        };
        assert_eq!(of(read), LEFT_OUT);
        assert_eq!(of(|body| panic::panic_any(body.to_owned())), LEFT_OUT);
    }
}

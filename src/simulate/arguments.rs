//! The command line of `simulate`.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use clap::ValueEnum as _;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::{Counted, CounterTest, Fault, Limit, Limits, Per, Settings, Simulator, WindowKind};

/// Stands in for the server REST API of Tencent Cloud Chat: counts calls as the API does, answers
/// with its codes, and misbehaves as much as you ask it to.
///
/// Group ids that start with `missing` do not exist (10010), those that start with `@TGS#_` are
/// Communities. Paths outside /v4/ are echoed.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The address to listen on, such as 127.0.0.1:8090
    #[arg(long, value_name = "ADDR")]
    pub listen: SocketAddr,
    /// How calls are counted
    #[arg(long, value_enum, default_value_t)]
    pub window: WindowKind,
    /// Calls that the window `gcra` lets through at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub gcra_burst: u32,
    /// What the window `counter` compares with its limit
    #[arg(long, value_enum, default_value_t)]
    pub counter: CounterTest,
    /// The least delay of an answer
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub latency: Duration,
    /// The most that is added to it
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub jitter: Duration,
    /// An extra delay for a share of the calls, such as 400ms=0.01
    #[arg(long, value_name = "TIME=SHARE", value_parser = spike)]
    pub spike: Option<(Duration, f64)>,
    /// A fault for a share of the calls, such as 10002=0.05; the name is an `ErrorCode`,
    /// reset-before, reset-after, hang, http-502 or garbage; may be repeated
    #[arg(long, value_name = "NAME=SHARE", value_parser = fail)]
    pub fail: Vec<(Fault, f64)>,
    /// Replays a run; a random one is chosen and printed when absent
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// A file with the secret key that signatures are verified with; without it every signature
    /// is good, except those that start with `forged`
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Calls a second that arrive from elsewhere on each live group and message
    #[arg(long, value_name = "RATE", default_value_t = 0.0, value_parser = rate)]
    pub spender: f64,
    /// Compare the `Seq` of message extensions with what is stored (23001)
    #[arg(long)]
    pub check_seq: bool,
    /// A group that does not exist (10010); may be repeated
    #[arg(long, value_name = "ID")]
    pub missing_group: Vec<String>,
    /// The limit on writes of attributes to one group (10049)
    #[arg(long, value_name = "LIMIT", default_value_t = Limits::default().group_attributes)]
    pub group_attributes: Limit,
    /// The limit on settings on one message (23003)
    #[arg(long, value_name = "LIMIT", default_value_t = Limits::default().message_extension)]
    pub message_extension: Limit,
    /// The limit on calls of one command by one app (60007)
    #[arg(long, value_name = "LIMIT", default_value_t = Limits::default().api)]
    pub api: Limit,
    /// Whose writes of attributes are counted together
    #[arg(long, value_enum, default_value_t)]
    pub attributes_per: Per,
    /// What a message extension setter takes from its limit
    #[arg(long, value_enum, default_value_t)]
    pub count: Counted,
}

impl Arguments {
    /// The settings that the arguments ask for, with `seed` where they name none.
    ///
    /// # Errors
    ///
    /// When the key file cannot be read or is empty, or when the shares of the faults exceed 1.
    pub fn settings(&self, seed: u64) -> io::Result<Settings> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let shares: f64 = self.fail.iter().map(|(_, share)| share).sum();
        // Ten times 0.1 is a little more than 1.
        if shares > 1.0 + 1e-9 {
            return Err(invalid(format!("the shares of --fail add up to {shares}")));
        }
        let key = match &self.key_file {
            None => None,
            Some(path) => {
                let fail = |what: &dyn std::fmt::Display| {
                    invalid(format!("the key file {}: {what}", path.display()))
                };
                let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
                match text.trim() {
                    "" => return Err(fail(&"it is empty")),
                    key => Some(key.to_owned()),
                }
            }
        };
        Ok(Settings {
            window: self.window,
            gcra_burst: self.gcra_burst,
            counter: self.counter,
            limits: Limits {
                group_attributes: self.group_attributes,
                message_extension: self.message_extension,
                api: self.api,
            },
            attributes_per: self.attributes_per,
            count: self.count,
            latency: self.latency,
            jitter: self.jitter,
            spikes: self.spike,
            faults: self.fail.clone(),
            seed: self.seed.unwrap_or(seed),
            key,
            check_seq: self.check_seq,
            spender: self.spender,
            journal: false,
            missing_groups: self.missing_group.clone(),
        })
    }
}

/// Runs the subcommand: listens, says where, serves until SIGINT or SIGTERM, prints the report.
///
/// # Errors
///
/// When the settings are wrong (see [`Arguments::settings`]), the address cannot be bound or the
/// output cannot be written.
pub async fn run(arguments: Arguments) -> io::Result<()> {
    let settings = arguments.settings(rand::random())?;
    let (window, seed) = (settings.window, settings.seed);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let address = arguments.listen;
    let listener = TcpListener::bind(address).await.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("--listen: cannot listen on {address}: {error}"),
        )
    })?;
    let address = listener.local_addr()?;
    let name = window.to_possible_value();
    let name = name.as_ref().map_or("", |value| value.get_name());
    writeln!(
        io::stdout(),
        "simulate: listening on http://{address}, window {name}, seed {seed}"
    )?;
    let simulator = Simulator::new(settings);
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    simulator.serve(listener, stop).await;
    write!(io::stdout(), "simulate: {}", simulator.report())
}

fn spike(text: &str) -> Result<(Duration, f64), String> {
    let (delay, share) = text
        .split_once('=')
        .ok_or("expected TIME=SHARE, such as 400ms=0.01")?;
    let delay = humantime::parse_duration(delay).map_err(|error| error.to_string())?;
    Ok((delay, part(share)?))
}

fn fail(text: &str) -> Result<(Fault, f64), String> {
    let (fault, share) = text
        .split_once('=')
        .ok_or("expected NAME=SHARE, such as 10002=0.05")?;
    Ok((fault.parse()?, part(share)?))
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("the share {text:?} is not a number from 0 to 1")),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.0..=1e6).contains(&rate) => Ok(rate),
        _ => Err("expected calls a second, from 0 to 1000000".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(line: &str) -> Result<Arguments, String> {
        let words = ["simulate", "--listen", "127.0.0.1:0"];
        Line::try_parse_from(words.into_iter().chain(line.split_whitespace()))
            .map(|line| line.arguments)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_should_become_settings() {
        let line = "--window log-refusals --latency 20ms --jitter 30ms --spike 400ms=0.01 \
                    --fail 10002=0.05 --fail reset-after=0.5 --seed 7 --spender 2 --check-seq \
                    --group-attributes 6/2s --api 100/1s --count pairs --missing-group g";
        let settings = parse(line).unwrap().settings(1).unwrap();
        assert_eq!(settings.window, WindowKind::LogRefusals);
        assert_eq!(settings.latency, Duration::from_millis(20));
        assert_eq!(settings.spikes, Some((Duration::from_millis(400), 0.01)));
        let faults = [(Fault::Code(10002), 0.05), (Fault::ResetAfter, 0.5)];
        assert_eq!(settings.faults, faults);
        assert_eq!(
            (settings.seed, settings.check_seq, settings.journal),
            (7, true, false)
        );
        assert_eq!(settings.limits.group_attributes.to_string(), "6/2s");
        assert_eq!(settings.limits.message_extension.to_string(), "200/1m");
        assert_eq!(settings.count, Counted::Pairs);
        assert_eq!(settings.missing_groups, ["g"]);
    }

    #[test]
    fn every_window_should_have_its_name() {
        for name in "fixed first-hit log log-refusals bucket gcra counter".split(' ') {
            let arguments = parse(&format!("--window {name}")).unwrap();
            let value = arguments.window.to_possible_value().unwrap();
            assert_eq!(value.get_name(), name);
        }
    }

    #[test]
    fn mistakes_should_be_named() {
        for (line, part) in [
            ("--fail 10002", "NAME=SHARE"),
            ("--fail 10002=2", "from 0 to 1"),
            ("--fail sulk=0.1", "unknown fault"),
            ("--spike 1=0.1", "TIME=SHARE"),
            ("--api 0/1s", "at least one call"),
            ("--gcra-burst 0", "0 is not in"),
            ("--window slidin", "log-refusals"),
            ("--spender=-1", "calls a second"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
        let arguments = parse("--fail hang=0.6 --fail garbage=0.6").unwrap();
        let error = arguments.settings(1).err().unwrap();
        assert!(error.to_string().contains("1.2"), "{error}");
    }

    #[test]
    fn key_file_should_be_trimmed_and_not_empty() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = format!("--key-file {}", file.path().display());
        assert!(parse(&line).unwrap().settings(1).is_err());
        std::fs::write(file.path(), "secret\n").unwrap();
        let settings = parse(&line).unwrap().settings(1).unwrap();
        assert_eq!(settings.key.as_deref(), Some("secret"));
        assert!(parse("--key-file /nowhere").unwrap().settings(1).is_err());
    }
}

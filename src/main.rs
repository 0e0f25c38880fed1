//! The command line: arguments, then one of the commands.

use std::{
    fmt::Display,
    io::{Write as _, stderr, stdout},
    path::PathBuf,
    process::ExitCode,
};

use chat_gateway::{config::Config, demo, keys::Keys, log, reload::Source, serve, simulate};
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Holds calls to the Tencent Cloud Chat server REST API within its quotas: waits, merges, repeats.
#[derive(Parser)]
#[command(version, about, arg_required_else_help = true, after_help = BEGIN)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const BEGIN: &str = "\
Begin with:
  chat-gateway demo --for 10s                          what it does, on this machine alone
  chat-gateway simulate --listen 127.0.0.1:9999        a stand-in for the API, and then
  chat-gateway serve --config config/local-simulator.toml
  curl -s http://127.0.0.1:9090/metrics                what an operator sees

Callers change their base URL to listen.traffic (http://127.0.0.1:8080) and nothing else.";

const SERVE: &str = "\
Examples:
  chat-gateway serve --config gateway.toml
  chat-gateway serve --config gateway.toml --set queue.deadline=5s --set log.level=debug
  CHAT_GATEWAY__QUEUE__DEADLINE=5s chat-gateway serve --config gateway.toml

The command line overrides the environment, which overrides the file. SIGTERM or SIGINT lets what
was read be served for shutdown.grace and ends with exit code 0; a second one ends at once.";

const CHECK: &str = "\
Examples:
  chat-gateway check --config gateway.toml              what is in force, defaults included
  chat-gateway check --config gateway.toml >/dev/null   only whether it is right, for a pipeline

A mistake is shown with its place:
  gateway.toml:2:12: queue.deadline is \"30\", which has no unit; write a duration such as \"30s\"";

const SIMULATE: &str = "\
Examples:
  chat-gateway simulate --listen 127.0.0.1:9999 --latency 20ms --jitter 30ms
  chat-gateway simulate --listen 127.0.0.1:9999 --window log-refusals --fail 10002=0.05 --seed 7
  chat-gateway simulate --listen 127.0.0.1:9999 --fail hang=0.01 --fail reset-after=0.01

It prints the address, and when it ends what it counted.";

const COMPLETIONS: &str = "\
Examples:
  chat-gateway completions bash > /etc/bash_completion.d/chat-gateway
  chat-gateway completions zsh  > \"${fpath[1]}/_chat-gateway\"
  chat-gateway completions fish > ~/.config/fish/completions/chat-gateway.fish";

#[derive(Subcommand)]
enum Command {
    /// Shows what the gateway does, on this machine alone: simulator, gateway and sample callers
    Demo(demo::Arguments),
    #[command(after_help = SERVE)]
    /// Serves callers until SIGTERM or SIGINT
    Serve(Settings),
    #[command(after_help = CHECK)]
    /// Prints the effective settings, or every mistake in them (exit code 2)
    Check(Settings),
    #[command(after_help = SIMULATE)]
    /// Stands in for the Chat API: counts quotas by itself and misbehaves as told
    Simulate(Box<simulate::Arguments>),
    #[command(after_help = COMPLETIONS)]
    /// Prints what makes a shell complete this command line
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(clap::Args)]
struct Settings {
    /// The settings, TOML; config/gateway.toml lists them all
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Overrides one setting, such as queue.deadline=5s; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// The settings, and the secrets in the files that they name.
    fn read(self) -> Result<(Config, Keys, Source), ExitCode> {
        let source = Source::new(self.config, self.set);
        let read = source.read().and_then(|config| {
            let keys = Keys::open(&config)?;
            Ok((config, keys, source))
        });
        read.map_err(|mistakes| {
            complain(mistakes);
            ExitCode::from(2)
        })
    }
}

fn check(config: &Config, keys: &Keys) -> std::io::Result<ExitCode> {
    for warning in keys.warnings(config) {
        complain(format_args!("warning: {warning}"));
    }
    stdout().write_all(config.to_toml().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// A line on stderr. Unlike `eprintln!` it does not panic where nobody can be told.
fn complain(what: impl Display) {
    let _ = writeln!(stderr(), "{what}");
}

fn main() -> ExitCode {
    log::panics::report();
    let outcome = match Arguments::parse().command {
        Command::Check(settings) => match settings.read() {
            Ok((config, keys, _)) => check(&config, &keys),
            Err(code) => return code,
        },
        Command::Serve(settings) => match settings.read() {
            Ok((config, keys, source)) => {
                log::init(&config.log);
                run(serve::serve(config, keys, source))
            }
            Err(code) => return code,
        },
        Command::Demo(arguments) => run(demo::run(arguments)),
        Command::Simulate(arguments) => {
            run(async { simulate::run(*arguments).await.map(|()| ExitCode::SUCCESS) })
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "chat-gateway", &mut script);
            stdout().write_all(&script).map(|()| ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|error| {
        complain(format_args!("chat-gateway: {error}"));
        ExitCode::FAILURE
    })
}

fn run(command: impl Future<Output = std::io::Result<ExitCode>>) -> std::io::Result<ExitCode> {
    // What serves callers has threads of its own (`workers.rs`).
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}

//! The command line: arguments and logging, then one of the commands.

use std::{
    io::{IsTerminal as _, stderr},
    path::PathBuf,
    process::ExitCode,
};

use chat_gateway::{
    config::{self, Config, LogFormat},
    demo,
    keys::Keys,
    serve, simulate,
};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Holds calls to the Tencent Cloud Chat server REST API within its quotas: waits, merges, repeats.
#[derive(Parser)]
#[command(version, about, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows what the gateway does, on this machine alone: simulator, gateway and sample callers
    Demo(demo::Arguments),
    /// Serves callers until SIGTERM or SIGINT
    Serve(Settings),
    /// Prints the effective settings, or every mistake in them (exit code 2)
    Check(Settings),
    /// Stands in for the Chat API: counts quotas by itself and misbehaves as told
    Simulate(Box<simulate::Arguments>),
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
    fn read(&self) -> Result<(Config, Keys), ExitCode> {
        let read = config::read(&self.config, &self.set).and_then(|config| {
            let keys = Keys::open(&config)?;
            Ok((config, keys))
        });
        read.map_err(|mistakes| {
            eprintln!("{mistakes}");
            ExitCode::from(2)
        })
    }
}

fn check(config: &Config, keys: &Keys) {
    for warning in keys.warnings(config) {
        eprintln!("warning: {warning}");
    }
    print!("{}", config.to_toml());
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Check(settings) => match settings.read() {
            Ok((config, keys)) => {
                check(&config, &keys);
                return ExitCode::SUCCESS;
            }
            Err(code) => return code,
        },
        Command::Serve(settings) => match settings.read() {
            Ok((config, keys)) => {
                log(&config);
                run(serve::serve(config, keys))
            }
            Err(code) => return code,
        },
        Command::Demo(arguments) => run(demo::run(arguments)),
        Command::Simulate(arguments) => {
            run(async { simulate::run(*arguments).await.map(|()| ExitCode::SUCCESS) })
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("chat-gateway: {error}");
        ExitCode::FAILURE
    })
}

fn run(command: impl Future<Output = std::io::Result<ExitCode>>) -> std::io::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(command)
}

fn log(config: &Config) {
    let filter = EnvFilter::new(&config.log.level);
    // Colours are for people who look on (and have not set NO_COLOR), not for files and collectors.
    let colours =
        stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(stderr);
    match config.log.format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

//! The whole gateway beside what a user would run instead: CPU per call, latency, memory, growth.
//!
//! Every figure is a ratio or comes with the peer's figure of the same run, in alternating rounds:
//! shared machines are noisy, and the noise meets all alike. The proxy has one core to itself, load
//! and upstream share the other.

mod bare;
mod bench;
mod load;
mod measure;
mod plot;
mod process;
mod scenario;
mod train;
mod upstream;
mod waiting;

use std::{error::Error, path::PathBuf};

use clap::{Parser, Subcommand};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The whole gateway, measured.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The table, as ratios.
    Run(Run),
    /// The cost over keys, connections and waiting calls; writes growth.svg.
    Growth(Run),
    /// Calls of every kind through a gateway that writes down which ways its code takes.
    Train(Run),
    /// A process of the bench: answers every request alike.
    #[command(hide = true)]
    Upstream {
        /// Where.
        port: u16,
    },
    /// A peer: passes and does nothing else.
    #[command(hide = true)]
    Bare {
        /// Where.
        port: u16,
        /// Where to.
        upstream: u16,
    },
    /// A process of the bench: makes calls that wait.
    #[command(hide = true)]
    Wait {
        /// Where.
        port: u16,
        /// How many.
        calls: usize,
    },
    /// A process of the bench: makes calls and prints what came of them.
    #[command(hide = true)]
    Load(load::Order),
}

/// What both measurements need.
#[derive(clap::Args)]
struct Run {
    /// The gateway's release binary.
    #[arg(long)]
    gateway: PathBuf,
    /// The folder of the peers' settings and of the plot.
    #[arg(long)]
    benches: PathBuf,
    /// Alternating rounds of each comparison.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of each round.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Only scenarios whose name holds this.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Run(run) => scenario::table(&run),
        What::Growth(run) => scenario::growth(&run),
        What::Train(run) => train::run(&run),
        What::Upstream { port } => upstream::run(port),
        What::Bare { port, upstream } => bare::run(port, upstream),
        What::Wait { port, calls } => waiting::run(port, calls),
        What::Load(order) => load::run(&order),
    }
}

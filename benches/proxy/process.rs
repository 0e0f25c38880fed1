//! Processes on their cores, and what the kernel says of them.

use std::{
    fs,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    Result,
    load::{Order, Outcome},
};

/// The core of the proxy.
pub const OWN: &str = "0";
/// The core of load and upstream.
pub const OTHER: &str = "1";

/// Runs on one thread of its own; after so many steps it looks what has come on its sockets, if there
/// are more to make.
pub fn one_thread<T>(steps: u32, future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(steps)
        .build()?
        .block_on(future)
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// A process that ends with its owner.
pub struct Process {
    child: Child,
    /// From the start to the first connection that it took.
    pub ready_after: Duration,
}

impl Process {
    /// Starts `program` on `cores` and waits until `port` takes connections.
    pub fn start(cores: &str, program: &Path, arguments: &[&str], port: u16) -> Result<Process> {
        let started = Instant::now();
        let child = Command::new("taskset")
            .args(["-c", cores])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut process = Process {
            child,
            ready_after: Duration::ZERO,
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        while TcpStream::connect(address).is_err() {
            if let Some(status) = process.child.try_wait()? {
                return Err(format!("{} ended: {status}", program.display()).into());
            }
            if started.elapsed() > Duration::from_secs(10) {
                return Err(format!("{} does not listen on {port}", program.display()).into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        process.ready_after = started.elapsed();
        Ok(process)
    }

    /// The trivial upstream.
    pub fn upstream(port: u16) -> Result<Process> {
        let own = std::env::current_exe()?;
        Process::start(OTHER, &own, &["upstream", &port.to_string()], port)
    }

    /// So many calls that wait at the gateway on `port`, for as long as this is there.
    pub fn waiting(port: u16, calls: usize) -> Result<Process> {
        let own = std::env::current_exe()?;
        let arguments = ["wait", &port.to_string(), &calls.to_string()];
        Process::start(OTHER, &own, &arguments, port)
    }

    /// Ends it as an operator would and waits until it has.
    pub fn end(mut self) -> Result<()> {
        let order = format!("kill -TERM {}", self.child.id());
        Command::new("sh").args(["-c", &order]).status()?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("it ended: {status}").into());
        }
        Ok(())
    }

    /// Time on a core so far, over all threads (`/proc/PID/task/*/schedstat`, nanoseconds).
    pub fn cpu(&self) -> Result<Duration> {
        let mut all = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            all += text
                .split(' ')
                .next()
                .ok_or("an empty schedstat")?
                .parse::<u64>()?;
        }
        Ok(Duration::from_nanos(all))
    }

    /// Resident memory in KiB.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes calls from a process of its own.
pub struct Load(Child);

impl Load {
    /// Begins.
    pub fn start(order: &Order) -> Result<Load> {
        let kind = clap::ValueEnum::to_possible_value(&order.kind).ok_or("a kind has a name")?;
        let mut command = Command::new("taskset");
        command.args(["-c", OTHER]).arg(std::env::current_exe()?);
        command.args(["load", "--kind", kind.get_name()]);
        for (name, value) in [
            ("--port", u64::from(order.port)),
            ("--bytes", order.bytes as u64),
            ("--connections", order.connections as u64),
            ("--millis", order.millis),
            ("--keys", order.keys as u64),
            ("--calls", order.calls as u64),
            ("--rate", order.rate),
            ("--upstream", u64::from(order.upstream)),
        ] {
            command.arg(name).arg(value.to_string());
        }
        Ok(Load(command.stdout(Stdio::piped()).spawn()?))
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Result<Outcome> {
        let mut text = String::new();
        if let Some(stdout) = &mut self.0.stdout {
            stdout.read_to_string(&mut text)?;
        }
        let status = self.0.wait()?;
        if !status.success() {
            return Err(format!("the load ended: {status}").into());
        }
        Outcome::from_json(text.trim())
    }
}

/// Makes calls and waits for their end.
pub fn load(order: &Order) -> Result<Outcome> {
    Load::start(order)?.finish()
}

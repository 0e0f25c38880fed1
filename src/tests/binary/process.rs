//! The binary as a process: started with free ports, watched, signalled, and killed on drop.

use std::{
    future::Future,
    io::{BufRead as _, BufReader, Read, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use chat_gateway::clock;
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::sync::watch;

use super::wire::{Message, exchange, request};

/// No condition of a test takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The binary with arguments, and without the settings of whoever runs the tests. It is the one that was
/// built with the tests, or `CHAT_GATEWAY_PROGRAM`.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let other = std::env::var_os("CHAT_GATEWAY_PROGRAM");
    let mut command =
        Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_chat-gateway").into()));
    command.args(arguments).env_clear();
    command
}

/// Runs the binary to its end: exit code, stdout, stderr.
pub(crate) fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the binary can be run");
    let text = |bytes| String::from_utf8(bytes).expect("it prints text");
    (status.code(), text(stdout), text(stderr))
}

/// A settings file with this text.
pub(crate) fn settings(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("there is a directory for temporary files");
    file.write_all(text.as_bytes()).expect("it can be written");
    file
}

/// Waits for `future`, but not for ever.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::select! {
        output = future => output,
        () = clock::sleep(PATIENCE) => panic!("waited {PATIENCE:?} for {what}"),
    }
}

/// A running process whose output is collected line by line.
pub(crate) struct Process {
    child: Child,
    stdout: Text,
    stderr: Text,
}

impl Process {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Process {
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.expect("the binary can be run");
        let stdout = Text::of(child.stdout.take().expect("it is piped"));
        let stderr = Text::of(child.stderr.take().expect("it is piped"));
        Process {
            child,
            stdout,
            stderr,
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory in bytes.
    pub(crate) fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        kilobytes.map_or(0, |kilobytes: usize| kilobytes << 10)
    }

    /// What it has written to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.now()
    }

    /// The first line of stdout that `find` takes.
    pub(crate) async fn stdout_line(&self, find: impl Fn(&str) -> bool) -> String {
        self.stdout.line(find).await
    }

    /// The first line of stderr that `find` takes.
    pub(crate) async fn stderr_line(&self, find: impl Fn(&str) -> bool) -> String {
        self.stderr.line(find).await
    }

    /// Sends it a signal, by its name without SIG.
    pub(crate) fn signal(&self, name: &str) {
        let command = format!("kill -s {name} {}", self.id());
        let status = Command::new("sh").args(["-c", &command]).status();
        assert!(status.expect("there is a shell").success(), "{command}");
    }

    /// Waits for its end: exit code, stdout, stderr.
    pub(crate) async fn end(&mut self) -> (Option<i32>, String, String) {
        let output = async { (self.stdout.all().await, self.stderr.all().await) };
        let (stdout, stderr) = within("the process to end", output).await;
        let status = self.child.wait().expect("it was not waited for before");
        (status.code(), stdout, stderr)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended by itself needs neither.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has written, and whether it can write more.
struct Text(watch::Receiver<(String, bool)>);

impl Text {
    fn of(pipe: impl Read + Send + 'static) -> Text {
        let (sender, receiver) = watch::channel((String::new(), false));
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            loop {
                let mut line = Vec::new();
                let ended = matches!(pipe.read_until(b'\n', &mut line), Ok(0) | Err(_));
                let line = String::from_utf8_lossy(&line);
                sender.send_modify(|(text, end)| {
                    text.push_str(&line);
                    *end = ended;
                });
                if ended {
                    return;
                }
            }
        });
        Text(receiver)
    }

    fn now(&self) -> String {
        self.0.borrow().0.clone()
    }

    async fn all(&self) -> String {
        let mut text = self.0.clone();
        let all = text.wait_for(|(_, ended)| *ended).await;
        all.expect("the reader says when it ends").0.clone()
    }

    async fn line(&self, find: impl Fn(&str) -> bool) -> String {
        let mut text = self.0.clone();
        let line = |text: &str| {
            text.split_inclusive('\n')
                .find(|line| find(line))
                .map(str::to_owned)
        };
        let found = text.wait_for(|(text, ended)| *ended || line(text).is_some());
        let found = within("a line of output", found).await;
        let (text, _) = &*found.expect("the reader says when it ends");
        line(text).unwrap_or_else(|| panic!("it ended without that line:\n{text}"))
    }
}

/// A gateway that serves.
pub(crate) struct Gateway {
    /// Its process.
    pub(crate) process: Process,
    /// Where callers connect.
    pub(crate) traffic: SocketAddr,
    /// Where operators connect.
    pub(crate) admin: SocketAddr,
}

impl Gateway {
    /// A gateway to `upstream` with these settings, ready; windows do not start as spent.
    pub(crate) async fn start(upstream: &str, settings: &[&str]) -> Gateway {
        let mut all = vec!["state.hold=0s"];
        all.extend_from_slice(settings);
        Gateway::with(upstream, &all).await
    }

    /// A gateway with no other settings than these.
    pub(crate) async fn with(upstream: &str, settings: &[&str]) -> Gateway {
        let file = self::settings(&format!(
            "[listen]\ntraffic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\
             [upstream]\nurl = \"{upstream}\"\n[log]\nformat = \"json\"\n"
        ));
        Gateway::of_file(file.path(), settings).await
    }

    /// A gateway with the settings of this file, overridden by these.
    pub(crate) async fn of_file(file: &Path, settings: &[&str]) -> Gateway {
        let path = file.display().to_string();
        let mut arguments = vec!["serve", "--config", &path];
        for setting in settings {
            arguments.extend_from_slice(&["--set", setting]);
        }
        Gateway::run(&mut program(&arguments)).await
    }

    /// The gateway that this runs.
    pub(crate) async fn run(command: &mut Command) -> Gateway {
        let process = Process::start(command);
        let line = process.stderr_line(|line| line.contains("is ready")).await;
        let line: Value = serde_json::from_str(&line).expect("the log is JSON");
        let address = |name: &str| line[name].as_str().and_then(|address| address.parse().ok());
        let gateway = Gateway {
            traffic: address("traffic").expect("the log says where callers connect"),
            admin: address("admin").expect("the log says where operators connect"),
            process,
        };
        let ready = async {
            while gateway.look("/readyz").await.status() != 200 {
                clock::sleep(Duration::from_millis(1)).await;
            }
        };
        within("/readyz", ready).await;
        gateway
    }

    /// The answer to a call.
    pub(crate) async fn call(&self, request: &[u8]) -> Message {
        within("an answer", exchange(self.traffic, request)).await
    }

    /// The answer of the admin port.
    pub(crate) async fn look(&self, path: &str) -> Message {
        let request = request("GET", path, "", b"");
        within("an answer", exchange(self.admin, &request)).await
    }

    /// Waits until `/status.json` is as wanted.
    pub(crate) async fn status(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let poll = async {
            loop {
                let status = self.look("/status.json").await.json();
                if wanted(&status) {
                    return status;
                }
                clock::sleep(Duration::from_millis(5)).await;
            }
        };
        within("the wanted status", poll).await
    }
}

//! `redis-server` and its relatives as processes on free ports.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use chat_gateway::clock;
use tempfile::TempDir;

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("it is bound").port()
}

/// A running server, killed on drop.
pub(crate) struct Server {
    pub(crate) port: u16,
    arguments: Vec<String>,
    program: &'static str,
    child: Option<Child>,
    dir: TempDir,
}

impl Server {
    /// An empty Redis that keeps nothing on disk.
    pub(crate) async fn start() -> Server {
        Server::with(&[]).await
    }

    /// The same with more settings.
    pub(crate) async fn with(settings: &[&str]) -> Server {
        let port = free_port();
        let port_text = port.to_string();
        let mut arguments = vec!["--port", &port_text, "--save", "", "--appendonly", "no"];
        arguments.extend(settings);
        Server::run("redis-server", port, &arguments).await
    }

    /// Any of the programs, that answers on `port`.
    pub(crate) async fn run(program: &'static str, port: u16, arguments: &[&str]) -> Server {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let dir = TempDir::new().expect("there is a directory for temporary files");
        let mut server = Server {
            port,
            arguments,
            program,
            child: None,
            dir,
        };
        server.restart().await;
        server
    }

    /// Starts it again, as empty as before if it was killed.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        let child = Command::new(self.program)
            .args(&self.arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child =
            Some(child.unwrap_or_else(|error| {
                panic!("{}: {error}; `make tools` installs it", self.program)
            }));
        for _ in 0..2_000 {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            clock::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} does not listen on {}", self.program, self.port);
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it can be killed");
            child.wait().expect("it was not waited for before");
        }
    }

    /// Sends it a signal, by its name without SIG.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("it runs").id();
        let status = Command::new("sh")
            .args(["-c", &format!("kill -s {name} {id}")])
            .status();
        assert!(status.expect("there is a shell").success());
    }

    /// Its URL as the gateway's `shared.redis`.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What it answers to a command, as it came.
    pub(crate) fn ask(&self, words: &[&str]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a legal timeout");
        let of_word = |word: &&str| format!("${}\r\n{word}\r\n", word.len());
        let mut command = format!("*{}\r\n", words.len());
        command.extend(words.iter().map(of_word));
        stream.write_all(command.as_bytes()).expect("it reads");
        // It closes too when it has said everything.
        stream.shutdown(Shutdown::Write).expect("it is open");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    /// How often its scripts were called so far.
    pub(crate) fn calls(&self) -> u64 {
        let stats = self.ask(&["INFO", "commandstats"]);
        let of = |name: &str| {
            stats
                .split(&format!("cmdstat_{name}:calls="))
                .nth(1)
                .and_then(|rest| rest.split(',').next()?.parse::<u64>().ok())
                .unwrap_or(0)
        };
        of("evalsha") + of("eval")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

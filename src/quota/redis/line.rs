//! The way to the store: which server it is, and a connection to it.
//!
//! All keys of a prefix are in one hash slot, so one server has them all, and one connection is
//! enough whatever the store is made of:
//!
//! - one server: its address;
//! - Sentinels (`redis+sentinel://`): each is asked for the address of the primary;
//! - a cluster: any node answers `MOVED` with the address of the node that has the slot.
//!
//! The client pipelines: calls that are made at the same time travel together.

use std::{io, path::Path, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisError, RedisResult, Script, TlsCertificates,
    aio::MultiplexedConnection,
};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    clock,
    config::{Shared, StoreUrl},
};

/// Longest time that a connection may take with everything that belongs to it; calls have their own,
/// shorter budget.
const CONNECT: Duration = Duration::from_secs(1);

/// A cluster in good order needs one.
const MOVES: usize = 3;

/// How to connect.
pub struct Line {
    url: StoreUrl,
    tls: Option<TlsCertificates>,
    username: Option<String>,
    password: Option<String>,
    /// In place of TCP.
    dial: Option<Arc<dyn Dial>>,
}

/// Makes streams to servers.
pub trait Dial: Send + Sync {
    /// A stream to that server.
    fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Stream>>;
}

/// What a server can be spoken to over.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection.
#[derive(Clone)]
pub struct Connection {
    /// The client's.
    pub inner: MultiplexedConnection,
    /// Where it leads to.
    pub address: String,
}

impl Line {
    /// A line with these settings, over `dial` or else TCP; reads the files that they name.
    pub fn new(url: &StoreUrl, shared: &Shared, dial: Option<Arc<dyn Dial>>) -> io::Result<Line> {
        let tls = if url.tls {
            // The client takes the provider of the process. One that is there already is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let read =
                |setting, file: &Option<std::path::PathBuf>| -> io::Result<Option<Vec<u8>>> {
                    let Some(file) = file else { return Ok(None) };
                    std::fs::read(file)
                        .map(Some)
                        .map_err(|e| unreadable(setting, file, &e))
                };
            let certificate = read("shared.cert", &shared.cert)?;
            let key = read("shared.key", &shared.key)?;
            let client_tls =
                certificate
                    .zip(key)
                    .map(|(client_cert, client_key)| ClientTlsConfig {
                        client_cert,
                        client_key,
                    });
            let root_cert = read("shared.ca", &shared.ca)?;
            Some(TlsCertificates {
                client_tls,
                root_cert,
            })
        } else {
            None
        };
        let password = match &shared.password_file {
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|e| unreadable("shared.password_file", file, &e))?;
                Some(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            None => None,
        };
        Ok(Line {
            url: url.clone(),
            tls,
            username: shared.username.clone(),
            password,
            dial,
        })
    }

    /// Connects to one of the addresses of the settings, or to the primary that the Sentinels name.
    pub async fn connect(&self) -> Result<Connection, String> {
        let mut last = String::new();
        for (host, port) in &self.url.hosts {
            let result = match &self.url.sentinel {
                None => self.connect_to(host, *port, true).await,
                Some(name) => match self.primary(host, *port, name).await {
                    Ok((host, port)) => self.connect_to(&host, port, true).await,
                    Err(error) => Err(error),
                },
            };
            match result {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The node of a cluster that `key` is on, asked over `connection`.
    pub async fn follow(
        &self,
        mut connection: Connection,
        key: &str,
    ) -> Result<Connection, String> {
        for _ in 0..MOVES {
            let mut probe = redis::cmd("EXISTS");
            probe.arg(key);
            let answer = within(CONNECT, probe.query_async::<i64>(&mut connection.inner)).await;
            match answer {
                Ok(_) => return Ok(connection),
                Err(Trouble::Redis(error)) => match error.redirect_node() {
                    Some((address, _)) => {
                        let (host, port) = address
                            .rsplit_once(':')
                            .and_then(|(host, port)| Some((host, port.parse().ok()?)))
                            .ok_or_else(|| describe(&error))?;
                        // A node that was never told its own address leaves the host out.
                        let own = connection.address.rsplit_once(':').map(|(host, _)| host);
                        let host = if host.is_empty() {
                            own.unwrap_or_default()
                        } else {
                            host
                        };
                        let host = host.to_owned();
                        connection = self.connect_to(&host, port, true).await?;
                    }
                    None => return Err(describe(&error)),
                },
                Err(Trouble::TooSlow) => return Err(too_slow(CONNECT)),
            }
        }
        Err("the nodes of the cluster send each to the next".to_owned())
    }

    /// Sends the server these scripts, so that a call of one takes a single round trip from the first
    /// on.
    pub async fn load(&self, connection: &Connection, scripts: [&Script; 2]) -> Result<(), String> {
        let [one, other] = scripts;
        let mut connections = [connection.inner.clone(), connection.inner.clone()];
        let [first, second] = &mut connections;
        let loading = async { tokio::try_join!(one.load_async(first), other.load_async(second)) };
        match within(CONNECT, loading).await {
            Ok(_) => Ok(()),
            Err(Trouble::Redis(error)) => Err(describe(&error)),
            Err(Trouble::TooSlow) => Err(too_slow(CONNECT)),
        }
    }

    async fn primary(&self, host: &str, port: u16, name: &str) -> Result<(String, u16), String> {
        let mut sentinel = self.connect_to(host, port, false).await?;
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("get-master-addr-by-name").arg(name);
        let answer = ask.query_async::<Option<(String, u16)>>(&mut sentinel.inner);
        match within(CONNECT, answer).await {
            Ok(Some(address)) => Ok(address),
            Ok(None) => Err(format!("the Sentinel {host}:{port} knows no {name}")),
            Err(Trouble::Redis(error)) => Err(describe(&error)),
            Err(Trouble::TooSlow) => Err(too_slow(CONNECT)),
        }
    }

    async fn connect_to(
        &self,
        host: &str,
        port: u16,
        authenticate: bool,
    ) -> Result<Connection, String> {
        let address = if self.tls.is_some() {
            ConnectionAddr::TcpTls {
                host: host.to_owned(),
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host.to_owned(), port)
        };
        let mut login = RedisConnectionInfo::default().set_db(self.url.database);
        if authenticate {
            if let Some(username) = &self.username {
                login = login.set_username(username);
            }
            if let Some(password) = &self.password {
                login = login.set_password(password);
            }
        } else {
            login = login.set_db(0);
        }
        let connecting = async {
            // Times are kept by who calls.
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(None)
                .set_response_timeout(None);
            if let Some(dial) = &self.dial {
                return over(dial.dial(host, port)?, &login, config).await;
            }
            let to = address.into_connection_info()?.set_redis_settings(login);
            let client = match &self.tls {
                Some(tls) => Client::build_with_tls(to, tls.clone())?,
                None => Client::open(to)?,
            };
            client
                .get_multiplexed_async_connection_with_config(&config)
                .await
        };
        let address = format!("{host}:{port}");
        match within(CONNECT, connecting).await {
            Ok(inner) => Ok(Connection { inner, address }),
            Err(Trouble::Redis(error)) => Err(format!("{address}: {}", describe(&error))),
            Err(Trouble::TooSlow) => Err(format!("{address}: {}", too_slow(CONNECT))),
        }
    }
}

async fn over(
    stream: Box<dyn Stream>,
    login: &RedisConnectionInfo,
    config: AsyncConnectionConfig,
) -> RedisResult<MultiplexedConnection> {
    let (connection, driver) =
        MultiplexedConnection::new_with_config(login, stream, config).await?;
    tokio::spawn(driver);
    Ok(connection)
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Trouble {
    /// The client or the server says.
    Redis(RedisError),
    /// It was not there in time.
    TooSlow,
}

/// Waits for an answer, but not longer than `budget`.
pub async fn within<T>(
    budget: Duration,
    answer: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, Trouble> {
    tokio::select! {
        biased;
        answer = answer => answer.map_err(Trouble::Redis),
        () = clock::sleep(budget) => Err(Trouble::TooSlow),
    }
}

/// An error in words, without what was sent.
pub fn describe(error: &RedisError) -> String {
    error.to_string()
}

/// In words.
pub fn too_slow(budget: Duration) -> String {
    format!("no answer within {}", humantime::format_duration(budget))
}

fn unreadable(setting: &str, file: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("{setting}: {}: {error}", file.display()),
    )
}

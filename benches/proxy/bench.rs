//! A run: its folder, the upstream, the proxies beside each other and what a call costs them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
};

use crate::{
    Result, Run,
    load::{Kind, Order, Outcome},
    measure::Rounds,
    process::{OTHER, OWN, Process, free_port, load},
    waiting::STREAMS,
};

/// Nothing waits: every limit is out of reach.
pub const OPEN: &str = r#"
[quota.group_attributes]
limit = 1000000
window = "10ms"
[quota.message_extension]
limit = 1000000
[quota.api]
limit = 1000000
[state]
hold = "0s"
"#;

/// Settings as they are, but the API-wide limit: groups that are written once do not wait.
pub const USUAL: &str = r#"
[quota.api]
limit = 1000000
[state]
hold = "0s"
"#;

/// One bench run's folder, upstream and binary.
pub struct Bench<'a> {
    pub run: &'a Run,
    pub folder: PathBuf,
    pub upstream: u16,
    /// Unless the load is the upstream, too.
    _upstream: Option<Process>,
}

/// One proxy under load.
pub struct Proxy {
    pub name: &'static str,
    pub port: u16,
    /// The gateway's second port.
    pub admin: Option<u16>,
    pub process: Process,
}

impl Proxy {
    /// One of the gateway's own figures.
    pub fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let admin = self.admin.ok_or("only the gateway has metrics")?;
        let mut stream = TcpStream::connect(("127.0.0.1", admin))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let line = text
            .lines()
            .find(|line| line.starts_with(name) && line.contains(labels))
            .ok_or_else(|| format!("no {name} with {labels}"))?;
        let value = line.rsplit(' ').next().ok_or("no value")?;
        Ok(value.parse()?)
    }
}

impl<'a> Bench<'a> {
    pub fn new(run: &'a Run) -> Result<Bench<'a>> {
        let folder =
            std::env::temp_dir().join(format!("chat-gateway-bench-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let upstream = free_port()?;
        Ok(Bench {
            run,
            folder,
            upstream,
            _upstream: Some(Process::upstream(upstream)?),
        })
    }

    /// The same in a folder of its own, for loads that answer as the upstream themselves.
    pub fn without_upstream(&self, folder: &str) -> Result<Bench<'a>> {
        let folder = self.folder.join(folder);
        fs::create_dir_all(&folder)?;
        Ok(Bench {
            run: self.run,
            folder,
            upstream: free_port()?,
            _upstream: None,
        })
    }

    pub fn gateway(&self, cores: &str, settings: &str) -> Result<Proxy> {
        self.gateway_before(&plain(self.upstream), cores, settings)
    }

    /// With the settings of an `upstream` of its own.
    pub fn gateway_before(&self, upstream: &str, cores: &str, settings: &str) -> Result<Proxy> {
        let (port, admin) = (free_port()?, free_port()?);
        let file = self.folder.join(format!("gateway-{port}.toml"));
        let settings = format!(
            "[listen]\ntraffic = \"127.0.0.1:{port}\"\nadmin = \"127.0.0.1:{admin}\"\n\
             max_connections = 20000\nmax_streams = {STREAMS}\n[upstream]\n{upstream}\n{settings}"
        );
        fs::write(&file, settings)?;
        let file = file.display().to_string();
        let process = Process::start(
            cores,
            &self.run.gateway,
            &["serve", "--config", &file],
            port,
        )?;
        Ok(Proxy {
            name: "gateway",
            port,
            admin: Some(admin),
            process,
        })
    }

    /// A stand-in for the API on the upstream's core, and its port.
    pub fn simulator(&self, settings: &[&str]) -> Result<(Process, u16)> {
        let port = free_port()?;
        let address = format!("127.0.0.1:{port}");
        let arguments = [&["simulate", "--listen", &address], settings].concat();
        let process = Process::start(OTHER, &self.run.gateway, &arguments, port)?;
        Ok((process, port))
    }

    /// A peer, if it is installed.
    pub fn peer(&self, name: &'static str) -> Result<Option<Proxy>> {
        let (program, settings) = match name {
            "nginx" => ("/usr/sbin/nginx", "nginx.conf"),
            "nginx with Lua" => ("/usr/sbin/nginx", "nginx-lua.conf"),
            _ => ("/usr/sbin/haproxy", "haproxy.cfg"),
        };
        let lua = Path::new("/usr/lib/nginx/modules/ngx_http_lua_module.so");
        if !Path::new(program).exists() || (name == "nginx with Lua" && !lua.exists()) {
            eprintln!("{name} is not installed and left out");
            return Ok(None);
        }
        let port = free_port()?;
        let text = fs::read_to_string(self.run.benches.join("peers").join(settings))?
            .replace("@LISTEN@", &port.to_string())
            .replace("@UPSTREAM@", &self.upstream.to_string())
            .replace("@LIMIT@", "1000000")
            .replace("@DIR@", &self.folder.display().to_string());
        let file = self.folder.join(format!("{port}-{settings}"));
        fs::write(&file, text)?;
        let file = file.display().to_string();
        let flag = if program.ends_with("nginx") {
            "-c"
        } else {
            "-f"
        };
        let process = Process::start(OWN, Path::new(program), &[flag, &file], port)?;
        Ok(Some(Proxy {
            name,
            port,
            admin: None,
            process,
        }))
    }

    /// A proxy over hyper that does nothing else.
    pub fn bare(&self) -> Result<Proxy> {
        let port = free_port()?;
        let own = std::env::current_exe()?;
        let (here, to) = (port.to_string(), self.upstream.to_string());
        let process = Process::start(OWN, &own, &["bare", &here, &to], port)?;
        Ok(Proxy {
            name: "a bare hyper proxy",
            port,
            admin: None,
            process,
        })
    }

    /// A Redis on the core of load and upstream and the settings of a gateway that shares it, if it is installed.
    pub fn redis(&self) -> Result<Option<(Process, String)>> {
        let server = Path::new("/usr/bin/redis-server");
        if !server.exists() {
            eprintln!("redis-server is not installed: shared windows are left out");
            return Ok(None);
        }
        let port = free_port()?;
        let port_text = port.to_string();
        let arguments = ["--port", &port_text, "--save", "", "--appendonly", "no"];
        let redis = Process::start(OTHER, server, &arguments, port)?;
        let settings = format!(
            "{USUAL}[shared]\nredis = \"redis://127.0.0.1:{port}\"\nreplicas = 1\nbudget = \"1s\"\n"
        );
        Ok(Some((redis, settings)))
    }

    pub fn order(&self, port: u16, kind: Kind) -> Order {
        Order {
            port,
            kind,
            bytes: 300,
            connections: 64,
            millis: self.run.seconds * 1_000,
            keys: 0,
            calls: 0,
            rate: 0,
            upstream: 0,
        }
    }

    pub fn wants(&self, name: &str) -> bool {
        name.contains(&self.run.only)
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        // Only files of this run; what is left over is in the folder for such things.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The settings of an upstream on a port.
pub fn plain(port: u16) -> String {
    format!("url = \"http://127.0.0.1:{port}\"")
}

/// Microseconds of CPU for each call of a load.
pub fn cpu_per_call(proxy: &Proxy, order: &Order) -> Result<f64> {
    let before = proxy.process.cpu()?;
    let outcome = good_load(proxy, order)?;
    let spent = proxy.process.cpu()? - before;
    Ok(spent.as_secs_f64() * 1e6 / outcome.good as f64)
}

/// What came of a load, nearly all of whose calls must be answered well.
pub fn good_load(proxy: &Proxy, order: &Order) -> Result<Outcome> {
    let outcome = load(order)?;
    if outcome.good == 0 || outcome.bad * 100 > outcome.good {
        return Err(format!("{} failed: {outcome:?}", proxy.name).into());
    }
    Ok(outcome)
}

/// Rounds of CPU per call for each of `proxies` in turn, after one that is thrown away.
pub fn alternate(bench: &Bench<'_>, proxies: &[(&Proxy, Order)]) -> Result<Vec<Rounds>> {
    let mut all = vec![Rounds::default(); proxies.len()];
    for round in 0..=bench.run.rounds {
        for ((proxy, order), rounds) in proxies.iter().zip(&mut all) {
            let spent = cpu_per_call(proxy, order)?;
            if round > 0 {
                rounds.0.push(spent);
            }
        }
    }
    Ok(all)
}

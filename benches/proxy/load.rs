//! Calls: as fast as the answers come (closed loop), or at a fixed rate with latency counted from
//! when each was due, so that a stall is not hidden by the calls that it kept from being made
//! (open loop).

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    Result, process,
    upstream::{self, message_end},
};

/// What to call.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    /// A command that no proxy knows.
    Unknown,
    /// The attributes of a group, an ever new one or one of `--keys`.
    Attributes,
    /// The extensions of one message, a key for each connection.
    Extension,
}

/// One load.
#[derive(Args, Clone, Debug)]
pub struct Order {
    /// Where to.
    #[arg(long)]
    pub port: u16,
    /// What.
    #[arg(long, value_enum)]
    pub kind: Kind,
    /// Bytes of a body, about.
    #[arg(long, default_value_t = 300)]
    pub bytes: usize,
    /// Connections, each with one call at a time.
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// For so long.
    #[arg(long, default_value_t = 2_000)]
    pub millis: u64,
    /// Groups; 0 for an ever new one.
    #[arg(long, default_value_t = 0)]
    pub keys: usize,
    /// Calls of each connection; 0 for as many as there is time for.
    #[arg(long, default_value_t = 0)]
    pub calls: usize,
    /// Calls a second over all connections, from a schedule; 0 for a closed loop.
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
    /// Answers as the upstream on this port besides, so that no other process wants the core; 0 for not.
    /// What is due is watched for and not slept for then: to the microsecond.
    #[arg(long, default_value_t = 0)]
    pub upstream: u16,
}

/// What came of a load.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Calls that were answered with `ErrorCode` 0.
    pub good: u64,
    /// Calls that were answered otherwise or not at all.
    pub bad: u64,
    /// How long it took.
    pub seconds: f64,
    /// Median latency, in microseconds.
    pub p50: u64,
    /// The latency of one in a hundred, in microseconds.
    pub p99: u64,
}

/// Makes the calls and prints the outcome as one line of JSON.
pub fn run(order: &Order) -> Result<()> {
    let order = order.clone();
    // Who watches the clock must not keep others from what has come for them.
    let steps = if order.upstream == 0 { 61 } else { 1 };
    process::one_thread(steps, async move {
        if order.upstream != 0 {
            tokio::spawn(upstream::answer(upstream::listen(order.upstream).await?));
        }
        let mut streams = Vec::new();
        for _ in 0..order.connections {
            let stream = TcpStream::connect(("127.0.0.1", order.port)).await?;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        let start = Instant::now();
        let callers: Vec<_> = (streams.into_iter().enumerate())
            .map(|(number, stream)| tokio::spawn(caller(number, stream, order.clone(), start)))
            .collect();
        let mut latency = Histogram::<u64>::new(3)?;
        let mut outcome = Outcome::default();
        for caller in callers {
            let (own, bad) = caller.await?;
            outcome.bad += bad;
            latency.add(own)?;
        }
        outcome.seconds = start.elapsed().as_secs_f64();
        outcome.good = latency.len();
        outcome.p50 = latency.value_at_quantile(0.5);
        outcome.p99 = latency.value_at_quantile(0.99);
        println!("{}", outcome.to_json());
        Ok(())
    })
}

impl Outcome {
    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "good": self.good, "bad": self.bad, "seconds": self.seconds, "p50": self.p50, "p99": self.p99,
        })
    }

    /// What [`run`] has printed.
    pub fn from_json(text: &str) -> Result<Outcome> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        let whole = |name: &str| {
            value[name]
                .as_u64()
                .ok_or_else(|| format!("no {name} in {text}"))
        };
        Ok(Outcome {
            good: whole("good")?,
            bad: whole("bad")?,
            seconds: value["seconds"].as_f64().ok_or("no seconds")?,
            p50: whole("p50")?,
            p99: whole("p99")?,
        })
    }
}

async fn caller(
    number: usize,
    mut stream: TcpStream,
    order: Order,
    start: Instant,
) -> (Histogram<u64>, u64) {
    let mut latency = Histogram::new(3).expect("three digits");
    let mut bad = 0;
    let end = start + Duration::from_millis(order.millis);
    let filler = "x".repeat(order.bytes.saturating_sub(70));
    // Runs must not meet the groups of runs before them.
    let run = std::process::id();
    let gap = order.connections as u64 * 1_000_000_000;
    let mut buffer = Vec::with_capacity(4 << 10);
    for made in 0_u64.. {
        let mut due = Instant::now();
        let place = made * gap + number as u64 * 1_000_000_000;
        if let Some(nanos) = place.checked_div(order.rate) {
            due = start + Duration::from_nanos(nanos);
            if order.upstream == 0 {
                tokio::time::sleep_until(due.into()).await;
            }
            while Instant::now() < due {
                tokio::task::yield_now().await;
            }
        }
        if Instant::now() >= end || (order.calls > 0 && made >= order.calls as u64) {
            break;
        }
        let key = match order.keys {
            0 => format!("{run}-{number}-{made}"),
            keys => ((made as usize * order.connections + number) % keys).to_string(),
        };
        let request = request(order.kind, &key, number, &filler);
        let answered = exchange(&mut stream, &request, &mut buffer).await;
        match answered {
            Some(true) => latency
                .record(due.elapsed().as_micros().try_into().unwrap_or(u64::MAX))
                .expect("it grows by itself"),
            Some(false) => bad += 1,
            None => {
                bad += 1;
                break;
            }
        }
    }
    (latency, bad)
}

/// Whether the API said that all is well; `None` if the connection is gone.
async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> Option<bool> {
    stream.write_all(request).await.ok()?;
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
        if message_end(buffer).is_some() {
            let good = b"\"ErrorCode\":0";
            return Some(buffer.windows(good.len()).any(|part| part == good));
        }
    }
}

/// The target and the body of a call.
pub fn content(kind: Kind, key: &str, number: usize, filler: &str) -> (String, String) {
    let (command, body) = match kind {
        Kind::Unknown => (
            "group_open_http_svc/send_group_msg",
            format!(r#"{{"GroupId":"{key}","MsgBody":"{filler}"}}"#),
        ),
        Kind::Attributes => {
            let attributes: Vec<String> = (filler.as_bytes().chunks(4_000).enumerate())
                .map(|(n, value)| {
                    let value = std::str::from_utf8(value).expect("letters");
                    format!(r#"{{"key":"attr_key{n}","value":"{value}"}}"#)
                })
                .collect();
            let attributes = attributes.join(",");
            (
                "group_open_http_svc/set_group_attr",
                format!(r#"{{"GroupId":"{key}","GroupAttr":[{attributes}]}}"#),
            )
        }
        Kind::Extension => (
            "openim_msg_ext_http_svc/group_set_key_values",
            format!(
                r#"{{"GroupId":"group","MsgSeq":17,"OperateType":1,"ExtensionList":[{{"Key":"key{}","Value":"v"}}]}}"#,
                // A message holds 300 at most.
                number % 300
            ),
        ),
    };
    let target = format!(
        "/v4/{command}?sdkappid=88888888&identifier=administrator&usersig=xxx&random=99999999\
         &contenttype=json"
    );
    (target, body)
}

fn request(kind: Kind, key: &str, number: usize, filler: &str) -> Vec<u8> {
    let (target, body) = content(kind, key, number, filler);
    let length = body.len();
    format!(
        "POST {target} HTTP/1.1\r\nhost: 127.0.0.1\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

//! Everything that the program can say, with secrets of every kind in it, at level trace; and that
//! nothing of what it says is one of them (P6).

mod servers;

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose};
use chat_gateway::{clock, simulate::sign};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::{
    logging::moody,
    process::{Gateway, program, run},
    recorder::Recorder,
    simulating::simulator,
    wire::{EXTEND, SET, exchange, one_attribute, request},
};

const APP: u64 = 88_888_888;
const KEY: &str = "KEYk9f3aa0c1b2d4e5f60718293a4b5c6d7e8f9";
const NEXT_KEY: &str = "NEXTk77e6d5c4b3a291807f6e5d4c3b2a190817";
const TOKEN: &str = "TOKENa-7Hq2/Zx+Lm9~Rt5.Wv1_Yb8=";
const OTHER_TOKEN: &str = "TOKENb-3Kd6/Pf+Gs4~Jn0.Cu7_Xe2=";
const WRONG_TOKEN: &str = "TOKENc-8Bv1/Ny+Qa5~Mz3.Dh6_Iw9=";
/// A caller's own signature.
const SIGNATURE: &str = "eJwVERYSECRETSIGNATURE0123456789abcdefx*-_";
const GET: &str = "/v4/group_open_attr_http_svc/get_group_attr";

/// How a secret may look: as it is, in parts, in a URL, in base64, in a list of bytes, in hex.
fn disguises(secret: &str) -> Vec<String> {
    let mut all = vec![secret.to_owned()];
    // A piece of it is enough to be found by: what a careless shortening would leave.
    let middle = secret.len() / 2;
    for piece in [
        &secret[..16],
        &secret[middle - 6..middle + 6],
        &secret[secret.len() - 12..],
    ] {
        all.push(piece.to_owned());
        all.push(piece.chars().rev().collect());
        let bytes = piece.as_bytes();
        all.push(form_urlencoded::byte_serialize(bytes).collect());
        all.push(bytes.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a String takes every write");
            hex
        }));
        let list = format!("{bytes:?}");
        all.push(list.trim_matches(['[', ']']).to_owned());
    }
    // Base64 looks otherwise by where in a text the secret begins.
    for shift in 0..3 {
        let text = format!("{}{secret}", "x".repeat(shift));
        for engine in [&general_purpose::STANDARD, &general_purpose::URL_SAFE] {
            let encoded = engine.encode(&text);
            all.push(encoded[4..encoded.len() - 8].to_owned());
        }
    }
    all
}

/// Nothing of what is said is a secret.
struct Search {
    secrets: Vec<(String, Vec<String>)>,
    said: Mutex<usize>,
}

impl Search {
    fn of(secrets: &[&str]) -> Search {
        let disguised = secrets
            .iter()
            .map(|secret| (secret[..5].to_owned(), disguises(secret)));
        Search {
            secrets: disguised.collect(),
            said: Mutex::new(0),
        }
    }

    #[track_caller]
    fn check(&self, what: &str, text: &str) {
        *self.said.lock() += text.len();
        for (name, disguises) in &self.secrets {
            for disguise in disguises {
                assert!(
                    !text.contains(disguise.as_str()),
                    "{name}... is in {what} as {disguise}:\n{text}"
                );
            }
        }
    }
}

#[test]
fn the_search_should_find_what_it_looks_for() {
    let search = Search::of(&[KEY, TOKEN]);
    let found = |text: &str| {
        let quiet = std::panic::AssertUnwindSafe(|| search.check("a test", text));
        std::panic::catch_unwind(quiet).is_err()
    };
    let encoded: String = form_urlencoded::byte_serialize(TOKEN.as_bytes()).collect();
    for text in [
        format!("x {KEY} y"),
        format!("Bearer {}...", &TOKEN[..18]),
        format!("/?a={encoded}"),
        general_purpose::STANDARD.encode(format!("a {KEY} b")),
        general_purpose::URL_SAFE.encode(format!("Bearer {TOKEN}")),
        format!("{:?}", KEY.as_bytes()),
    ] {
        assert!(found(&text), "{text}");
    }
    assert!(!found("nothing of it"));
}

struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Files {
        let folder = tempfile::tempdir().expect("there is a directory for temporary files");
        let files = Files { folder };
        files.write("key", KEY);
        files.write(
            "tokens",
            &format!("billing {TOKEN}\nlimited {OTHER_TOKEN}\n"),
        );
        files
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).expect("it can be written");
    }

    fn settings(&self) -> Vec<String> {
        vec![
            format!("credentials.sdkappid={APP}"),
            "credentials.identifier=administrator".to_owned(),
            format!("credentials.secret_key_file={}", self.at("key")),
            format!("access.tokens_file={}", self.at("tokens")),
            r#"access.caller=[{name="limited", rate=1, commands=["set_group_attr"]}]"#.to_owned(),
            format!("state.file={}", self.at("windows")),
            "state.hold=0s".to_owned(),
            "log.level=trace".to_owned(),
            "upstream.call_timeout=100ms".to_owned(),
            "queue.deadline=1s".to_owned(),
            "retry.max_attempts=2".to_owned(),
        ]
    }
}

/// Calls of every kind, good and bad, as bytes.
fn calls() -> Vec<Vec<u8>> {
    let own = format!("?sdkappid={APP}&identifier=admin&usersig={SIGNATURE}");
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let good = bearer(TOKEN);
    let mut calls = vec![
        // Who may not call.
        request(
            "POST",
            &format!("{SET}{own}"),
            "",
            one_attribute("g").as_bytes(),
        ),
        request(
            "POST",
            SET,
            &bearer(WRONG_TOKEN),
            one_attribute("g").as_bytes(),
        ),
        request(
            "POST",
            SET,
            &format!("Authorization: Basic {TOKEN}\r\n"),
            b"{}",
        ),
        request("POST", SET, &format!("{good}{good}"), b"{}"),
        request("POST", GET, &bearer(OTHER_TOKEN), br#"{"GroupId":"g"}"#),
        // What is malformed.
        request("GET", &format!("{SET}{own}"), &good, b""),
        request("POST", &format!("{SET}{own}&random=x"), &good, b"{}"),
        request("POST", &format!("{SET}?usersig={SIGNATURE}"), &good, b"{}"),
        request("POST", &format!("{SET}?sdkappid={SIGNATURE}"), &good, b"{}"),
        request(
            "POST",
            &format!("{SET}?identifier={SIGNATURE}"),
            &good,
            b"{}",
        ),
        request("POST", &format!("{SET}{own}"), &good, SIGNATURE.as_bytes()),
        request(
            "POST",
            &format!("/v4/{}{own}", "x".repeat(70_000)),
            &good,
            b"",
        ),
        request(
            "POST",
            &format!("/odd{own}"),
            &format!("{good}x-chat-gateway-timeout: {SIGNATURE}\r\n"),
            b"",
        ),
        request(
            "POST",
            &format!("/odd{own}"),
            &good,
            &vec![b'x'; (1 << 20) + 1],
        ),
        request(
            "POST",
            &format!("/odd{own}"),
            &format!("{good}bad header\r\n"),
            b"",
        ),
        format!("POST {SET}{own} HTTP/9.9\r\n{good}\r\n").into_bytes(),
        format!("POST {SET}{own} HTTP/1.1\r\n{good}Content-Length: {SIGNATURE}\r\n\r\n")
            .into_bytes(),
    ];
    for deed in ["ok", "busy", "fail", "html", "reset", "hang"] {
        let extension = format!(r#"{{"GroupId":"{deed}","MsgSeq":1,"OperateType":3}}"#);
        let group = format!(r#"{{"GroupId":"{deed}"}}"#);
        for query in ["", own.as_str()] {
            for (path, body) in [
                (SET, one_attribute(deed)),
                (EXTEND, extension.clone()),
                (GET, group.clone()),
                ("/v4/some/other", group.clone()),
            ] {
                calls.push(request(
                    "POST",
                    &format!("{path}{query}"),
                    &good,
                    body.as_bytes(),
                ));
            }
        }
    }
    // More often than he may.
    for _ in 0..3 {
        calls.push(request(
            "POST",
            SET,
            &bearer(OTHER_TOKEN),
            one_attribute("l").as_bytes(),
        ));
    }
    calls
}

/// Refused credentials are remembered, so these come last: ours, and a caller's.
fn refused() -> Vec<Vec<u8>> {
    let own = format!("?sdkappid={APP}&identifier=admin&usersig={SIGNATURE}");
    let good = format!("Authorization: Bearer {TOKEN}\r\n");
    let body = one_attribute("expired");
    ["", "", own.as_str(), own.as_str()]
        .map(|query| request("POST", &format!("{SET}{query}"), &good, body.as_bytes()))
        .into()
}

const PAGES: [&str; 6] = [
    "/metrics",
    "/status.json",
    "/",
    "/livez",
    "/readyz",
    "/explain?sdkappid=88888888&group=hang",
];

async fn look_at_all(gateway: &Gateway, search: &Search) {
    for page in PAGES {
        search.check(page, &gateway.look(page).await.text());
    }
}

/// Signatures that were made in the meantime, from what has arrived.
fn signatures(upstream: &Recorder) -> Vec<String> {
    let mut found = Vec::new();
    for request in upstream.requests() {
        let query = request
            .start
            .split('&')
            .find_map(|part| part.strip_prefix("usersig="));
        let usersig = query.map(|rest| rest.split([' ', '&']).next().unwrap_or_default());
        if let Some(usersig) = usersig
            && usersig != SIGNATURE
            && !found.iter().any(|own| own == usersig)
        {
            found.push(usersig.to_owned());
        }
    }
    found
}

#[tokio::test]
async fn nothing_that_the_program_says_should_be_a_secret() {
    let files = Files::new();
    let settings = files.settings();
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let upstream = Recorder::start(moody).await;
    let mut gateway = Gateway::with(&upstream.url(), &settings).await;
    let mut answers = Vec::new();
    let at_once = calls();
    let at_once = at_once.iter().map(|request| gateway.call(request));
    answers.extend(futures_util::future::join_all(at_once).await);
    let given = Search::of(&[KEY, NEXT_KEY, TOKEN, OTHER_TOKEN, WRONG_TOKEN, SIGNATURE]);
    look_at_all(&gateway, &given).await;
    for request in refused() {
        answers.push(gateway.call(&request).await);
    }
    let reasons: Vec<_> = answers
        .iter()
        .flat_map(|answer| answer.all("x-chat-gateway-reason"))
        .collect();
    for reason in [
        "invalid",
        "too-large",
        "unauthorized",
        "caller-limit",
        "upstream-unreachable",
        "upstream-timeout",
    ] {
        assert!(reasons.contains(&reason), "{reason} in {reasons:?}");
    }
    // The files change: well, badly, and not at all.
    let log = |part: &'static str| gateway.process.stderr_line(move |line| line.contains(part));
    files.write("key", NEXT_KEY);
    files.write(
        "tokens",
        &format!("billing {TOKEN}\nlimited\n{WRONG_TOKEN} {OTHER_TOKEN}\n"),
    );
    log("the secret key is another one").await;
    log("the tokens from before hold on").await;
    files.write("key", &format!("{KEY} {NEXT_KEY}"));
    files.write("tokens", &format!("billing {WRONG_TOKEN}\n"));
    log("the secret key from before holds on").await;
    log("the tokens were read again").await;
    let metrics = gateway.look("/metrics").await.text();
    for files in ["access", "credentials"] {
        for outcome in ["applied", "refused"] {
            let series = format!(
                "chat_gateway_files_reloads_total{{files=\"{files}\",outcome=\"{outcome}\"}} 1\n"
            );
            assert!(metrics.contains(&series), "{series} in {metrics}");
        }
    }
    let header = format!("Authorization: Bearer {WRONG_TOKEN}\r\n");
    let with_the_next = request("POST", SET, &header, one_attribute("ok").as_bytes());
    let answer = gateway.call(&with_the_next).await;
    assert_eq!(
        answer.one("x-chat-gateway-origin"),
        "upstream",
        "{answer:?}"
    );
    answers.push(answer);
    let made = signatures(&upstream);
    assert_eq!(made.len(), 2, "one for each key: {made:?}");
    let mut all = vec![KEY, NEXT_KEY, TOKEN, OTHER_TOKEN, WRONG_TOKEN, SIGNATURE];
    all.extend(made.iter().map(String::as_str));
    let search = Search::of(&all);
    look_at_all(&gateway, &search).await;
    gateway.process.signal("TERM");
    let (code, stdout, log) = gateway.process.end().await;
    assert_eq!((code, stdout.as_str()), (Some(0), ""));
    assert!(log.contains("\"TRACE\""), "other crates trace as well");
    search.check("the log", &log);
    for answer in &answers {
        search.check("an answer", &format!("{answer:?}"));
        search.check("the body of an answer", &answer.text());
    }
    for name in ["windows", "windows.lock"] {
        let path = Path::new(files.folder.path()).join(name);
        if let Ok(bytes) = fs::read(path) {
            search.check(name, &String::from_utf8_lossy(&bytes));
        }
    }
    assert!(*search.said.lock() > 100_000, "there was little to search");
    for request in upstream.requests() {
        assert!(request.all("authorization").is_empty(), "{request:?}");
    }
    check_command(&files, &settings, &search);
}

/// `check` with good and bad files, and the settings from everywhere.
fn check_command(files: &Files, settings: &[&str], search: &Search) {
    files.write("key", KEY);
    files.write("settings", "");
    let config = files.at("settings");
    let mut arguments = vec!["check", "--config", &config];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let (code, stdout, stderr) = run(&mut program(&arguments));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("[[credentials]]") && stdout.contains("[[access.caller]]"));
    // The file of tokens has been changed: the one who is named has none any more.
    assert!(stderr.contains("limited has no token"), "{stderr}");
    search.check("check", &(stdout + &stderr));
    files.write("key", &format!("{KEY} {TOKEN}"));
    files.write(
        "tokens",
        &format!("{TOKEN}\na {TOKEN}\n{OTHER_TOKEN} {KEY}\nb {TOKEN}\n"),
    );
    for command in ["check", "serve"] {
        arguments[0] = command;
        let (code, stdout, stderr) = run(&mut program(&arguments));
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{command}");
        for part in [
            "tokens:1:1: ",
            "tokens:3:1: ",
            "tokens:4:1: ",
            "key: is not the secret",
        ] {
            assert!(stderr.contains(part), "{part} in {stderr}");
        }
        search.check(command, &stderr);
    }
    // Secrets in the places of settings.
    files.write(
        "settings",
        &format!("[credentials]\nsecret_key = \"{KEY}\"\n[access]\ntokens_file = {TOKEN}\ntoken = [\"{TOKEN}\"]\n"),
    );
    let (code, stdout, stderr) = run(&mut program(&["check", "--config", &config]));
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains(":2:1: unknown setting"), "{stderr}");
    search.check("check", &stderr);
}

#[tokio::test]
async fn the_body_of_one_who_may_not_call_should_not_be_waited_for() {
    let files = Files::new();
    let settings = files.settings();
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let upstream = Recorder::of_the_api().await;
    let gateway = Gateway::with(&upstream.url(), &settings).await;
    let head = format!("POST {SET} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{");
    let started = clock::now();
    let answer = exchange(gateway.traffic, head.as_bytes()).await;
    assert_eq!(answer.one("x-chat-gateway-reason"), "unauthorized");
    assert!(clock::now() - started < Duration::from_secs(5));
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn a_signed_call_should_be_one_that_the_simulator_takes() {
    let files = Files::new();
    let (_simulator, address) = simulator(&["--key-file", &files.at("key")]).await;
    let settings = files.settings();
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let gateway = Gateway::with(&format!("http://{address}"), &settings).await;
    let header = format!("Authorization: Bearer {TOKEN}\r\n");
    let now = clock::unix_now().as_secs();
    let forged = sign("another", APP, "admin", now, 3_600);
    for (query, code) in [
        (String::new(), 0),
        (
            format!("?sdkappid={APP}&identifier=admin&usersig={forged}"),
            70_009,
        ),
    ] {
        let body = one_attribute("g");
        let call = request("POST", &format!("{SET}{query}"), &header, body.as_bytes());
        let answer = gateway.call(&call).await;
        assert_eq!(answer.json()["ErrorCode"], code, "{answer:?}");
    }
}

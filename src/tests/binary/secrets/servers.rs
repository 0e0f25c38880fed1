//! The same for what the gateway shows to the servers of others: a shared store, and a collector of traces.

use chat_gateway::clock;

use super::{
    super::{
        collector::Collector,
        process::{Gateway, program, run, settings},
        recorder::Recorder,
        sharing::Server,
        wire::{SET, call, one_attribute},
    },
    Search, look_at_all,
};

const PASSWORD: &str = "PASSWk-6Tz1/Wq+Ug8~Ly2.Ob5_Vn4=";
const WRONG: &str = "WRONGk-1Mf9/Ce+Rt3~Hx7.Sa0_Kp6=";
const HEADER: &str = "HEADERd-4Jb8.Zo2_Qi6~Ew9-Ny5.Xl3";

#[tokio::test]
async fn what_servers_are_shown_should_not_be_said_to_anybody_else() {
    let search = Search::of(&[PASSWORD, WRONG, HEADER]);
    let folder = tempfile::tempdir().expect("there is a directory for temporary files");
    let file = folder.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).expect("it can be written");
    let allowed = format!(">{PASSWORD}");
    let mut store = Server::with(&["--user", "gateway", "on", &allowed, "~*", "+@all"]).await;
    let collector = Collector::start().await;
    let upstream = Recorder::of_the_api().await;
    let config = settings("");
    let config = config.path().display().to_string();
    let mut arguments = vec!["serve".to_owned(), "--config".to_owned(), config.clone()];
    for setting in [
        "listen.traffic=127.0.0.1:0".to_owned(),
        "listen.admin=127.0.0.1:0".to_owned(),
        format!("upstream.url={}", upstream.url()),
        "log.format=json".to_owned(),
        "log.level=trace".to_owned(),
        collector.setting(),
        "trace.sample=1".to_owned(),
        format!("shared.redis={}", store.url()),
        "shared.username=gateway".to_owned(),
        format!("shared.password_file={}", file.display()),
    ] {
        arguments.extend(["--set".to_owned(), setting]);
    }
    let start = async |arguments: &[String]| {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let mut command = program(&arguments);
        command.env(
            "OTEL_EXPORTER_OTLP_HEADERS",
            format!("authorization=Bearer {HEADER}"),
        );
        Gateway::run(&mut command).await
    };
    // With the right password, through the loss of the store; and with a wrong one.
    let mut gateways = vec![start(&arguments).await];
    gateways[0]
        .status(|status| status["shared"]["up"] == true)
        .await;
    std::fs::write(&file, WRONG).expect("it can be written");
    gateways.push(start(&arguments).await);
    gateways[1]
        .process
        .stderr_line(|line| line.contains("the shared store cannot be reached"))
        .await;
    for gateway in &gateways {
        let answer = gateway.call(&call(SET, "", &one_attribute("g"))).await;
        assert_eq!(answer.json()["ErrorCode"], 0);
    }
    collector.wait_for(2).await;
    assert_eq!(
        collector.header("authorization"),
        format!("Bearer {HEADER}")
    );
    store.kill();
    gateways[0]
        .status(|status| status["shared"]["up"] == false)
        .await;
    clock::sleep(std::time::Duration::from_millis(300)).await;
    for gateway in &mut gateways {
        look_at_all(gateway, &search).await;
        gateway.process.signal("TERM");
        let (code, stdout, log) = gateway.process.end().await;
        assert_eq!((code, stdout.as_str()), (Some(0), ""));
        assert!(
            log.contains("\"TRACE\"") && log.contains("the shared store"),
            "{log}"
        );
        search.check("the log", &log);
    }

    // `check` prints the settings; those that hold a secret where none belongs are refused unseen.
    arguments[0] = "check".to_owned();
    let all: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (code, stdout, stderr) = run(&mut program(&all));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("password_file"), "{stdout}");
    search.check("check", &(stdout + &stderr));
    for setting in [
        format!("shared.redis=redis://gateway:{PASSWORD}@127.0.0.1"),
        format!("shared.password={PASSWORD}"),
        format!("trace.otlp=http://user:{PASSWORD}@127.0.0.1:4318"),
    ] {
        let (code, stdout, stderr) = run(&mut program(&[
            "check", "--config", &config, "--set", &setting,
        ]));
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
        search.check("check", &stderr);
    }
}

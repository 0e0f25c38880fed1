"""The dashboard and one alert against a real Prometheus that scrapes a gateway under load.

Every query of every panel must return a finite sample; those of the shared store where the gateway has
one (then it is given a Redis), and nothing where it has none. Alerts fire for real causes: somebody
spends a quota past the gateway, settings have a mistake, the API goes away, and the store.
"""

import concurrent.futures
import http.client
import json
import math
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from common import BINARY, ROOT, STORE_METRICS, has_store, metrics_in, tool
from grafana import dashboard, queries, substituted

LOAD_SECONDS = 25

# Without [listen.tls] and files that change there are no such series, as with the store.
NOT_HERE = {"chat_gateway_tls_handshake_failures_total", "chat_gateway_files_reloads_total"}
CALL = "/v4/{}?sdkappid=88888888&identifier=administrator&usersig={}"
GROUP = "group_open_http_svc"


class Started:
    """Processes that end with the test, and lines of their output."""

    def __init__(self) -> None:
        self.processes = []

    def start(self, *command, until: str, env=None) -> tuple[subprocess.Popen, str]:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        self.processes.append(process)
        seen = []
        for line in process.stdout:
            seen.append(line)
            if until in line:
                threading.Thread(target=lambda: [None for _ in process.stdout], daemon=True).start()
                return process, line
        raise SystemExit(f"{command[0]} ended: {''.join(seen)}")

    def end(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def post(address: str, command: str, body: dict | str, signature: str = "xxx") -> dict:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        text = body if isinstance(body, str) else json.dumps(body)
        connection.request("POST", CALL.format(command, signature), text)
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, json.JSONDecodeError):
        return {}
    finally:
        connection.close()


def attribute(group: str) -> dict:
    return {"GroupId": group, "GroupAttr": [{"key": f"k{random.randrange(8)}", "value": "v"}]}


def load(address: str, until: float) -> int:
    """A caller who does a bit of everything."""
    calls = 0
    while time.monotonic() < until:
        extension = {"GroupId": "g", "MsgSeq": 1, "OperateType": 1, "ExtensionList": [{"Key": f"k{calls}", "Value": "v"}]}
        for command, body, signature in [
            ("modify_group_attr", attribute("@TGS#hot"), "xxx"),
            ("set_group_attr", attribute(f"@TGS#{random.randrange(50)}"), "xxx"),
            ("delete_group_attr", {"GroupId": "@TGS#hot", "GroupAttr": [{"key": "k1"}]}, "xxx"),
            ("clear_group_attr", {"GroupId": "@TGS#cold"}, "xxx"),
            ("get_group_attr", {"GroupId": "@TGS#hot"}, "xxx"),
            ("modify_group_attr", attribute("missing"), "xxx"),
            ("modify_group_attr", attribute("@TGS#signed"), "forged"),
            ("modify_group_attr", "no JSON", "xxx"),
        ]:
            post(address, f"{GROUP}/{command}", body, signature)
            calls += 1
        post(address, "openim_msg_ext_http_svc/group_set_key_values", extension)
        post(address, "openim_msg_ext_http_svc/group_get_key_values", {"GroupId": "g", "MsgSeq": 1})
        post(address, "im_open_login_svc/account_check", {})
        calls += 3
    return calls


class Prometheus:
    def __init__(self, started: Started, work: Path, admin: str) -> None:
        (work / "rules.yaml").write_text((ROOT / "deploy/prometheus/rules.yaml").read_text())
        (work / "prometheus.yaml").write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            "rule_files: [rules.yaml]\n"
            f"scrape_configs: [{{job_name: chat-gateway, static_configs: [{{targets: ['{admin}']}}]}}]\n"
        )
        self.address = f"127.0.0.1:{free_port()}"
        started.start(
            tool("prometheus"), f"--config.file={work}/prometheus.yaml", f"--storage.tsdb.path={work}/data",
            f"--web.listen-address={self.address}", until="ready to receive web requests",
        )  # fmt: skip

    def get(self, path: str, **arguments) -> list | dict:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from error

    def finite(self, query: str) -> list[float]:
        values = [float(series["value"][1]) for series in self.get("query", query=query)["result"]]
        return [value for value in values if math.isfinite(value)]

    def wait_for(self, alert: str, seconds: float) -> dict:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for found in self.get("alerts")["alerts"]:
                if found["labels"]["alertname"] == alert and found["state"] == "firing":
                    return found
            time.sleep(0.5)
        raise SystemExit(f"live: {alert} did not fire within {seconds:.0f} s")


def check_queries(prometheus: Prometheus) -> list[str]:
    problems, asked = [], 0
    for title, expr in queries(dashboard(ROOT / "deploy")):
        expr = substituted(expr)
        try:
            values = prometheus.finite(expr)
        except ValueError as error:
            problems.append(f"{title}: {error}: {expr}")
            continue
        asked += 1
        needs_store = bool(metrics_in(expr) & STORE_METRICS.keys())
        if needs_store and not has_store():
            print(f"live: {title}: no data, since this version has no [shared]")
            if values:
                problems.append(f"{title}: data of a store that there is not")
        elif metrics_in(expr) <= NOT_HERE:
            print(f"live: {title}: no data, since this gateway has neither TLS nor files")
            if any(prometheus.finite(name) for name in metrics_in(expr)):
                problems.append(f"{title}: the metric has data, but {expr} has not been asked for any")
        elif not values:
            problems.append(f"{title}: no data: {expr}")
    for variable in dashboard(ROOT / "deploy")["templating"]["list"]:
        if variable["type"] == "query":
            series, label = substituted(variable["query"]["query"])[len("label_values(") : -1].rsplit(", ", 1)
            found = prometheus.get(f"label/{label}/values", **{"match[]": series})
            if not found:
                problems.append(f"variable {variable['name']}: no values")
    for mark in dashboard(ROOT / "deploy")["annotations"]["list"]:
        prometheus.get("query", query=substituted(mark["expr"]))
    if asked < 30:
        problems.append(f"only {asked} queries")
    # What shows nothing must be noticed.
    if prometheus.finite("chat_gateway_no_such_metric"):
        problems.append("a metric that there is not has data")
    return problems


def main() -> int:
    started = Started()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        try:
            return run(started, work)
        finally:
            started.end()


def run(started: Started, work: Path) -> int:
    store = None
    simulator, line = started.start(
        BINARY, "simulate", "--listen", "127.0.0.1:0", "--latency", "5ms", "--jitter", "10ms",
        "--fail", "10002=0.05", "--seed", "7", until="127.0.0.1:",
    )  # fmt: skip
    api = "127.0.0.1:" + "".join(c for c in line.split("127.0.0.1:")[1][:5] if c.isdigit())
    settings = ['listen.traffic="127.0.0.1:0"', 'listen.admin="127.0.0.1:0"', f'upstream.url="http://{api}"',
                'state.hold="0s"', 'log.format="json"', 'retry.first_backoff="10ms"']  # fmt: skip
    if has_store():
        port = free_port()
        (work / "redis.conf").write_text("requirepass of-the-test\n")
        (work / "redis-password").write_text("of-the-test\n")
        store, _ = started.start(
            tool("redis-server"), work / "redis.conf", "--port", port, "--bind", "127.0.0.1", "--save", "",
            "--dir", work, until="Ready to accept connections",
        )  # fmt: skip
        settings.append(f'shared.redis="redis://127.0.0.1:{port}"')
        settings.append(f'shared.password_file="{work}/redis-password"')
    (work / "gateway.toml").write_text("")
    overrides = [word for setting in settings for word in ("--set", setting)]
    _, line = started.start(BINARY, "serve", "--config", work / "gateway.toml", *overrides, until="is ready", env={})
    ready = json.loads(line)
    traffic, admin = ready["traffic"], ready["admin"]
    prometheus = Prometheus(started, work, admin)

    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        callers = [pool.submit(load, traffic, begun + LOAD_SECONDS) for _ in range(12)]
        time.sleep(LOAD_SECONDS - 3)
        problems = check_queries(prometheus)
        firing = [alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"]]
        calls = sum(caller.result() for caller in callers)
    if "ChatGatewayQuotaRefused" in firing:
        problems.append("an alert about refusals fires although nobody else spends the quota")
    print(f"live: {calls} calls in {LOAD_SECONDS} s, {len(problems)} problems")

    # Somebody else spends the quota of the group, past the gateway.
    def spend(past: float) -> None:
        while time.monotonic() < past:
            post(api, f"{GROUP}/modify_group_attr", attribute("@TGS#hot"))
            time.sleep(0.05)

    def write(past: float) -> None:
        while time.monotonic() < past:
            post(traffic, f"{GROUP}/modify_group_attr", attribute("@TGS#hot"))

    until = time.monotonic() + 6
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for work_of in [spend] * 2 + [write] * 6:
            pool.submit(work_of, until)
        fired = prometheus.wait_for("ChatGatewayQuotaRefused", 15)
        print(f"live: {fired['annotations']['summary']}")
    if fired["labels"]["quota"] != "group_attributes":
        problems.append(f"the wrong quota: {fired}")

    if store and prometheus.finite("chat_gateway_shared_store_up") != [1.0]:
        problems.append("the store is there, and the gateway does not say so")

    # New settings with a mistake.
    (work / "gateway.toml").write_text("[queue]\nmax_call = 1\n")
    print(f"live: {prometheus.wait_for('ChatGatewaySettingsRefused', 20)['annotations']['summary']}")

    # The API goes away, and the store with it. Calls with a short deadline find out.
    simulator.send_signal(signal.SIGKILL)
    if store:
        store.send_signal(signal.SIGKILL)
    post_until = time.monotonic() + 45
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        stop = threading.Event()

        def knock() -> None:
            while not stop.is_set() and time.monotonic() < post_until:
                post(traffic, f"{GROUP}/set_group_attr", attribute(f"@TGS#{random.randrange(1000)}"))
                time.sleep(0.2)

        pool.submit(knock)
        try:
            for alert in ["ChatGatewayBreakerOpen"] + ["ChatGatewayStoreDown"] * bool(store):
                print(f"live: {prometheus.wait_for(alert, 45)['annotations']['summary']}")
        finally:
            stop.set()
        # Its callers end with the gateway.
        started.end()

    for problem in problems:
        print(f"live: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""What README.md tells callers, done: its SDK snippet and its curl line, against the simulator and a
gateway. Needs the SDK in the environment that runs this."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from common import BINARY, README
from live import Started

SNIPPET = re.compile(r"```python\n(.*?tcim_client.*?)```", re.S)
CURL = re.compile(r"^\$ (curl (?:.*\\\n)*.*)$", re.M)


def main() -> int:
    started = Started()
    try:
        _, line = started.start(BINARY, "simulate", "--listen", "127.0.0.1:0", until="127.0.0.1:", env={})
        api = re.search(r"127\.0\.0\.1:\d+", line)[0]
        with tempfile.NamedTemporaryFile(suffix=".toml") as settings:
            overrides = ['listen.traffic="127.0.0.1:0"', 'listen.admin="127.0.0.1:0"', 'state.hold="0s"',
                         f'upstream.url="http://{api}"', 'log.format="json"']  # fmt: skip
            words = [word for setting in overrides for word in ("--set", setting)]
            _, line = started.start(BINARY, "serve", "--config", settings.name, *words, until="is ready", env={})
        return run(json.loads(line)["traffic"])
    finally:
        started.end()


def run(gateway: str) -> int:
    def here(text: str) -> str:
        assert "127.0.0.1:8080" in text, text
        return text.replace("127.0.0.1:8080", gateway)

    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "snippet.py"
        file.write_text(here(SNIPPET.search(README)[1]))
        done = subprocess.run([sys.executable, file], capture_output=True, text=True)
    codes, batches = (done.stdout.splitlines() + ["", ""])[:2]
    largest = max(map(int, re.findall(r"\d+", batches)), default=0)
    if codes != "{0}" or largest < 5:
        print(f"callers: the SDK got {done.stdout}{done.stderr}", file=sys.stderr)
        return 1
    lines = CURL.findall(README)
    for line in lines:
        done = subprocess.run(["bash", "-c", here(line)], capture_output=True, text=True)
        if "x-chat-gateway-origin: upstream" not in done.stdout or '"ActionStatus":"OK"' not in done.stdout:
            print(f"callers: curl got {done.stdout}{done.stderr}", file=sys.stderr)
            return 1
    print(f"callers: the SDK wrote with up to {largest} calls in one, {len(lines)} curl line answered")
    return 0 if lines else 1


if __name__ == "__main__":
    sys.exit(main())

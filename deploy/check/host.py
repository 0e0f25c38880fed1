"""What a host takes: the unit by systemd-analyze, the Dockerfile by hadolint, all YAML by yamllint."""

import re
import subprocess
import tempfile
from pathlib import Path

from common import seconds, tool

# Of 10, as `systemd-analyze security` counts: what a service that needs the network and nothing else gets.
EXPOSURE = 15
YAMLLINT = "{extends: default, rules: {document-start: disable, line-length: disable, braces: {max-spaces-inside: 0}, octal-values: disable, comments-indentation: disable, truthy: {check-keys: false}}}"


def check(deploy: Path) -> list[str]:
    problems = []
    unit = (deploy / "systemd/chat-gateway.service").read_text()
    with tempfile.TemporaryDirectory() as work:
        copy = Path(work) / "chat-gateway.service"
        # The binary is not installed here.
        copy.write_text(unit.replace("/usr/bin/chat-gateway serve", "/bin/true serve"))
        for arguments in (["verify"], ["security", "--offline=true", f"--threshold={EXPOSURE}"]):
            done = subprocess.run(
                [tool("systemd-analyze"), *arguments, copy], capture_output=True, text=True
            )
            said = [line for line in done.stderr.splitlines() if copy.name in line]
            if done.returncode or said:
                problems.append(f"systemd-analyze {arguments[0]}: {said} {done.stdout[-200:]}")
    value = dict(re.findall(r"^(\w+)=(.*)$", unit, re.M))
    if seconds(f"{value['TimeoutStopSec']}s") < 35:
        problems.append("the unit is killed before it has drained")
    if value.get("ExecStart") != "/usr/bin/chat-gateway serve --config /etc/chat-gateway/gateway.toml":
        problems.append(f"ExecStart={value.get('ExecStart')}")
    lint = subprocess.run([tool("hadolint"), deploy / "Dockerfile"], capture_output=True, text=True)
    problems += [f"hadolint: {line}" for line in (lint.stdout + lint.stderr).splitlines()]
    final = (deploy / "Dockerfile").read_text().rpartition("FROM ")[2]
    if not final.startswith("scratch") or not re.search(r"^USER 65532:65532$", final, re.M):
        problems.append("Dockerfile: the last stage is not scratch, or runs as root")
    files = [str(f) for f in deploy.rglob("*.yaml")]
    lint = subprocess.run(
        [tool("yamllint"), "--strict", "-f", "parsable", "-d", YAMLLINT, *files], capture_output=True, text=True
    )
    problems += [f"yamllint: {line}" for line in (lint.stdout + lint.stderr).splitlines()]
    if len(files) < 15:
        problems.append(f"only {len(files)} files of YAML")
    return problems

"""What the checkers share: where things are, and how the program and the tools are called."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BINARY = ROOT / "target" / "debug" / "chat-gateway"

# What a limit is at the API: the sum over all replicas must not exceed it.
API_LIMITS = {"group_attributes": 5, "message_extension": 200, "api": 200}

# In the contract, and exported only by a gateway with [shared].
STORE_METRICS = {
    "chat_gateway_shared_store_up": "gauge",
    "chat_gateway_shared_store_seconds": "histogram",
}


def table(head: str) -> list[list[str]]:
    """The rows of the table of README.md whose head begins so, each as its cells."""
    lines = README.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(head))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def metrics() -> dict[str, str]:
    """Every metric that README.md names, with its type; a test holds that against the program."""
    found = {row[0].strip("`"): row[1] for row in table("| metric | type |")}
    assert len(found) > 15, found
    return found


def metrics_in(expr: str) -> set[str]:
    """The metrics that a query names, without the suffixes of histograms."""
    names = set(re.findall(r"\b(?:chat_gateway|process)_[a-z0-9_]+|\bup\b", expr))
    kinds = metrics() | STORE_METRICS
    plain = set()
    for name in names:
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        plain.add(base if kinds.get(base) == "histogram" else name)
    return plain


def unknown(names: set[str]) -> set[str]:
    """Those that no gateway exports. `process_*` and `up` are the scraper's and the system's."""
    known = metrics() | STORE_METRICS
    return {n for n in names if n != "up" and not n.startswith("process_") and n not in known}


def has_store() -> bool:
    """Whether this version has [shared]."""
    return not any("`[shared]`" in row[0] for row in later())


def later() -> list[list[str]]:
    """README.md's settings of later versions, while it has any."""
    if "| setting | until then |" not in README:
        return []
    return table("| setting | until then |")


def gateway_check(config: Path) -> tuple[dict, list[str]]:
    """The effective settings of a file, and what is wrong with it."""
    done = subprocess.run(
        [BINARY, "check", "--config", config], capture_output=True, text=True, env={}
    )
    if done.returncode == 0:
        return tomllib.loads(done.stdout), []
    wrong = [line for line in done.stderr.splitlines() if line.strip()]
    written = tomllib.loads(config.read_text())
    if not has_store() and "shared" in written:
        # Refused as what it is, and for nothing else: then the rest of the file is right.
        rest = [line for line in wrong if not ("shared" in line and "not in this version" in line)]
        if len(rest) < len(wrong):
            return ({} if rest else written), rest
    return {}, wrong or [f"check ended with {done.returncode}"]


def seconds(text: str) -> float:
    """A duration of the settings, in seconds."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    parts = re.findall(r"(\d+)\s*(ms|s|m|h)", text)
    assert parts, text
    return sum(int(number) * units[unit] for number, unit in parts)


def size(text: str) -> int:
    """A quantity of Kubernetes or a size of the settings, in bytes; an error if it is neither."""
    match = re.fullmatch(r"(\d+)\s*(Ki|Mi|Gi|KiB|MiB|GiB|kB|MB|GB|k|M|G|m|g|B|)", str(text))
    if not match:
        raise ValueError(f"{text!r} is no size")
    unit = match[2].removesuffix("B")
    factor = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 1000, "M": 10**6, "G": 10**9}
    factor |= {"m": 2**20, "g": 2**30}
    return int(match[1]) * factor[unit]


def documents(text: str) -> list[dict]:
    """The documents of a YAML stream."""
    return [document for document in yaml.safe_load_all(text) if document]


def tool(name: str) -> str:
    """The path of a program that must be there."""
    found = shutil.which(name) or shutil.which(name, path=ROOT / "target/tools/venv/bin")
    if not found:
        raise SystemExit(f"{name} is not installed: make deploy-tools")
    return found

"""The dashboard, without a Prometheus: known metrics only, none forgotten, panels that do not overlap.
What its queries return is checked by live.py, its types by grafana_types.py. That Grafana imports it can
only be seen in Grafana."""

import json
import re
from pathlib import Path

import yaml

from common import STORE_METRICS, metrics, metrics_in, unknown
from prometheus import rules

# Metrics that neither a panel nor an alert uses, with the reason.
UNUSED: dict[str, str] = {
    "chat_gateway_trace_spans_total": "about traces themselves, which no call depends on",
}

ROWS = ["Overview", "Per command", "Quotas", "Upstream health", "Shared store", "Saturation"]


def dashboard(deploy: Path) -> dict:
    return json.loads((deploy / "grafana/dashboards/chat-gateway.json").read_text())


def queries(board: dict) -> list[tuple[str, str]]:
    """Every query of a panel, with the panel's title."""
    return [(p["title"], t["expr"]) for p in board["panels"] for t in p.get("targets", [])]


def substituted(expr: str) -> str:
    """The query as Grafana would send it, with every variable at `All`; what is left of `$` is an error."""
    for name, value in {
        "$__rate_interval": "20s",
        "$__range": "2m",
        "$job": "chat-gateway",
        "$instance": ".*",
        "$command": ".*",
    }.items():
        expr = expr.replace(name, value)
    return expr


def check(deploy: Path) -> list[str]:
    board = dashboard(deploy)
    problems = []
    used = set()
    for title, expr in queries(board):
        used |= metrics_in(expr)
        problems += [f"{title}: no gateway exports {name}" for name in unknown(metrics_in(expr))]
        if "$" in substituted(expr):
            problems.append(f"{title}: unknown variable in {expr}")
        if "$job" not in expr or "$instance" not in expr:
            problems.append(f"{title}: {expr} does not follow the variables")
    for rule in rules(deploy):
        used |= metrics_in(rule["expr"])
    for name in (metrics() | STORE_METRICS).keys() - used - UNUSED.keys():
        problems.append(f"{name} is used by no panel and no alert, nor listed as unused on purpose")
    for name in UNUSED:
        if name in used or name not in metrics():
            problems.append(f"{name} is listed as unused, but is used or gone")
    titles = [p["title"] for p in board["panels"] if p["type"] == "row"]
    for row in ROWS:
        if not any(title.startswith(row) for title in titles):
            problems.append(f"there is no row {row}")
    cells, ids = {}, set()
    for panel in board["panels"]:
        if panel["id"] in ids:
            problems.append(f"two panels have the id {panel['id']}")
        ids.add(panel["id"])
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            problems.append(f"{panel['title']} is wider than the grid")
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if (x, y) in cells:
                    problems.append(f"{panel['title']} covers {cells[x, y]}")
                    break
                cells[x, y] = panel["title"]
    text = (deploy / "grafana/dashboards/chat-gateway.json").read_text()
    for source in set(re.findall(r'"datasource": \{[^}]*?"uid": "([^"]*)"', text)) - {"${datasource}"}:
        problems.append(f"the data source is not the variable but {source}")
    variables = {v["name"]: v for v in board["templating"]["list"]}
    if variables.get("datasource", {}).get("type") != "datasource":
        problems.append("there is no variable for the data source")
    unset = set(re.findall(r"\$(\w+)", " ".join(e for _, e in queries(board))))
    for name in unset - {"__rate_interval", "__range"} - variables.keys():
        problems.append(f"${name} is no variable of the dashboard")
    provisioning = deploy / "grafana/provisioning"
    sources = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())
    default = variables["datasource"]["current"]["value"] if "datasource" in variables else None
    if [s["uid"] for s in sources["datasources"]] != [default]:
        problems.append(f"the provisioned data source is not {default}")
    providers = yaml.safe_load((provisioning / "dashboards/chat-gateway.yaml").read_text())
    path = providers["providers"][0]["options"]["path"]
    mounts = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    if not any(mount.split(":")[1] == path for mount in mounts):
        problems.append(f"compose.yaml does not mount the dashboards at {path}")
    if len(used) < 15 or len(ids) < 25:
        problems.append(f"only {len(ids)} panels and {len(used)} metrics")
    return problems

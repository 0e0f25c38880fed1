"""Alerting rules: they parse, every alert is tested both ways and has its runbook, every metric exists."""

import re
import subprocess
from pathlib import Path

import yaml

from common import metrics_in, tool, unknown

SECTION = re.compile(r"^## (\w+)$", re.M)


def rules(deploy: Path) -> list[dict]:
    groups = yaml.safe_load((deploy / "prometheus/rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def check(deploy: Path) -> list[str]:
    folder = deploy / "prometheus"
    problems = []
    for arguments in (["check", "rules"], ["test", "rules"]):
        file = "rules.yaml" if arguments[0] == "check" else "rules.test.yaml"
        done = subprocess.run(
            [tool("promtool"), *arguments, file], cwd=folder, capture_output=True, text=True
        )
        if done.returncode or "SUCCESS" not in done.stdout:
            problems.append(f"promtool {' '.join(arguments)}: {done.stdout}{done.stderr}")
    fired, silent = set(), set()
    for test in yaml.safe_load((folder / "rules.test.yaml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            (fired if case["exp_alerts"] else silent).add(case["alertname"])
    runbook = (folder / "RUNBOOK.md").read_text()
    sections = dict(zip(SECTION.findall(runbook), SECTION.split(runbook)[2::2]))
    names = set()
    for rule in rules(deploy):
        name = rule["alert"]
        names.add(name)
        problems += [f"{name}: no gateway exports {m}" for m in unknown(metrics_in(rule["expr"]))]
        if rule["labels"].get("severity") not in ("page", "ticket"):
            problems.append(f"{name}: the severity is neither page nor ticket")
        if rule["annotations"].get("runbook_url") != f"RUNBOOK.md#{name.lower()}":
            problems.append(f"{name}: the runbook_url is not RUNBOOK.md#{name.lower()}")
        for part in ("**Means**", "**Look at**", "**Do**"):
            if part not in sections.get(name, ""):
                problems.append(f"RUNBOOK.md: {name} has no {part}")
        if name not in fired or name not in silent:
            problems.append(f"{name}: no test that it fires, or none that it keeps silent")
    if sorted(names) != sorted(sections):
        problems.append(f"RUNBOOK.md: other sections than alerts: {names ^ set(sections)}")
    scrape = yaml.safe_load((folder / "prometheus.yaml").read_text())
    jobs = [job["job_name"] for job in scrape["scrape_configs"]]
    if jobs != ["chat-gateway"] or scrape["rule_files"] != ["rules.yaml"]:
        problems.append(f"prometheus.yaml: job {jobs}, rules {scrape['rule_files']}")
    if len(names) < 8:
        problems.append(f"only {len(names)} alerts")
    return problems

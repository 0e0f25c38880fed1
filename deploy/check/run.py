"""Runs checkers, and each one's seeded faults: a checker that overlooks one has checked nothing.

python3 deploy/check/run.py prometheus grafana
"""

import importlib
import shutil
import sys
import tempfile
import time
from pathlib import Path

import yaml

from common import ROOT

FAULTS = yaml.safe_load((Path(__file__).parent / "faults.yaml").read_text())


def copy(work: str) -> Path:
    deploy = Path(work) / "deploy"
    shutil.copytree(ROOT / "deploy", deploy, ignore=shutil.ignore_patterns("check"))
    return deploy


def overlooked(checker, fault: dict) -> str | None:
    """What is wrong if the fault is seeded and not reported."""
    with tempfile.TemporaryDirectory() as work:
        deploy = copy(work)
        file = deploy / fault["file"]
        text = file.read_text()
        if fault["find"] not in text:
            return f"{fault['file']} has no {fault['find']!r} to seed a fault in"
        file.write_text(text.replace(fault["find"], fault["put"], 1))
        found = checker.check(deploy)
        if not any(fault["says"] in problem for problem in found):
            return f"overlooked in {fault['file']}: {fault['put']!r}; said only {found[:3]}"
    return None


def main(names: list[str]) -> int:
    wrong = 0
    for name in names:
        begun = time.monotonic()
        checker = importlib.import_module(name)
        problems = checker.check(ROOT / "deploy")
        faults = FAULTS.get(name, [])
        if not faults:
            problems.append("there is no seeded fault for it in faults.yaml")
        problems += filter(None, (overlooked(checker, fault) for fault in faults))
        for problem in problems:
            print(f"{name}: {problem}", file=sys.stderr)
        wrong += len(problems)
        took = time.monotonic() - begun
        print(f"{name}: {len(problems)} problems, {len(faults)} seeded faults, {took:.1f} s")
    return 1 if wrong or not names else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

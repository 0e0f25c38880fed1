"""Every settings file under deploy/ is one that the gateway takes."""

from pathlib import Path

from common import gateway_check


def check(deploy: Path) -> list[str]:
    files = sorted(deploy.rglob("*.toml"))
    problems = [f"{f.relative_to(deploy)}: {line}" for f in files for line in gateway_check(f)[1]]
    if len(files) < 5:
        problems.append(f"only {len(files)} files of settings")
    return problems

"""compose.yaml: what it mounts and calls is there, its ports are those of the settings, and nobody but
this machine reaches them."""

import shlex
from pathlib import Path

import yaml

from common import ROOT, gateway_check, seconds, size


def check(deploy: Path) -> list[str]:
    problems = []
    services = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]
    wanted = {"gateway-1", "gateway-2", "simulator", "redis", "callers", "prometheus", "grafana"}
    if set(services) != wanted:
        problems.append(f"other services: {set(services) ^ wanted}")
    settings, wrong = gateway_check(deploy / "compose/gateway.toml")
    problems += [f"gateway.toml: {line}" for line in wrong]
    published = []
    for name, service in services.items():
        image = service.get("image", "")
        if ":" not in image or image.endswith(":latest"):
            problems.append(f"{name}: the image {image!r} has no version")
        for volume in service.get("volumes", []):
            source, _, mode = volume.split(":")
            if not (deploy / source).exists() or mode != "ro":
                problems.append(f"{name}: mounts {volume}")
        for port in service.get("ports", []):
            host, outside, _ = port.split(":")
            published.append(outside)
            if host != "127.0.0.1":
                problems.append(f"{name}: {port} is open to the network")
        for other in service.get("depends_on", []):
            if other not in services:
                problems.append(f"{name}: depends on {other}, which there is not")
    if len(published) != len(set(published)):
        problems.append(f"a port is published twice: {published}")
    build = services.get("gateway-1", {}).get("build", {})
    if not (deploy / build.get("context", "-") / "deploy/Dockerfile").is_file() and deploy == ROOT / "deploy":
        problems.append(f"gateway-1: builds {build}")
    gateways = {name: s for name, s in services.items() if name.startswith("gateway-")}
    for name, service in gateways.items():
        if "/etc/chat-gateway/gateway.toml" not in service["command"]:
            problems.append(f"{name}: its settings are not those that are mounted")
        inside = {port.split(":")[2] for port in service["ports"]}
        bound = {settings["listen"][port].rpartition(":")[2] for port in ("traffic", "admin")} if settings else inside
        if inside != bound:
            problems.append(f"{name}: publishes {inside}, the settings say {bound}")
        if settings and size(service["mem_limit"]) < 2 * size(settings["queue"]["max_bytes"]) + size("64Mi"):
            problems.append(f"{name}: what waits may need more memory than the limit")
        if settings and seconds(service["stop_grace_period"]) < seconds(settings["shutdown"]["grace"]) + 5:
            problems.append(f"{name}: is killed before it has drained")
    if settings:
        upstream = settings["upstream"]["url"].removeprefix("http://").split(":")
        if upstream[0] not in services or f"0.0.0.0:{upstream[1]}" not in services[upstream[0]]["command"]:
            problems.append(f"nobody listens at {settings['upstream']['url']}")
        shared = settings.get("shared", {})
        if not shared.get("redis", "").startswith("redis://redis:6379") or shared["replicas"] != len(gateways):
            problems.append(f"the gateways do not share their windows: {shared}")
    scrape = yaml.safe_load((deploy / "prometheus/prometheus.yaml").read_text())["scrape_configs"]
    targets = [t for job in scrape for c in job["static_configs"] for t in c["targets"]]
    if sorted(targets) != sorted(f"{name}:9090" for name in gateways):
        problems.append(f"Prometheus scrapes {targets}")
    source = yaml.safe_load((deploy / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    if source["datasources"][0]["url"] != "http://prometheus:9090":
        problems.append("Grafana asks another Prometheus")
    shell = services.get("callers", {}).get("command", [""])[0].replace("$$", "$")
    if not any("curl" in word for word in shlex.split(shell)):
        problems.append("the callers do not call")
    return problems

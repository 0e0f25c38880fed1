"""The manifests: every overlay renders, its objects fit the schemas of three Kubernetes versions and each
other, and the gateway takes its settings. What no schema sees is checked here: selectors, ports, sizes,
graces, and that all replicas together stay within each quota."""

import functools
import json
import re
import subprocess
import tempfile
import warnings
from pathlib import Path

import kubernetes_validate

from common import API_LIMITS, ROOT, documents, gateway_check, seconds, size, tool

OVERLAYS = ["base", "overlays/standalone", "overlays/redis", "overlays/sidecar"]
VERSIONS = ["1.30", "1.33", "1.37"]
# Kinds of the Prometheus Operator, which Kubernetes has no schema for: the fields that are used.
FOREIGN = {"ServiceMonitor": {"jobLabel", "selector", "endpoints"}}
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# The slowest end of the sample app.
APP_GRACE = 15


def render(folder: Path) -> list[dict]:
    done = subprocess.run([tool("kubectl"), "kustomize", folder], capture_output=True, text=True)
    if done.returncode or "deprecated" in done.stderr:
        raise ValueError(f"kustomize: {done.stderr.strip()}")
    return documents(done.stdout)


def validate(overlay: str, objects: list[dict]) -> list[str]:
    problems = []
    for thing in objects:
        if thing["kind"] in FOREIGN:
            extra = set(thing["spec"]) ^ FOREIGN[thing["kind"]]
            problems += [f"{overlay}: {thing['kind']} with {name}?" for name in extra]
            continue
        for version in VERSIONS:
            reason = misfit(json.dumps(thing, sort_keys=True), version)
            if reason:
                problems.append(f"{overlay}: {thing['kind']} {thing['metadata']['name']} ({version}): {reason}")
    return problems


@functools.cache
def misfit(thing: str, version: str) -> str | None:
    """Why an object does not fit the schema of a version."""
    try:
        # No schema for a kind is a warning only; here it is a mistake.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kubernetes_validate.validate(json.loads(thing), version, strict=True)
    except Exception as error:  # noqa: BLE001: whatever it says is to be read
        return getattr(error, "message", None) or str(error) or type(error).__name__
    return None


def matches(selector: dict, labels: dict) -> bool:
    return bool(selector) and selector.items() <= labels.items()


class Overlay:
    def __init__(self, name: str, objects: list[dict]) -> None:
        self.name, self.objects, self.problems = name, objects, []

    def of(self, kind: str) -> list[dict]:
        return [thing for thing in self.objects if thing["kind"] == kind]

    def say(self, problem: str) -> None:
        self.problems.append(f"{self.name}: {problem}")

    def check(self) -> list[str]:
        for thing in self.objects:
            name = thing["metadata"]["name"]
            if not NAME.fullmatch(name):
                self.say(f"{thing['kind']} {name!r} is no DNS name")
        gateways = 0
        for deployment in self.of("Deployment"):
            gateways += self.deployment(deployment)
        if gateways != 1:
            self.say(f"{gateways} gateways")
        self.services()
        self.targets()
        return self.problems

    def deployment(self, deployment: dict) -> int:
        name, spec = deployment["metadata"]["name"], deployment["spec"]
        template = spec["template"]
        pod, labels = template["spec"], template["metadata"]["labels"]
        if not matches(spec["selector"]["matchLabels"], labels):
            self.say(f"{name}: the selector does not match its own pods")
        if pod.get("automountServiceAccountToken") is not False:
            self.say(f"{name}: the pods get a token that they do not need")
        if not pod["securityContext"].get("runAsNonRoot"):
            self.say(f"{name}: may run as root")
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        gateway = None
        pre_stop = 0
        for container in pod.get("initContainers", []) + pod["containers"]:
            self.container(name, container, volumes)
            hook = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
            pre_stop = max(pre_stop, hook.get("seconds", 0))
            if container["name"] == "gateway":
                gateway = container
        if gateway is None:
            return 0
        sidecar = gateway in pod.get("initContainers", [])
        if sidecar and gateway.get("restartPolicy") != "Always":
            self.say(f"{name}: the gateway is no sidecar: the pod would wait for it to end")
        if not sidecar and not gateway.get("lifecycle", {}).get("preStop"):
            self.say(f"{name}: no preStop: calls come after the port is closed")
        version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
        if gateway["image"] != f"chat-gateway:{version}":
            self.say(f"{name}: the image {gateway['image']} is not the version {version}")
        probes = {probe: gateway.get(probe, {}).get("httpGet", {}) for probe in ("startupProbe", "livenessProbe")}
        if [p.get("path") for p in probes.values()] != ["/readyz", "/livez"]:
            self.say(f"{name}: probes ask {probes}")
        settings = self.settings(name, gateway, volumes)
        if settings:
            self.fits(name, deployment, gateway, settings, pre_stop, APP_GRACE if sidecar else 0, sidecar)
        return 1

    def container(self, name: str, container: dict, volumes: dict) -> None:
        name = f"{name}/{container['name']}"
        security = container.get("securityContext", {})
        if security.get("readOnlyRootFilesystem") is not True:
            self.say(f"{name}: the root file system can be written to")
        if security.get("allowPrivilegeEscalation") is not False or security.get("capabilities") != {"drop": ["ALL"]}:
            self.say(f"{name}: keeps privileges")
        if container["image"].rpartition(":")[2] in ("", "latest") or ":" not in container["image"]:
            self.say(f"{name}: the image {container['image']} has no version")
        resources = container.get("resources", {})
        try:
            if size(resources["limits"]["memory"]) < size(resources["requests"]["memory"]):
                self.say(f"{name}: less memory at most than at least")
        except (KeyError, ValueError) as error:
            self.say(f"{name}: memory: {error}")
        if not re.fullmatch(r"\d+m|\d+(\.\d+)?", str(resources.get("requests", {}).get("cpu"))):
            self.say(f"{name}: cpu {resources.get('requests', {}).get('cpu')}")
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            action = container.get(probe, {})
            port = (action.get("httpGet") or action.get("tcpSocket") or {}).get("port")
            if port is not None and port not in ports and port not in ports.values():
                self.say(f"{name}: {probe} asks the port {port}, which it has not")
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                self.say(f"{name}: mounts {mount['name']}, which is no volume")
        for variable in container.get("env", []):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                self.say(f"{name}: a secret in the environment")

    def settings(self, name: str, gateway: dict, volumes: dict) -> dict:
        """The effective settings that the gateway's arguments lead to."""
        file = Path(gateway["args"][gateway["args"].index("--config") + 1])
        mounts = {mount["mountPath"]: mount["name"] for mount in gateway["volumeMounts"]}
        volume = volumes.get(mounts.get(str(file.parent)), {})
        wanted = volume.get("configMap", {}).get("name")
        maps = {m["metadata"]["name"]: m["data"] for m in self.of("ConfigMap")}
        text = maps.get(wanted, {}).get(file.name)
        if text is None:
            self.say(f"{name}: no ConfigMap puts settings at {file}")
            return {}
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as copy:
            copy.write(text)
            copy.flush()
            settings, wrong = gateway_check(Path(copy.name))
        for line in wrong:
            self.say(f"{file.name}: {line}")
        return settings

    def fits(self, name, deployment, gateway, settings, pre_stop, others, sidecar) -> None:
        """The settings against the manifest around them."""
        pod = deployment["spec"]["template"]["spec"]
        ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
        for port, address in (("traffic", settings["listen"]["traffic"]), ("admin", settings["listen"]["admin"])):
            host, _, number = address.rpartition(":")
            if port in ports and ports[port] != int(number):
                self.say(f"{name}: the port {port} is {ports[port]}, the settings say {number}")
            loopback = host.startswith("127.")
            if loopback != (sidecar and port == "traffic"):
                self.say(f"{name}: {port} is bound to {host}")
        drain = pre_stop + others + seconds(settings.get("shutdown", {}).get("grace", "30s"))
        if pod.get("terminationGracePeriodSeconds", 30) < drain + 5:
            self.say(f"{name}: is killed before it has drained, which takes {drain:.0f} s")
        memory = size(gateway["resources"]["limits"]["memory"])
        if memory < 2 * size(settings["queue"]["max_bytes"]) + size("64Mi"):
            self.say(f"{name}: what waits may need more memory than the limit")
        scalers = [h["spec"]["maxReplicas"] for h in self.of("HorizontalPodAutoscaler")]
        replicas = max([deployment["spec"].get("replicas", 1), *scalers])
        if scalers and "replicas" in deployment["spec"]:
            self.say(f"{name}: replicas fights with the HorizontalPodAutoscaler")
        if "shared" in settings and settings["shared"].get("redis"):
            if settings["shared"]["replicas"] < replicas:
                self.say(f"{name}: {replicas} replicas, and a share for {settings['shared']['replicas']}")
        else:
            strategy = deployment["spec"].get("strategy", {})
            surge = strategy.get("rollingUpdate", {}).get("maxSurge")
            if strategy.get("type") != "Recreate" and surge != 0:
                self.say(f"{name}: an update runs more pods than have a share of the quotas")
            for quota, limit in API_LIMITS.items():
                if settings["quota"][quota]["limit"] * replicas > limit:
                    self.say(f"{name}: {replicas} replicas may exceed {quota} together")
            for command, own in settings["quota"]["api"].get("commands", {}).items():
                if own * replicas > 100:
                    self.say(f"{name}: {replicas} replicas may exceed the limit of {command} together")

    def services(self) -> None:
        pods = [d["spec"]["template"] for d in self.of("Deployment")]
        for service in self.of("Service"):
            name = service["metadata"]["name"]
            behind = [pod for pod in pods if matches(service["spec"]["selector"], pod["metadata"]["labels"])]
            if len(behind) != 1:
                self.say(f"Service {name}: {len(behind)} Deployments behind it")
                continue
            ports = {p["name"] for c in behind[0]["spec"]["containers"] for p in c.get("ports", [])}
            for port in service["spec"]["ports"]:
                if port["targetPort"] not in ports:
                    self.say(f"Service {name}: no container has the port {port['targetPort']}")
        for monitor in self.of("ServiceMonitor"):
            services = [s for s in self.of("Service") if matches(monitor["spec"]["selector"]["matchLabels"], s["metadata"].get("labels", {}))]
            if len(services) != 1:
                self.say(f"ServiceMonitor: {len(services)} Services match")
            for service in services:
                ports = {port["name"] for port in service["spec"]["ports"]}
                if service["metadata"]["labels"].get(monitor["spec"]["jobLabel"]) != "chat-gateway":
                    self.say("ServiceMonitor: the job is not chat-gateway, as the rules expect")
                for endpoint in monitor["spec"]["endpoints"]:
                    if endpoint["port"] not in ports or endpoint["path"] != "/metrics":
                        self.say(f"ServiceMonitor: scrapes {endpoint}")

    def targets(self) -> None:
        pods = [d["spec"]["template"]["metadata"]["labels"] for d in self.of("Deployment")]
        names = {d["metadata"]["name"] for d in self.of("Deployment")}
        for kind in ("PodDisruptionBudget", "NetworkPolicy"):
            for thing in self.of(kind):
                selector = thing["spec"].get("selector", thing["spec"].get("podSelector", {})).get("matchLabels", {})
                if not any(matches(selector, labels) for labels in pods):
                    self.say(f"{kind} {thing['metadata']['name']} selects none of these pods, or all of the namespace")
        for labels in pods:
            guards = [p for p in self.of("NetworkPolicy") if matches(p["spec"]["podSelector"].get("matchLabels", {}), labels)]
            rules = [rule for guard in guards for rule in guard["spec"].get("ingress", [])]
            if not any("Ingress" in guard["spec"]["policyTypes"] for guard in guards):
                self.say("a pod that no NetworkPolicy guards")
            for rule in rules:
                open_to_all = not rule.get("from")
                here = any("podSelector" in peer and not peer["podSelector"] for peer in rule.get("from", []))
                if (open_to_all or here) and any(port["port"] == 9090 for port in rule.get("ports", [{"port": 9090}])):
                    self.say("callers reach the admin port")
        for scaler in self.of("HorizontalPodAutoscaler"):
            if scaler["spec"]["scaleTargetRef"]["name"] not in names:
                self.say("the HorizontalPodAutoscaler scales nothing")


def check(deploy: Path) -> list[str]:
    problems, kinds = [], set()
    for name in OVERLAYS:
        try:
            objects = render(deploy / "kubernetes" / name)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        kinds |= {thing["kind"] for thing in objects}
        found = validate(name, objects)
        try:
            found += Overlay(name, objects).check()
        except (KeyError, TypeError, ValueError) as error:
            found.append(f"{name}: cannot be read: {error!r}")
        problems += found
    folders = {str(f.parent.relative_to(deploy / "kubernetes")) for f in deploy.glob("kubernetes/**/kustomization.yaml")}
    if folders != set(OVERLAYS):
        problems.append(f"other overlays than are checked: {folders ^ set(OVERLAYS)}")
    wanted = {"Deployment", "Service", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler", "ServiceMonitor"}
    if not problems and not wanted <= kinds:
        problems.append(f"no {wanted - kinds}")
    return problems

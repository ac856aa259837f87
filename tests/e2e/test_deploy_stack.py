"""The compose stack, the Kubernetes manifests and the topic script: all references are valid, and each program accepts its files.

The tests need no container engine. They run Prometheus, Alertmanager, the agent and the topic script of the stack as processes.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import kubernetes_validate
import pytest
import yaml
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from agent.alerts.alertmanager_request import AGENT_LOST, AGENT_RUNNING
from agent.cli.demo.guest import GuestKind
from agent.common.config_types import expand_credentials_directory
from agent.config.loader import load_config
from deploy.kubernetes.prometheus_rule import FILES, prometheus_rule
from tests.integration.prometheus.test_rules import ROOT, promtool, rules
from tests.lab.agent_process import AgentProcess
from tests.lab.fixtures import StartGuest, StartPrometheus
from tests.lab.kafka import KafkaCluster
from tests.lab.machine import free_port, require
from tests.lab.waiting import DEADLINE_SECONDS, until

COMPOSE: Final = ROOT / "deploy/compose"
KUBERNETES: Final = ROOT / "deploy/kubernetes"
STACK: Final[Mapping[str, Any]] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
SERVICES: Final[Mapping[str, Any]] = STACK["services"]
MOUNTS: Final = [
    (name, *mount.split(":")[:2]) for name, service in SERVICES.items() for mount in service.get("volumes", ())
]


# --- Compose ---


@pytest.mark.parametrize(("service", "source", "target"), MOUNTS)
def test_each_mounted_file_exists(service: str, source: str, target: str) -> None:
    assert target.startswith("/")
    if source.startswith("."):
        assert (COMPOSE / source).exists(), f"{service} mounts {source}"
    elif not source.startswith("/run/"):
        assert source in STACK["volumes"]


def test_services_depend_on_and_talk_to_services_of_the_stack() -> None:
    for name, service in SERVICES.items():
        assert service.keys() <= KEYS, name
        assert set(service.get("depends_on", {})) <= SERVICES.keys(), name
        assert "build" in service or re.fullmatch(r"[\w./-]+:v?[\d.]+", service["image"]), f"{name} has no version"
    build = SERVICES["agent"]["build"]
    assert (COMPOSE / build["context"] / build["dockerfile"]).is_file()
    settings = "".join(
        path.read_text() for path in COMPOSE.rglob("*") if path.suffix in (".yml", ".yaml") and path.is_file()
    )
    hosts = set(re.findall(r'(?:http://|")(\w+):\d{4}\b', settings)) - {"localhost"}
    assert hosts <= SERVICES.keys()
    assert hosts == {"agent", "kafka", "prometheus", "alertmanager"}


KEYS: Final = {
    "build",
    "image",
    "command",
    "entrypoint",
    "environment",
    "group_add",
    "volumes",
    "ports",
    "read_only",
} | {*("cap_drop", "security_opt", "restart", "depends_on", "healthcheck")}
"""Keys of the Compose specification that the stack uses; a misspelt key is not among them."""


def test_the_stack_publishes_ports_on_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == 4
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in ports)


def test_the_agent_accepts_the_stacks_config() -> None:
    config = load_config(COMPOSE / "agent.yaml")
    assert config.kafka is not None
    assert config.kafka.bootstrap_servers == ["kafka:9092"]


def test_prometheus_accepts_the_stacks_config_and_all_rules(folder: Path) -> None:
    settings = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    (folder / "rules").mkdir()
    for service, source, target in MOUNTS:
        if service == "prometheus" and target.startswith("/etc/prometheus/rules/"):
            (folder / "rules" / Path(target).name).write_text((COMPOSE / source).read_text())
    assert settings["rule_files"] == ["/etc/prometheus/rules/*.yml"]
    settings["rule_files"] = [f"{folder}/rules/*.yml"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    assert f"{len(rules('alerts.yml'))} rules found" in promtool("check", "config", folder / "prometheus.yml")
    jobs = {job["job_name"] for job in settings["scrape_configs"]}
    assert (
        jobs == {"qmp-agent"} == set(re.findall(r'job="([^"]+)"', (ROOT / "deploy/prometheus/alerts.yml").read_text()))
    )


def test_alertmanager_accepts_the_stacks_config_whose_inhibitions_name_real_alerts() -> None:
    require("amtool", "prometheus-alertmanager")
    subprocess.run(
        ["amtool", "check-config", COMPOSE / "alertmanager.yml"], check=True, capture_output=True, timeout=60
    )
    settings = yaml.safe_load((COMPOSE / "alertmanager.yml").read_text())
    for rule in settings["inhibit_rules"]:
        names = {re.findall(r'"([^"]+)"', rule[f"{end}_matchers"][0])[0] for end in ("source", "target")}
        assert names == {AGENT_LOST, AGENT_RUNNING}


def test_the_stack_sends_the_agents_alerts_to_alertmanager_only_once() -> None:
    config = load_config(COMPOSE / "agent.yaml")
    assert config.alerts.alertmanager is not None
    assert not any(source.endswith("agent-alerts.yml") for _, source, _ in MOUNTS)


def test_grafana_has_a_data_source_and_a_home_dashboard() -> None:
    (source,) = yaml.safe_load((COMPOSE / "grafana/sources.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"].startswith("http://prometheus:")
    (provider,) = yaml.safe_load((COMPOSE / "grafana/dashboards.yml").read_text())["providers"]
    mounted = {target: source for service, source, target in MOUNTS if service == "grafana"}
    folder = COMPOSE / mounted[provider["options"]["path"]]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert json.loads((folder / home.name).read_text())["title"]


@contextlib.asynccontextmanager
async def alertmanager(folder: Path) -> AsyncIterator[str]:
    """Run Alertmanager with the stack's config and yield its address."""
    require("prometheus-alertmanager", "prometheus-alertmanager")
    address = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "prometheus-alertmanager", f"--config.file={COMPOSE}/alertmanager.yml"),
        *(f"--storage.path={folder}/alertmanager", f"--web.listen-address={address}", "--cluster.listen-address="),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield address
    finally:
        process.kill()
        await process.wait()


async def fetch_alerts(address: str) -> dict[str, dict[str, Any]]:
    """Return Alertmanager's alerts by name; empty while Alertmanager does not respond."""
    with contextlib.suppress(aiohttp.ClientConnectionError):
        async with aiohttp.ClientSession() as session, session.get(f"http://{address}/api/v2/alerts") as response:
            return {alert["labels"]["alertname"]: alert for alert in await response.json()}
    return {}


async def test_prometheus_forwards_an_alert_that_the_agent_does_not_send_itself(
    start_guest: StartGuest, start_prometheus: StartPrometheus, folder: Path
) -> None:
    full = {"event": "write_aio", "iotype": "write", "errno": 28, "once": False}
    guest = await start_guest("web-3", kind=GuestKind.WRITER, faults=[full], disk_options="werror=stop")
    async with alertmanager(folder) as address:
        config = {"monitors": [{"dial": str(guest.monitor)}], "intervals": {"poll": "500ms"}}
        async with AgentProcess(folder, config) as agent:
            await start_prometheus(
                f"127.0.0.1:{agent.port}",
                rules=ROOT / "deploy/prometheus/agent-alerts.yml",
                job="qmp-agent",
                alertmanager=address,
            )
            alerts: dict[str, dict[str, Any]] = {}

            async def is_forwarded() -> bool:
                nonlocal alerts
                alerts = await fetch_alerts(address)
                return "QemuAlertCritical" in alerts

            await until(is_forwarded)
    labels, annotations = alerts["QemuAlertCritical"]["labels"], alerts["QemuAlertCritical"]["annotations"]
    # The agent detects it by the event, or by the run state if the guest stopped before the agent attached.
    assert labels["alert"] in {"disk_full", "io_error_stop"}
    assert (labels["vm_uuid"], labels["severity"]) == (guest.uuid, "critical")
    assert annotations["runbook"] == f"docs/reference/alerts.md#{labels['alert']}"


# --- Kubernetes ---


def manifests(file: str) -> list[dict[str, Any]]:
    return [manifest for manifest in yaml.safe_load_all((KUBERNETES / file).read_text()) if manifest]


@pytest.mark.parametrize("manifest", manifests("base/qmp-agent.yaml"), ids=lambda manifest: str(manifest["kind"]))
def test_a_manifest_is_valid_by_kubernetes_schema(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_the_manifests_refer_to_each_other_correctly() -> None:
    by_kind = {manifest["kind"]: manifest for manifest in manifests("base/qmp-agent.yaml")}
    pod = by_kind["DaemonSet"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert by_kind["DaemonSet"]["spec"]["selector"]["matchLabels"] == labels == by_kind["Service"]["spec"]["selector"]
    (container,) = pod["spec"]["containers"]
    for each in (container, *pod["spec"]["initContainers"]):
        assert {mount["name"] for mount in each["volumeMounts"]} <= {
            volume["name"] for volume in pod["spec"]["volumes"]
        }
    (monitor,) = manifests("servicemonitor.yaml")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= by_kind["Service"]["metadata"]["labels"].items()
    (port,) = by_kind["Service"]["spec"]["ports"]
    assert port["name"] == monitor["spec"]["endpoints"][0]["port"] == container["ports"][0]["name"]
    config = by_kind["ConfigMap"]["data"]["agent.yaml"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/etc/qmp-agent", "/run/qemu", "/var/lib/qmp-agent"} <= mounted
    assert str(Path(yaml.safe_load(config)["web"]["config_file"]).parent) in mounted


@pytest.mark.parametrize("overlay", ["base", "kubevirt"])
def test_what_kustomize_builds_is_valid_by_kubernetes_schema(overlay: str, folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; Debian's is too old for these overlays")
    built = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES / overlay], capture_output=True, text=True, timeout=60, check=True
    )
    by_kind = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(built.stdout)}
    assert by_kind.keys() == {"Namespace", "ServiceAccount", "ConfigMap", "DaemonSet", "Service"}
    for manifest in by_kind.values():
        kubernetes_validate.validate(manifest, "1.31", strict=True)
    (folder / "agent.yaml").write_text(by_kind["ConfigMap"]["data"]["agent.yaml"])
    load_config(folder / "agent.yaml")


@pytest.mark.parametrize("kubevirt", ["true", "false"])
def test_what_helm_renders_is_valid_and_equals_the_overlay_where_it_matters(kubevirt: str, folder: Path) -> None:
    if shutil.which("helm") is None:
        pytest.skip("helm is not installed; Debian has no package of it")
    command = ["helm", "template", "qmp-agent", str(KUBERNETES / "helm"), "--set", f"kubevirt={kubevirt}"]
    command += ["--namespace", "qmp-agent", "--set", "serviceMonitor.enabled=true"]
    rendered = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    by_kind = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(rendered) if manifest}
    assert by_kind.keys() == {"ConfigMap", "DaemonSet", "Service", "ServiceMonitor"}
    for kind in ("ConfigMap", "DaemonSet", "Service"):
        kubernetes_validate.validate(by_kind[kind], "1.31", strict=True)
    (folder / "agent.yaml").write_text(by_kind["ConfigMap"]["data"]["agent.yaml"])
    load_config(folder / "agent.yaml")
    pod = by_kind["DaemonSet"]["spec"]["template"]["spec"]
    assert pod["hostPID"] is (kubevirt == "true")
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
    added = container["securityContext"]["capabilities"].get("add", [])
    assert added == (["SYS_PTRACE", "DAC_OVERRIDE"] if kubevirt == "true" else [])


def test_the_prometheus_rule_has_the_groups_of_the_rules_files() -> None:
    assert (KUBERNETES / "prometheusrule.yaml").read_text() == prometheus_rule(), "run `make generate`"
    (manifest,) = manifests("prometheusrule.yaml")
    files = [yaml.safe_load((ROOT / "deploy/prometheus" / file).read_text()) for file in FILES]
    assert manifest["spec"]["groups"] == [group for file in files for group in file["groups"]]
    assert len({group["name"] for group in manifest["spec"]["groups"]}) == len(manifest["spec"]["groups"])


def test_the_overlay_for_kubevirt_changes_what_the_agent_needs_there() -> None:
    (daemon_set,) = manifests("kubevirt/daemonset.yaml")
    pod = daemon_set["spec"]["template"]["spec"]
    assert pod["hostPID"]
    (container,) = pod["containers"]
    # tests/integration/libvirt/test_auto_discovery.py shows what each of these is needed for.
    assert container["securityContext"]["capabilities"]["add"] == ["SYS_PTRACE", "DAC_OVERRIDE"]
    (config_map,) = manifests("kubevirt/config.yaml")
    assert yaml.safe_load(config_map["data"]["agent.yaml"])["monitors"][0]["libvirt"] == "auto"


def test_the_agent_accepts_the_config_of_the_config_map(folder: Path) -> None:
    (config_map,) = (manifest for manifest in manifests("base/qmp-agent.yaml") if manifest["kind"] == "ConfigMap")
    (folder / "agent.yaml").write_text(config_map["data"]["agent.yaml"])
    config = load_config(folder / "agent.yaml")
    assert config.web.config_file is not None
    assert expand_credentials_directory(config.web.config_file) == Path("/etc/qmp-agent-web/web.yml")


# --- Kafka ---


TOOL: Final = f"""#!{sys.executable}
import argparse, asyncio, contextlib
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError

parser = argparse.ArgumentParser()
for name in ("bootstrap-server", "topic", "partitions", "replication-factor"):
    parser.add_argument("--" + name, required=True)
for name in ("create", "if-not-exists"):
    parser.add_argument("--" + name, action="store_true", required=True)
parser.add_argument("--config", action="append", default=[])
options = parser.parse_args()

async def main():
    admin = AIOKafkaAdminClient(bootstrap_servers=options.bootstrap_server)
    await admin.start()
    configs = dict(pair.split("=", 1) for pair in options.config)
    topic = NewTopic(options.topic, int(options.partitions), int(options.replication_factor), topic_configs=configs)
    with contextlib.suppress(TopicAlreadyExistsError):
        while (await admin.create_topics([topic])).topic_errors[0][1] not in (0, 36):
            await asyncio.sleep(0.5)  # like the tool, retry: the heartbeats of a broker under load may have been late
    await admin.close()

asyncio.run(main())
"""
"""Replacement for kafka-topics.sh, which is not among the jars that the tests fetch. The broker is real."""


async def test_the_topic_script_creates_topics_and_changes_none_that_exist(kafka: KafkaCluster, folder: Path) -> None:
    tool = folder / "kafka-topics.sh"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    for partitions in ("12", "24"):
        process = await asyncio.create_subprocess_exec(
            *("sh", ROOT / "deploy/kafka/topics.sh", kafka.bootstrap[0], partitions, "1"),
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(DEADLINE_SECONDS):
            _, error = await process.communicate()
        assert process.returncode == 0, error
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        for topic, days in (("qemu.events", 7), ("qemu.alerts", 7), ("qemu.samples", 1)):

            async def has_12_partitions(topic: str = topic) -> bool:
                (described,) = await admin.describe_topics([topic])
                return len(described["partitions"]) == 12

            await until(has_12_partitions)
            (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            settings = {entry[0]: entry[1] for entry in answer.resources[0][4]}
            assert settings["retention.ms"] == str(days * 86_400_000)
            assert settings["cleanup.policy"] == "delete"
            assert settings["min.insync.replicas"] == "1"
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, "qemu.state")])
        assert {entry[0]: entry[1] for entry in answer.resources[0][4]}["cleanup.policy"] == "compact"
        await admin.delete_topics(["qemu.events", "qemu.alerts", "qemu.samples", "qemu.state"])
    finally:
        await admin.close()

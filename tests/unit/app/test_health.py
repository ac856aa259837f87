"""Warnings in the agent's health report."""

from dataclasses import replace
from typing import Any

from agent.app.agent import Agent
from agent.config.model import Config
from agent.model.record import Vm
from tests.lab.snapshots import status


def scripted_agent() -> Any:
    return Agent(Config.model_validate({"monitors": [{"dial": "/run/*.qmp"}], "host": "hv1"}))


def vm(number: int) -> Vm:
    return Vm("hv1", f"{number:036}", f"vm{number}", f"/run/vm{number}.qmp")


async def test_without_a_monitor_the_agent_is_ready_and_names_where_it_looks() -> None:
    agent = scripted_agent()
    assert agent.health.unready_reasons() == []
    assert agent.health.warnings() == [
        "no monitor found yet at /run/*.qmp: see `qmp-agent doctor` if VMs run on this host"
    ]
    agent.snapshot.update_monitor_status(status(vm(1)))
    assert agent.health.warnings() == []


async def test_collectors_that_are_off_are_warnings_and_the_agent_stays_ready() -> None:
    agent = scripted_agent()
    agent.snapshot.update_monitor_status(status(vm(1)))
    assert agent.health.warnings() == []
    agent.snapshot.update_monitor_status(
        replace(status(vm(1)), degraded=(("block", "not JSON"), ("nodes", "too long")))
    )
    assert agent.health.warnings() == [
        "vm1: collector block is off: not JSON",
        "vm1: collector nodes is off: too long",
    ]
    assert agent.health.unready_reasons() == []


async def test_the_warnings_about_collectors_are_limited_in_number() -> None:
    agent = scripted_agent()
    for number in range(20):
        agent.snapshot.update_monitor_status(replace(status(vm(number)), degraded=(("block", "not JSON"),)))
    warnings = agent.health.warnings()
    assert len(warnings) == 6
    assert warnings[-1] == "15 more collectors are off"


async def test_vms_that_run_with_one_uuid_are_one_warning() -> None:
    agent = scripted_agent()
    for number in (1, 2):
        clone = replace(vm(number), uuid="u")
        agent.snapshot.update_monitor_status(status(clone))
        agent.alerts.engine.on_attached(clone, 1, number)
    for time_ns in (2, 3):
        for number in (1, 2):
            agent.alerts.engine.on_run_state(replace(vm(number), uuid="u"), time_ns, running=True, status="running")
    await agent.alerts.tick()
    assert agent.health.warnings() == ["UUID clash: /run/vm1.qmp, /run/vm2.qmp: several VMs run with UUID u"]

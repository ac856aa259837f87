"""No secret of the agent's config appears in any of its outputs."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import bcrypt
import yaml

from agent.cli.http_client import EndpointCredentials
from tests.lab.agent_process import AgentProcess, run_command
from tests.lab.fake_qemu import FakeQemu
from tests.lab.machine import free_port
from tests.lab.waiting import DEADLINE_SECONDS, until

KAFKA, USER, ALERTS = "kafka-hush-1", "user-hush-2", "alerts-hush-3"
HASH = bcrypt.hashpw(USER.encode(), bcrypt.gensalt(4)).decode()
SECRETS = (KAFKA, USER, ALERTS, HASH)


def assert_no_secret(where: str, text: str) -> None:
    assert text, where
    for secret in SECRETS:
        assert secret not in text, f"{where}: {text}"


def config(folder: Path) -> dict[str, Any]:
    """Return a config with every kind of secret. Kafka and Alertmanager cannot be reached, so the agent logs errors about them."""
    (folder / "kafka.password").write_text(KAFKA)
    (folder / "user.password").write_text(USER)
    (folder / "web.yml").write_text(yaml.safe_dump({"basic_auth_users": {"alice": HASH}}))
    sasl = {"mechanism": "PLAIN", "username": "hv7", "password_file": str(folder / "kafka.password")}
    return {
        "monitors": [{"dial": f"{folder}/*.qmp"}],
        "intervals": {"poll": "100ms"},
        "timeouts": {"greeting": "500ms", "response": "120s"},  # `check` finds the monitor held
        "kafka": {"bootstrap_servers": [f"127.0.0.1:{free_port()}"], "sasl": sasl},
        "alerts": {
            "alertmanager": {"urls": [f"http://agent:{ALERTS}@127.0.0.1:{free_port()}"], "resend_interval": "1s"}
        },
        "log": {"level": "debug"},
    }


async def test_no_secret_is_in_responses_logs_records_or_the_process_list(fake: FakeQemu, folder: Path) -> None:
    agent = AgentProcess(folder, config(folder), is_forked=False)  # has a command line of its own
    whole = yaml.safe_load(agent.config.read_text())
    whole["web"]["config_file"] = str(folder / "web.yml")
    agent.config.write_text(yaml.safe_dump(whole))
    alice = EndpointCredentials(user="alice", password_file=folder / "user.password")
    async with alice.open_aiohttp_session() as session:

        async def get(path: str) -> str:
            async with session.get(agent.url + path) as response:
                return await response.text()

        async with agent:
            await fake.wait_for("query-blockstats", 3)
            fake.emit("BLOCK_IO_ERROR", {"device": "d", "operation": "read", "action": "stop"})

            async def reports_failures() -> bool:
                text = await get("/readyz")
                return "Alertmanager" in text and "Kafka" in text

            await until(reports_failures)
            for path in ("/", "/metrics", "/readyz", "/healthz", "/style.css"):
                assert_no_secret(path, await get(path))
            async with session.get(agent.url + "/records") as stream:
                assert_no_secret("/records", (await stream.content.readline()).decode())
            assert agent.process is not None
            process = Path("/proc", str(agent.process.pid))
            assert_no_secret("its command line", (process / "cmdline").read_text())
            assert_no_secret("its environment", (process / "environ").read_text())
            checked = await run_command("check", "--config", agent.config)
            assert_no_secret("check", checked.out + checked.log)
            # A web config with an invalid entry beside a valid hash.
            (folder / "web.yml").write_text(yaml.safe_dump({"basic_auth_users": {"alice": HASH, "bob": USER}}))
            await until(lambda: "web config: reload failed" in agent.log)
            ended = await agent.stop()
    assert_no_secret("its log", ended.log)
    assert_no_secret("its records", await _journaled(agent.config))


async def _journaled(path: Path) -> str:
    return (await run_command("journal", "export", "--config", path)).out


async def test_error_messages_do_not_quote_misplaced_secrets(folder: Path) -> None:
    wrong = config(folder)
    wrong["kafka"]["sasl"]["password_file"] = KAFKA
    wrong["kafka"]["tls"] = {"key": KAFKA}
    wrong["kafka"]["sasl"]["password"] = KAFKA
    wrong["alerts"]["alertmanager"]["urls"] = [f"alice:{ALERTS}@somewhere"]
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump(wrong))
    ended = await run_command("check", "--config", path)
    assert ended.status == 2
    assert_no_secret("check", ended.out + ended.log)
    assert "password_file: should be an absolute path" in ended.log


async def test_no_secret_is_in_a_traceback(fake: FakeQemu, folder: Path) -> None:
    agent = AgentProcess(folder, config(folder))
    crash = f"""
import sys
from agent.app.agent import Agent
from agent.cli.main import main
async def tick(self):
    text = str(self.config)
    raise RuntimeError("a bug")
Agent._run_alert_loop = tick
sys.exit(main(["run", "--config", {str(agent.config)!r}]))
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-X", "faulthandler", "-X", "dev", "-c", crash, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE_SECONDS):
        _, log = await process.communicate()
    assert process.returncode == 1
    assert "a bug" in log.decode()
    assert_no_secret("its crash", log.decode())

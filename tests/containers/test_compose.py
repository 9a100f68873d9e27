"""The compose file with a real engine: a short learning run, watched, killed, stopped, moved on.

The tests build on each other, in their order: one stack, one run.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from stack import OURS, PORTS, Stack

from agent.wire.errors import PerennialError
from agent.wire.keys import find_client_keys
from agent.wire.messages import Hello
from agent.wire.sockets import DealerClient

pytestmark = pytest.mark.containers

STATE = "/var/lib/perennial"
OPERATOR = ("--keys", "/etc/perennial/keys/operator")
SECRETS = {
    "agent": ["agent/server.key_secret"],
    "learner": ["learner/client.key_secret"],
    "sim": ["sim/client.key_secret"],
}
UPDATES = 8


@pytest.fixture(scope="module")
def seconds() -> dict[str, float]:
    """What took how long; written for people, asserted by nothing."""
    return {}


def test_the_images_build_and_the_bridge_stays_small(
    stack: Stack, seconds: dict[str, float]
) -> None:
    seconds["build"] = stack.build()
    sizes = {}
    for name in ("agent", "learner", "sim", "bridge"):
        (image,) = json.loads(stack.docker("image", "inspect", f"perennial-{name}"))
        sizes[name] = image["Size"] / 1e6
        assert image["Config"]["User"] == "10001:10001"
        assert image["Config"]["Labels"]["org.opencontainers.image.title"] == f"perennial-{name}"
        inside = ["find", "/etc/perennial", "/var/lib/perennial", "/tmp", "-type", "f"]
        found = stack.docker(
            "run", "--rm", "--entrypoint", inside[0], f"perennial-{name}", *inside[1:]
        )
        assert found == "", "keys and state are made at the first start, never at the build"
    (base,) = json.loads(stack.docker("image", "inspect", "python:3.11-slim-bookworm"))
    print({name: f"{size:.0f} MB" for name, size in sizes.items()}, f"base {base['Size'] / 1e6}")
    assert sizes["bridge"] - base["Size"] / 1e6 < 150
    done = stack.docker("run", "--rm", "--entrypoint", "python", "perennial-bridge", "-c",
                        "import importlib.util as u; print(u.find_spec('torch'))")  # fmt: skip
    assert done.strip() == "None"


def test_everything_becomes_healthy_and_hardened(stack: Stack, seconds: dict[str, float]) -> None:
    seconds["up"] = stack.up()
    for service in stack.services:
        for container in stack.inspect(service):
            host = container["HostConfig"]
            assert container["State"]["Health"]["Status"] == "healthy", service
            assert host["ReadonlyRootfs"], service
            assert host["CapDrop"] == ["ALL"], service
            assert "no-new-privileges:true" in host["SecurityOpt"], service
            assert host["Memory"] > 0, service
            assert host["PidsLimit"] > 0, service
            assert host["RestartPolicy"]["Name"] == "unless-stopped", service
            if service in OURS:
                assert container["Config"]["User"] == "10001:10001"
                assert "/tmp" in host["Tmpfs"]
    assert len(stack.containers("sim")) == 2


def test_every_process_may_be_killed_and_the_run_completes(
    stack: Stack, seconds: dict[str, float]
) -> None:
    started_s = time.monotonic()
    stack.wait(lambda: stack.events("eval"), "the base is evaluated")
    for service in OURS:
        before = stack.inspect(service)[0]
        os.kill(before["State"]["Pid"], signal.SIGKILL)
        stack.wait(
            lambda service=service, before=before: (
                stack.inspect(service)[0]["RestartCount"] > before["RestartCount"]
                and stack.inspect(service)[0]["State"]["Health"]["Status"] == "healthy"
            ),
            f"{service} was restarted and is healthy",
        )
    stack.wait(lambda: stack.events("done"), "the run is over")
    seconds["run"] = time.monotonic() - started_s
    iterations = stack.events("iteration")
    assert {event["iteration"] for event in iterations} == set(range(1, UPDATES + 1))
    stack.tool("report", STATE)
    assert "every figure agrees" in stack.tool("report", STATE, "--recount")


def test_prometheus_answers_success_per_task_and_the_swaps(stack: Stack) -> None:
    stack.wait(lambda: stack.query("perennial_adapter_version") == {(): UPDATES}, "last version")
    rates = stack.answer('perennial_task_success_rate{phase="train",window="100"}')
    trained = {event["task"] for event in stack.events("iteration")}
    assert {labels[1] for labels in rates} == trained
    logged = {
        (event["mode"], str(event["row"]), event["task"]): event["successes"] / event["trials"]
        for event in stack.events("eval")
    }
    # The last cells may be younger than the last scrape.
    stack.wait(
        lambda: stack.query("perennial_eval_success_rate") == pytest.approx(logged), "the matrix"
    )
    stack.wait(lambda: stack.query('sum(up{job=~"agent|learner"})') == {(): 2}, "both are up")


def test_a_stopped_agent_raises_the_alert_and_a_started_one_ends_it(
    stack: Stack, seconds: dict[str, float]
) -> None:
    assert "AgentDown" not in stack.alerts()
    stack.compose("stop", "agent")
    started_s = time.monotonic()
    stack.wait(lambda: "AgentDown" in stack.alerts(), "the alert is raised")
    seconds["alert raised"] = time.monotonic() - started_s
    stack.compose("start", "agent")
    started_s = time.monotonic()
    stack.wait(lambda: "AgentDown" not in stack.alerts(), "the alert is over")
    seconds["alert over"] = time.monotonic() - started_s


def test_what_was_learned_survives_down_and_up(stack: Stack, seconds: dict[str, float]) -> None:
    # Metrics are served while the model loads; the ledger's figures come after it.
    stack.wait(lambda: stack.query("perennial_adapter_version") == {(): UPDATES}, "the version")
    rates = stack.answer("perennial_task_success_rate")
    episodes = stack.answer("sum by (task, outcome, phase) (perennial_episodes_total)")
    versions = stack.tool("adapters", "list", STATE, *OPERATOR)
    stack.compose("down")
    assert stack.containers("agent") == []
    seconds["up again"] = stack.up()
    stack.wait(lambda: stack.query("perennial_adapter_version") == {(): UPDATES}, "the version")
    stack.wait(lambda: stack.query("perennial_task_success_rate") == rates, "the rates")
    assert stack.answer("sum by (task, outcome, phase) (perennial_episodes_total)") == episodes
    assert stack.tool("adapters", "list", STATE, *OPERATOR) == versions
    stack.wait(lambda: stack.query('perennial_learner_state{perennial_learner_state="done"}')
               == {("done",): 1}, "the learner knows that it is done")  # fmt: skip


def test_a_robot_gets_a_key_while_the_agent_runs(stack: Stack, tmp_path: Path) -> None:
    stack.tool("keys", "add", "/etc/perennial/keys/agent", "arm-1", "--may", "act,report")
    stack.compose("cp", "agent:/etc/perennial/keys/agent/clients/arm-1", str(tmp_path))
    keys_dir = tmp_path / "arm-1"
    secret = keys_dir / "client.key_secret"
    assert secret.stat().st_mode & 0o077 == 0
    endpoint = f"tcp://127.0.0.1:{PORTS['ROBOTS']}"
    hello = Hello("arm-1", "arm-1")
    with DealerClient(endpoint, 10.0, keys=find_client_keys(str(keys_dir))) as client:
        assert client.request(hello).policy == "nano"
    stack.tool("keys", "remove", "/etc/perennial/keys/agent", "arm-1")
    with (
        DealerClient(endpoint, 10.0, keys=find_client_keys(str(keys_dir))) as client,
        pytest.raises(PerennialError, match="refused"),
    ):
        client.request(hello)


def test_no_secret_is_ever_shown(stack: Stack, seconds: dict[str, float]) -> None:
    secrets = set()
    for service, paths in SECRETS.items():
        for path in paths:
            text = stack.read(service, f"/etc/perennial/keys/{path}")
            line = next(line for line in text.splitlines() if "secret-key" in line)
            secrets.add(line.partition('"')[2].rstrip('"'))
    assert all(len(secret) == 40 for secret in secrets)
    assert len(secrets) == 3
    stack.compose("logs", "--no-color")
    for service in stack.services:
        stack.inspect(service)
    stack.docker("image", "inspect", *(f"perennial-{name}" for name in (*OURS, "bridge")))
    stack.docker("history", "--no-trunc", "perennial-agent")
    for job, port in (("agent", 9100), ("learner", 9101)):
        code = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{port}/metrics').read().decode())"
        text = stack.compose("exec", "-T", job, "python", "-c", code)
        assert "perennial_" in text
    shown = "\n".join(stack.texts)
    assert [secret[:4] for secret in secrets if secret in shown] == []
    print({what: f"{took:.0f} s" for what, took in seconds.items()})

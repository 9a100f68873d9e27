"""`perennial setup compose|systemd`: what the long-running services need before their first start.

Writes each process's settings into the state folder, which is a run folder like any other (so
`perennial report` reads it), and makes the keys with which the processes know each other. It can
be repeated: keys stay, and settings that would make the run another one are refused.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.durable import StorageError
from agent.process import BAD_INPUT, run_command
from agent.process.paths import is_path, user_path
from agent.process.settings import Reference
from agent.process.shown import complain
from agent.process.words import literal
from deploy.local.placement import BadSetting, Placement
from deploy.local.processes import module_command, module_environment

KEYS_LIMIT_S = 60.0
ROBOTS_PORT, AGENT_HTTP_PORT, LEARNER_HTTP_PORT = 5555, 9100, 9101
# Who gets a key, and what it may do. Robots are added by the operator: perennial keys add.
CLIENTS = {"learner": "operate", "operator": "operate", "sim": "act,report"}


@dataclass(frozen=True)
class Target:
    """Where the services run: what they bind, how they find the agent, how a simulator is named.

    operator: where learner and operators reach the agent. open_http: whether metrics and health
    are served beyond the machine or container. ways_out: as of a Placement.
    """

    bind_host: str
    agent_host: str
    operator: str
    open_http: bool
    client_id: str
    heartbeat_path: str
    ways_out: Mapping[str, str]


_STATE_DIR = "give --state-dir FOLDER"
# Of what `setup` chooses wherever the services run.
_WAYS_OUT = {
    **dict.fromkeys(("run_dir", "state_dir", "adapters_dir", "log_path"), _STATE_DIR),
    "keys_dir": "give --keys-dir FOLDER",
    "probe_rate_hz": "perennial run has a probe",
    "probe": "perennial run has a probe",
    "report": "perennial report FOLDER makes one at any time",
}
# What starts and supervises the processes of `perennial run`; services have another to do it.
SUPERVISION = (
    "restart_limit",
    "restart_backoff_s",
    "stop_limit_s",
    "ready_limit_s",
    "hang_limit_s",
    "parent_pid",
)
_SERVICE_SETTINGS = (
    "robots_endpoint", "operator_endpoint", "endpoint", "http_host", "http_port", "http_open",
    "exit_when_done", "client_id", "heartbeat_path",
)  # fmt: skip
_IN_COMPOSE = "a compose file of your own changes what a service binds, publishes and runs"
_IN_UNIT = "sudo systemctl edit its unit: settings may follow its command"

TARGETS = {
    "compose": Target(
        bind_host="0.0.0.0",
        agent_host="agent",
        # In a volume that robots' and simulators' containers do not have.
        operator="ipc:///run/perennial-operator/operator.sock",
        open_http=True,
        client_id=Reference(
            "${oc.env:HOSTNAME}"
        ),  # every replica is a container with a name of its own
        heartbeat_path="/run/perennial/heartbeat",
        ways_out={
            **_WAYS_OUT,
            "agent.robots_endpoint": "ROBOTS_ADDRESS and ROBOTS_PORT say where it is published",
            "workers": "SIM_REPLICAS says how many simulators run",
            **dict.fromkeys((*SUPERVISION, *_SERVICE_SETTINGS), _IN_COMPOSE),
        },
    ),
    "systemd": Target(
        bind_host="127.0.0.1",
        agent_host="127.0.0.1",
        operator="tcp://127.0.0.1:5556",
        open_http=False,
        client_id=Reference(
            "sim-${oc.env:PERENNIAL_INSTANCE}"
        ),  # of the template unit, perennial-sim@1
        heartbeat_path="",
        ways_out={
            **_WAYS_OUT,
            "workers": "every perennial-sim@N that is enabled is one more",
            **dict.fromkeys(SUPERVISION, "the units have Restart= and TimeoutStopSec="),
            **dict.fromkeys(_SERVICE_SETTINGS, _IN_UNIT),
        },
    ),
}


def service_placement(
    target: Target, state_dir: Path, keys_dir: Path
) -> Callable[[Path, int], Placement]:
    """Places a run's processes as services that outlive each other and share no parent."""
    run_dir, keys_dir = (path.expanduser().resolve() for path in (state_dir, keys_dir))
    client_log = f"{literal(str(run_dir / 'sim'))}/{target.client_id}/client.jsonl"

    def place(_run_dir: Path, _workers: int) -> Placement:
        http = {"http_host": target.bind_host, "http_open": target.open_http}
        return Placement(
            robots_bind=f"tcp://{target.bind_host}:{ROBOTS_PORT}",
            robots_connect=f"tcp://{target.agent_host}:{ROBOTS_PORT}",
            operator_bind=target.operator,
            operator_connect=target.operator,
            sims=("sim",),
            agent={"keys_dir": str(keys_dir / "agent"), "http_port": AGENT_HTTP_PORT, **http},
            learner={
                "keys_dir": str(keys_dir / "learner"),
                "http_port": LEARNER_HTTP_PORT,
                "exit_when_done": False,
                **http,
            },
            client={
                "keys_dir": str(keys_dir / "sim"),
                "client_id": target.client_id,
                "log_path": Reference(client_log),
                "heartbeat_path": target.heartbeat_path,
            },
            # One file of settings serves any number of simulators; nobody waits for the end.
            run={"run_dir": str(run_dir), "workers": 1, "probe_rate_hz": 0, "report": False},
            unused=("probe", *SUPERVISION),
            ways_out=target.ways_out,
        )

    return place


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 ready, 2 something the user must mend."""
    parser = argparse.ArgumentParser(prog="perennial setup", description=__doc__)
    parser.add_argument("target", choices=TARGETS, help="how the services are run")
    parser.add_argument("--state-dir", type=user_path, default=Path("/var/lib/perennial"))
    parser.add_argument("--keys-dir", type=user_path, default=Path("/etc/perennial/keys"))
    parser.add_argument("settings", nargs="*", metavar="key=value", help="as for perennial run")
    arguments = parser.parse_intermixed_args(argv)  # options may stand between settings
    try:
        set_up(
            TARGETS[arguments.target], arguments.state_dir, arguments.keys_dir, arguments.settings
        )
    except BadSetting as error:
        complain("perennial setup", error)
        return BAD_INPUT
    except OSError as error:
        complain("perennial setup", error)
        return BAD_INPUT
    except StorageError as error:
        complain("perennial setup", error)
        return BAD_INPUT
    print(f"Settings in {arguments.state_dir}/config, keys in {arguments.keys_dir}.")
    return 0


def set_up(target: Target, state_dir: Path, keys_dir: Path, overrides: list[str]) -> None:
    """Writes the settings and makes the keys; neither if one of both is refused.

    Raises BadSetting, OSError, StorageError.
    """
    from deploy.local.runfolder import RunFolder
    from deploy.local.settings import compose_run
    from deploy.local.versions import installed_versions

    config = compose_run(overrides, service_placement(target, state_dir, keys_dir))
    own = {name: _from_here(values) for name, values in config.processes.items()}
    config = replace(config, processes=own)  # services start in another folder
    folder = RunFolder(config.settings.run_dir)
    with folder.lock():
        is_new = not folder.prepare(config, installed_versions())
        try:
            make_keys(keys_dir)
        except BadSetting:
            if is_new:
                folder.withdraw(config)
            raise


def _from_here(value: Any, key: str = "") -> Any:
    """Settings with every path absolute, as seen by whoever calls this command."""
    from deploy.local.settings import absolute_path

    if isinstance(value, dict):
        return {name: _from_here(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_from_here(each, key) for each in value]
    is_ours = isinstance(value, str) and value and is_path(key) and not isinstance(value, Reference)
    return str(absolute_path(key, value)) if is_ours else value


def make_keys(keys_dir: Path) -> None:
    """The agent's key pair and one for each of CLIENTS; what is there stays. Raises BadSetting."""
    server = str(keys_dir / "agent")
    commands = [["init", server]]
    for name, may in CLIENTS.items():
        commands.append(["add", server, name, "--may", may, "--out", str(keys_dir / name)])
    for words in commands:
        try:
            done = subprocess.run(
                module_command("agent.cli_keys", words),
                env=module_environment(),
                capture_output=True,
                text=True,
                timeout=KEYS_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BadSetting(
                f"keys: none in {keys_dir} after {KEYS_LIMIT_S:g} s; is it on a disk that hangs?"
            ) from None
        if done.returncode != 0:
            raise BadSetting(f"keys: {done.stderr.strip() or done.stdout.strip()}")
    for name in CLIENTS:
        if not (keys_dir / name / "client.key_secret").is_file():
            raise BadSetting(
                f"keys: {name} is known to the agent, but {keys_dir / name} holds no key of it; "
                f"perennial keys remove {server} {name}, then set up again"
            )


if __name__ == "__main__":
    run_command(main)

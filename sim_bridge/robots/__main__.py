"""`python -m sim_bridge.robots`: one robot in real time, episode after episode."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from agent.durable import replace_file
from agent.process import StopFlag, run_process
from agent.process.errors import ConfigError
from agent.process.json_files import DamagedFile, read_json
from agent.process.shown import complain
from sim_bridge.robots.config import IMAGINED, RobotConfig

if TYPE_CHECKING:
    from sim_bridge.log import EndLog
    from sim_bridge.robots.robot import Robot
    from sim_bridge.robots.runtime import Runtime


def main(argv: list[str] | None = None) -> int:
    """Runs the robot until its episodes are done or SIGTERM; returns the exit status."""
    purpose = "Drives a robot at a fixed rate with the agent's policy."
    return run_process("perennial robot", purpose, lambda: RobotConfig, _work, argv)


def _work(config: RobotConfig) -> None:
    stop = StopFlag()
    from agent.wire.keys import find_client_keys
    from agent.wire.sockets import DealerClient
    from sim_bridge.client import RequestTable
    from sim_bridge.log import EndLog
    from sim_bridge.robots.guard import Guard, make_limits
    from sim_bridge.robots.judge import make_judge
    from sim_bridge.robots.robot import Reporting
    from sim_bridge.robots.robots import make_robot
    from sim_bridge.robots.runtime import Pace, Runtime
    from sim_bridge.robots.session import Session

    if config.report_path:
        _refuse_foreign(Path(config.report_path))
    keys = find_client_keys(config.keys_dir)
    dealer = DealerClient(config.endpoint, config.request_timeout_s, keys=keys)
    session = Session(RequestTable(dealer, config.request_timeout_s), config.client_id)
    pace = Pace(
        rate_hz=config.rate_hz,
        lead_ticks=config.lead_ticks,
        blend_ticks=config.blend_ticks,
        stale_s=config.stale_s,
        watchdog_s=config.watchdog_s,
        give_up_s=config.give_up_s,
    )
    with ExitStack() as opened:
        opened.callback(dealer.close)
        log = EndLog(Path(config.log_path))
        opened.callback(log.close)
        if config.robot not in IMAGINED:
            # What moves is not cut off: it holds until its driver is closed.
            opened.enter_context(stop.finishing("the robot's driver"))
        robot = make_robot(config, stop)
        opened.enter_context(stop.working())
        opened.callback(_close, robot)
        welcome = session.greet(f"sim_bridge.robots/{config.robot}", stop)
        if welcome is None:
            return
        guard = Guard(make_limits(config.limits, welcome.action_dim))
        judge = opened.enter_context(make_judge(config.outcome))
        runtime = Runtime(robot, session, welcome, guard, judge, pace)
        _run_episodes(config, runtime, log, stop)
    summary = runtime.figures.summary()
    if isinstance(robot, Reporting):
        summary.update(robot.summary())
    print(json.dumps(summary), flush=True)
    if config.report_path:
        replace_file(Path(config.report_path), json.dumps(summary, indent=1).encode())


def _refuse_foreign(path: Path) -> None:
    """Raises ConfigError for a file that is no report of a robot's."""
    if not path.exists():
        return
    try:
        read_json(path, dict, "if it is a report, delete it; else name another path")
    except DamagedFile as error:
        raise ConfigError(f"report_path: no report of a robot: {error}") from error


def _close(robot: Robot) -> None:
    try:
        robot.close()
    except Exception as error:  # the driver's; what ended the process is told after it
        complain("perennial robot", f"close: {type(error).__name__}: {error}")


def _run_episodes(config: RobotConfig, runtime: Runtime, log: EndLog, stop: StopFlag) -> None:
    from sim_bridge.robots.running import EpisodeLost

    done = 0
    # A recording is played to its end.
    horizon_steps = sys.maxsize if config.robot == "replay" else config.horizon_steps
    while not stop() and (config.episodes == 0 or done < config.episodes):
        try:
            line = runtime.run_episode(config.task, horizon_steps, stop)
        except EpisodeLost as error:
            if stop():
                return
            complain("perennial robot", f"{error}; beginning another")
            continue
        log.append(line)
        runtime.hold_until(log.sync, stop)  # no other episode while this one is not in the log
        done += 1


if __name__ == "__main__":
    sys.exit(main())

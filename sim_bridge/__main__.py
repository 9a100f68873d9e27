"""`python -m sim_bridge`: one worker process that runs leased episodes on simulated bodies."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from agent.process import StopFlag, run_process
from sim_bridge.config import SimConfig


def main(argv: list[str] | None = None) -> int:
    """Runs the worker until SIGTERM; returns the exit status."""
    purpose = "Runs the agent's episodes on simulated bodies until SIGTERM."
    return run_process("sim_bridge", purpose, lambda: SimConfig, _work, argv, preflight=_preflight)


def _preflight(config: SimConfig, policy: str) -> None:
    from sim_bridge.preflight import preflight

    preflight(config, policy)


def _work(config: SimConfig) -> None:
    stop = StopFlag()
    from agent.wire.keys import find_client_keys
    from agent.wire.sockets import DealerClient
    from agent.wire.systemd import ServiceManager
    from sim_bridge.client import RequestTable
    from sim_bridge.heartbeat import Heartbeat
    from sim_bridge.log import EndLog
    from sim_bridge.suites import longest_turn_s, make_suite
    from sim_bridge.worker import Worker

    suite = make_suite(config)
    log = EndLog(Path(config.log_path))
    heartbeat = Heartbeat(Path(config.heartbeat_path)) if config.heartbeat_path else None
    manager = ServiceManager()
    keys = find_client_keys(config.keys_dir)
    dealer = DealerClient(config.endpoint, config.request_timeout_s, keys=keys)
    requests = RequestTable(dealer, config.request_timeout_s)
    worker = Worker(
        suite,
        requests,
        log,
        config.client_id,
        config.envs,
        stop_at_success=config.stop_at_success,
        pace_hz=config.pace_hz,
    )

    def status() -> str:
        ended = ", ".join(f"{count} {outcome}" for outcome, count in worker.counts.items())
        return f"{config.envs} bodies at {config.endpoint}; episodes: {ended or 'none yet'}"

    def should_stop() -> bool:
        # The worker asks once a pass: it asks only while it makes passes.
        if heartbeat is not None:
            heartbeat.observe(requests.answered)
        manager.beat(status)
        return stop()

    try:
        with stop.working(manager.stopping):
            manager.allow(longest_turn_s(config.suite))
            manager.ready(f"asking {config.endpoint} for work")
            worker.run(should_stop, config.idle_exit_s)
    finally:
        manager.close()
        dealer.close()
        suite.close()
    print(json.dumps(worker.summary()), flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m sim_bridge`: one worker process that runs leased episodes on simulated bodies."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sim_bridge.config import SimConfig
from sim_bridge.startup import StopFlag, run_process


def main(argv: list[str] | None = None) -> int:
    """Runs the worker until SIGTERM; returns the exit status."""
    purpose = "Runs the agent's episodes on simulated bodies until SIGTERM."
    return run_process("sim_bridge", purpose, SimConfig, _work, argv)


def _work(config: SimConfig, stop: StopFlag) -> None:
    from agent.wire.sockets import DealerClient
    from sim_bridge.client import RequestTable
    from sim_bridge.log import EndLog
    from sim_bridge.suites import make_suite
    from sim_bridge.worker import Worker

    suite = make_suite(config.suite, config.image_size)
    log = EndLog(Path(config.log_path))
    dealer = DealerClient(config.endpoint, config.request_timeout_s)
    requests = RequestTable(dealer, config.request_timeout_s)
    worker = Worker(suite, requests, log, config.client_id, config.envs)
    try:
        worker.run(stop, config.idle_exit_s)
    finally:
        dealer.close()
        suite.close()
    print(json.dumps(worker.summary()), flush=True)


if __name__ == "__main__":
    sys.exit(main())

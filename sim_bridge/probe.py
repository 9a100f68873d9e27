"""`python -m sim_bridge.probe`: a client that asks at a steady rate and logs every reply."""

from __future__ import annotations

import sys
from pathlib import Path

from agent.process import StopFlag, run_process
from sim_bridge.config import ProbeConfig


def main(argv: list[str] | None = None) -> int:
    """Runs the probe until SIGTERM; returns the exit status."""
    purpose = "Asks the agent for actions at a steady rate and logs every reply, until SIGTERM."
    return run_process("sim_bridge.probe", purpose, lambda: ProbeConfig, _work, argv)


def _work(config: ProbeConfig) -> None:
    stop = StopFlag()
    from agent.wire.keys import find_client_keys
    from agent.wire.sockets import DealerClient
    from agent.wire.systemd import ServiceManager
    from sim_bridge.client import RequestTable
    from sim_bridge.probe_client import Probe, ProbeLog

    log = ProbeLog(Path(config.log_path))
    keys = find_client_keys(config.keys_dir)
    manager = ServiceManager()

    def should_stop() -> bool:
        # The probe asks many times a second: it asks only while it gets on.
        manager.beat()
        return stop()

    with DealerClient(config.endpoint, config.request_timeout_s, keys=keys) as dealer:
        requests = RequestTable(dealer, config.request_timeout_s)
        probe = Probe(requests, log, config.client_id, config.task, config.rate_hz)
        with stop.working(manager.stopping):
            manager.ready(f"asking {config.endpoint}")
            probe.run(should_stop)
    manager.close()
    log.close()


if __name__ == "__main__":
    sys.exit(main())

"""The policy server's process: python -m agent [--config FILE.yaml] [key=value ...]"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from agent.process import run_process

if TYPE_CHECKING:
    from agent.config import AgentConfig


def _schema() -> type[AgentConfig]:
    from agent.config import AgentConfig

    return AgentConfig


def _serve(config: AgentConfig) -> None:
    # The heavy imports come after the thread counts are set.
    from agent.server.service import serve

    serve(config)


def _preflight(config: AgentConfig, _policy: str) -> None:
    from agent.preflight import preflight

    preflight(config)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    return run_process(
        "perennial serve",
        "Answers robots and simulators with action chunks, records their episodes, and swaps in "
        "the adapters that the learner publishes.",
        _schema,
        _serve,
        argv,
        preflight=_preflight,
    )


if __name__ == "__main__":
    sys.exit(main())

"""`python -m learner`: the composition root of the learning process; nothing else wires it."""

import sys
from typing import TYPE_CHECKING

from agent.process import run_process
from learner.stopping import EXIT_STATUS, Stopped

if TYPE_CHECKING:
    from learner.config import LearnerConfig

PURPOSE = "Learns a sequence of tasks from the episodes that a running agent collects."


def main(argv: list[str] | None = None) -> int:
    """Parse arguments, learn until done or stopped, return the exit status."""
    try:
        return run_process(
            "perennial learn", PURPOSE, _schema, _work, argv, EXIT_STATUS, _preflight
        )
    except Stopped:
        return EXIT_STATUS


def _schema() -> "type[LearnerConfig]":
    from learner.config import LearnerConfig

    return LearnerConfig


def _preflight(config: "LearnerConfig", _policy: str) -> None:
    from learner.preflight import preflight

    preflight(config)


def _work(config: "LearnerConfig") -> None:
    from learner.process import learn

    learn(config)


if __name__ == "__main__":
    sys.exit(main())

"""`perennial model to-discrete`: an L1-head checkpoint learns to say its actions as tokens.

Learning by trial and error on tokens needs a policy that has tokens. The network is the same one:
an adapter on it learns, frame by frame, to give the tokens of what its own L1 head answers there
(cross-entropy, labels softened over neighbouring bins), and is merged into the new checkpoint.

Batches are a pure function of (seed, step), so a conversion that was killed resumes exactly.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from agent.process import Ended, StopFlag, stoppable
from agent.process.paths import user_path
from agent.process.shown import complain

INTERRUPTED = 130  # as a shell reports Ctrl-C
CAMERAS = ("agentview", "wrist")  # arrays of a demonstration shard
_EPILOG = """\
settings, as name=value:
  demos=[DIR,...]          folders of demonstration shards: only their observations are used
  architecture.NAME=VALUE  config fields that BASE's files leave out, e.g. architecture.num_images=2
  unnorm_key=KEY           needed if BASE has several
  steps=2000 batch_size=32 learning_rate=5e-4 rank=32 alpha=32 seed=0 device=cpu dtype=float32
  work=DIR                 progress is kept here (default: OUT.work); the same command goes on

example:
  perennial model to-discrete openvla-oft openvla-oft-discrete demos=[runs/demos] device=cuda
"""


@dataclass
class ConversionSettings:
    """What to convert on, and how. Values that cannot work raise ConfigError."""

    demos: list[str] = field(default_factory=list)
    work: str = ""
    architecture: dict[str, Any] = field(default_factory=dict)
    cameras: list[str] = field(default_factory=lambda: list(CAMERAS))
    unnorm_key: str = ""
    rank: int = 32
    alpha: float = 32.0
    steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 5e-4
    warmup_steps: int = 50
    label_sigma_bins: float = 2.0
    clip_norm: float = 1.0
    held_out_frames: int = 256  # at most so many are compared
    checkpoint_every: int = 100
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"  # of the base; the adapter is float32
    threads: int = 1

    def __post_init__(self) -> None:
        from agent.config import DTYPES
        from agent.process.checks import require_above, require_choice, require_range
        from agent.process.errors import ConfigError

        if not self.demos:
            raise ConfigError("demos: name at least one folder of demonstration shards")
        require_choice("dtype", self.dtype, DTYPES)
        for camera in self.cameras:
            require_choice("cameras", camera, CAMERAS)
        for name in ("steps", "batch_size", "rank", "held_out_frames", "checkpoint_every"):
            require_range(name, getattr(self, name), 1, 10_000_000)
        for name in ("learning_rate", "alpha", "label_sigma_bins", "clip_norm"):
            require_above(name, getattr(self, name), 0, 1_000_000)
        require_range("warmup_steps", self.warmup_steps, 0, self.steps)
        require_range("seed", self.seed, 0, 2**63 - 1)
        require_range("threads", self.threads, 1, 1024)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 converted, 1 refused or failed, 2 settings that cannot work, 130 stopped."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from agent.process import load_config  # after the parser: help is instant
    from agent.process.errors import ConfigError, PerennialError

    try:
        settings = load_config(ConversionSettings, None, arguments.settings)
    except ConfigError as error:
        complain("perennial model to-discrete", error)
        return 2

    from learner.conversion import convert

    try:
        with StopFlag().unwinding():
            convert(arguments.base, arguments.out, settings)
    except (PerennialError, OSError) as error:
        complain("perennial model to-discrete", error)
        return 1
    except Ended:
        print("Stopped. The same command goes on from its last checkpoint.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perennial model to-discrete",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", type=user_path, help="an OpenVLA-OFT folder with an L1 head")
    parser.add_argument("out", type=user_path, help="the new folder")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="see below")
    return parser


if __name__ == "__main__":
    with stoppable("perennial model to-discrete", INTERRUPTED):
        sys.exit(main())

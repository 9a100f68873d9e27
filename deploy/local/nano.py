"""`python -m deploy.local.nano`: rebuilds the bundled nano policy from nothing.

As published VLAs are made: pretraining on much clean data, then fine-tuning on the demonstrations
of one rig, whose operators misjudge places (`sim_bridge/tabletop/operators.py`), which the policy
copies. Four programs, one after the other. Each keeps what is done in
WORK, so the same command goes on after an interruption; it takes an hour or two on a CPU.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from deploy.local.processes import PACKAGE_ROOT, module_command, module_environment

EXPERT_FRAMES, RIG_FRAMES = 120_000, 20_000
CHUNK_STEPS = 5
WORKERS = 2  # processes of the demonstrations, then threads of the training
INTERRUPTED = 130  # as a shell reports Ctrl-C
COMMON = ("pretrain.compile=true", "pretrain.checkpoint_every=250", "pretrain.target_weight=1.0")
# Stopping short of the schedule: the fine-tuning brings the rate down.
PRETRAIN = (
    "pretrain.see_steps=2000",
    "pretrain.act_steps=3500",
    "pretrain.act_schedule_steps=8000",
)
FINE_TUNE = (
    "pretrain.act_steps=1000",
    "pretrain.act_learning_rate=5e-4",
    "pretrain.warmup_steps=100",
)


def steps(work: Path, out: Path) -> list[tuple[str, list[str]]]:
    """What is run, in order: module and its arguments."""
    clean = work / "clean"
    return [
        _record(work / "expert-demos", "expert", EXPERT_FRAMES, seed=0),
        _train(work / "expert-demos", work / "pretrain", clean, *PRETRAIN),
        _record(work / "rig-demos", "misjudging", RIG_FRAMES, seed=1),
        _train(work / "rig-demos", work / "fine-tune", out, f"base={clean}", *FINE_TUNE),
    ]


def _record(out: Path, operators: str, frames: int, seed: int) -> tuple[str, list[str]]:
    words = [
        f"--out={out}", f"--operators={operators}", f"--frames={frames}", f"--seed={seed}",
        f"--chunk={CHUNK_STEPS}", "--shard-frames=10000", f"--workers={WORKERS}",
    ]  # fmt: skip
    return "sim_bridge.tabletop.demos", words


def _train(demos: Path, work: Path, out: Path, *settings: str) -> tuple[str, list[str]]:
    words = [f"demos=[{demos}]", f"work={work}", f"out={out}", f"torch_threads={WORKERS}"]
    return "learner.nano", [*words, *settings, *COMMON]


def main(argv: list[str] | None = None) -> int:
    """Runs the steps; returns the exit status of the first that fails, else 0."""
    parser = argparse.ArgumentParser(prog="deploy.local.nano", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/nano"), help="what is kept")
    parser.add_argument(
        "--out",
        type=Path,
        default=PACKAGE_ROOT / "agent" / "assets" / "nano",
        help="folder of the model",
    )
    arguments = parser.parse_args(argv)
    try:
        for module, words in steps(arguments.work, arguments.out):
            print(f"$ python -m {module} {shlex.join(words)}", flush=True)
            command = module_command(module, words)
            status = subprocess.run(command, env=module_environment(), check=False).returncode
            if status != 0:
                return status if status > 0 else 128 - status  # a signal, as a shell reports it
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    print(f"The nano policy is in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

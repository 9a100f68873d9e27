"""`python -m deploy.local.nano`: rebuilds the bundled nano policy from nothing.

Two programs, one after the other: scripted demonstrations, then pretraining on them. Both keep what
is done in WORK, so the same command goes on after an interruption; it takes hours on a CPU.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from deploy.local.processes import PACKAGE_ROOT, module_command, module_environment

FRAMES = 40_000
CHUNK_STEPS = 5
WORKERS = 2  # processes of the demonstrations, then threads of the pretraining
INTERRUPTED = 130  # as a shell reports Ctrl-C


def steps(work: Path, out: Path) -> list[tuple[str, list[str]]]:
    """What is run, in order: module and its arguments."""
    demos = work / "demos"
    generate = [
        f"--out={demos}", f"--frames={FRAMES}", "--seed=0", f"--chunk={CHUNK_STEPS}",
        "--shard-frames=10000", f"--workers={WORKERS}",
    ]  # fmt: skip
    pretrain = [
        f"demos=[{demos}]", f"out={out}", f"work={work / 'pretrain'}", f"torch_threads={WORKERS}",
        "pretrain.see_steps=2000", "pretrain.act_steps=5250", "pretrain.act_schedule_steps=7000",
        "pretrain.compile=true", "pretrain.checkpoint_every=250",
    ]  # fmt: skip
    return [("sim_bridge.tabletop.demos", generate), ("learner.nano", pretrain)]


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

"""`python -m deploy.local.nano`: builds a nano policy from nothing.

Bundled ones: `nano` for the tabletop as published VLAs are made: pretraining on much clean data,
then fine-tuning on the demonstrations of one rig, whose operators misjudge places
(`sim_bridge/tabletop/operators.py`), which the policy copies. `nano-libero` for libero_spatial:
behaviour cloning of the scripted expert on five tasks, stopped while it still errs.

Baselines, which benchmarks compare with `nano`: `nano-scratch`, the same network, and `nano-cnn`,
a small convolutional one. Neither is pretrained on clean data: both stages of their training see
the demonstrations of the one rig alone, the very ones that `nano` is fine-tuned on.

Programs one after the other. Each keeps what is done in WORK, so the same command goes on after an
interruption; a bundled policy takes an hour or two on a CPU, a baseline under an hour.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from agent.process import Ended, StopFlag, stoppable
from agent.process.paths import user_path
from agent.process.words import list_setting_of, setting_of
from deploy.local.composition import CONFIGS
from deploy.local.processes import PACKAGE_ROOT, module_command, module_environment

WORKERS = 2  # processes of the demonstrations, then threads of the training
INTERRUPTED = 130  # as a shell reports Ctrl-C
COMMON = ("pretrain.compile=true", "pretrain.checkpoint_every=250", "pretrain.target_weight=1.0")
EXPERT_FRAMES, RIG_FRAMES, TABLETOP_CHUNK = 120_000, 20_000, 5
TABLETOP_RECORD = (f"--chunk={TABLETOP_CHUNK}", "--shard-frames=10000")
RIG = ("--operators=misjudging", f"--frames={RIG_FRAMES}", "--seed=1")
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
# The whole schedule, for nothing else has taught them to see and to handle things.
BASELINE = ("pretrain.see_steps=2000", "pretrain.act_steps=3500")
LIBERO, LIBERO_TASKS, LIBERO_FRAMES, LIBERO_CHUNK = "libero_spatial", range(5), 30_000, 8
CLONE = (
    "pretrain.see_steps=1200",
    "pretrain.act_steps=3500",
    "pretrain.act_schedule_steps=4500",
)
Steps = list[tuple[str, list[str]]]


def tabletop_steps(work: Path, out: Path) -> Steps:
    """What is run, in order: module and its arguments."""
    clean = work / "clean"
    expert = ["--operators=expert", f"--frames={EXPERT_FRAMES}", "--seed=0"]
    return [
        _record("tabletop", work / "expert-demos", [*TABLETOP_RECORD, *expert]),
        _train(work / "expert-demos", work / "pretrain", clean, *PRETRAIN),
        _record("tabletop", work / "rig-demos", [*TABLETOP_RECORD, *RIG]),
        _train(
            work / "rig-demos", work / "fine-tune", out, setting_of("base", str(clean)), *FINE_TUNE
        ),
    ]


def baseline_steps(work: Path, out: Path, variant: str) -> Steps:
    """The same for a policy of any variant that is never pretrained."""
    demos = work / "rig-demos"
    return [
        _record("tabletop", demos, [*TABLETOP_RECORD, *RIG]),
        _train(demos, work / "clone", out, f"variant={variant}", *BASELINE),
    ]


def libero_steps(work: Path, out: Path) -> Steps:
    """The same for five tasks of libero_spatial; the instructions of all ten can be read."""
    from omegaconf import OmegaConf

    suite = OmegaConf.load(CONFIGS / "suite" / f"{LIBERO}.yaml")
    readable = [task.instruction for task in suite.tasks]
    record = [
        f"--tasks={','.join(map(str, LIBERO_TASKS))}", f"--frames={LIBERO_FRAMES}",
        f"--chunk={LIBERO_CHUNK}", "--shard-frames=500",
    ]  # fmt: skip
    learn = [
        f"unnorm_key={LIBERO}",
        f"chunk_size={LIBERO_CHUNK}",
        list_setting_of("readable", readable),
    ]
    return [
        _record(LIBERO, work / "demos", record),
        _train(work / "demos", work / "clone", out, *learn, *CLONE),
    ]


POLICIES: dict[str, Callable[[Path, Path], Steps]] = {
    "nano": tabletop_steps,
    "nano-libero": libero_steps,
    "nano-scratch": partial(baseline_steps, variant="oft-discrete"),
    "nano-cnn": partial(baseline_steps, variant="cnn"),
}
ASSETS = PACKAGE_ROOT / "agent" / "assets"
BUNDLED = ("nano", "nano-libero")


def _record(suite: str, out: Path, settings: Sequence[str]) -> tuple[str, list[str]]:
    words = ["collect", f"--suite={suite}", f"--out={out}", *settings, f"--workers={WORKERS}"]
    return "sim_bridge.demos", words


def _train(demos: Path, work: Path, out: Path, *settings: str) -> tuple[str, list[str]]:
    words = [list_setting_of("demos", [str(demos)]), f"torch_threads={WORKERS}"]
    words += [setting_of("work", str(work)), setting_of("out", str(out))]
    words += ["replace=true"] if out.parent == ASSETS else []  # this command is there to do that
    return "learner.nano", [*words, *settings, *COMMON]


def main(argv: list[str] | None = None) -> int:
    """Runs the steps; returns the exit status of the first that fails, else 0."""
    parser = argparse.ArgumentParser(prog="deploy.local.nano", description=__doc__)
    parser.add_argument("--policy", choices=list(POLICIES), default="nano")
    parser.add_argument("--work", type=user_path, help="what is kept (default: runs/ and its name)")
    parser.add_argument(
        "--out", type=user_path,
        help="folder of the model (default: the bundled one; of a baseline runs/NAME/model)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    name = arguments.policy
    folder = Path("runs") / name
    work = arguments.work or folder
    bundled = ASSETS / name
    out = arguments.out or (bundled if name in BUNDLED else folder / "model")
    try:
        with StopFlag().unwinding():
            status = _take(POLICIES[name](work, out))
    except Ended:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    if status == 0:
        print(f"The policy {name} is in {out}")
    return status


def _take(steps: Steps) -> int:
    """The exit status of the first step that fails, else 0."""
    for module, words in steps:
        print(f"$ python -m {module} {shlex.join(words)}", flush=True)
        command = module_command(module, words)
        status = subprocess.run(command, env=module_environment(), check=False).returncode
        if status != 0:
            return status if status > 0 else 128 - status  # a signal, as a shell reports it
    return 0


if __name__ == "__main__":
    with stoppable("deploy.local.nano", INTERRUPTED):
        sys.exit(main())

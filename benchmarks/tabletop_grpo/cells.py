"""What is run: every cell of the report and the settings that make it one.

The budget all cells share is configs/budget/report.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy.local.composition import CONFIGS
from deploy.local.processes import PACKAGE_ROOT

REPORTS = PACKAGE_ROOT / "benchmarks" / "reports"
RESULTS = REPORTS / "tabletop-grpo"  # one small file a finished cell
RUNS = Path("runs/tabletop-grpo")  # relative to the repository, so that a cell's settings are too
DEMOS = RUNS / "demos"
DEMO_FRAMES, DEMO_SEED = 20_000, 7

SEEDS = (0, 1, 2)
SHARED = ("suite=tabletop", "budget=report")
CONTROLS = {
    "lr0": "learner.algorithm.learning_rate=0",
    "permuted": "learner.algorithm.advantage_control=permute_within_group",
}
SFT_RATES = ("3e-4", "1e-3", "3e-3")  # the middle one is configs/algorithm/sft-nano.yaml's
SFT_LENGTHS = (1, 2, 4, 8)  # iterations; a cell each, for nothing is evaluated between iterations
SFT_ALONE = ("1e-3", 8)  # rate and length at which every task is taught alone, the suite's check
SFT_SETTINGS = (
    "learner.algorithm.method=sft",
    f"learner.sft.demonstrations=[{DEMOS}]",
    "learner.evaluation.greedy=false",
)


@dataclass(frozen=True)
class Cell:
    """One run; `overrides` are Hydra's, and all that tells it from the other cells."""

    name: str
    overrides: tuple[str, ...]

    @property
    def needs_demonstrations(self) -> bool:
        """Whether it learns from the expert's demonstrations."""
        return "learner.algorithm.method=sft" in self.overrides


def grpo_name(seed: int) -> str:
    """The cell of GRPO on all tasks in sequence."""
    return f"grpo-seed{seed}"


def alone_name(slug: str) -> str:
    """The cell of GRPO on one task and nothing else."""
    return f"alone-{slug}"


def sft_name(rate: str, length: int) -> str:
    """The cell of supervised fine-tuning on the first task."""
    return f"sft-lr{rate}-{length}it"


def sft_alone_name(index: int, slug: str) -> str:
    """The cell of supervised fine-tuning on one task and nothing else, at `SFT_ALONE`."""
    return sft_name(*SFT_ALONE) if index == 0 else f"sft-alone-{slug}"


def declare_cells(train_tasks: list[str], held_out_tasks: list[str]) -> list[Cell]:
    """Every cell, in the order they are run.

    The first task alone needs no cell: after it, grpo-seed0 has done nothing else.
    """
    alone = [_only(index, train_tasks, held_out_tasks) for index in range(len(train_tasks))]
    cells = [Cell(grpo_name(seed), (*SHARED, f"seed={seed}")) for seed in SEEDS]
    cells += [Cell(name, (*SHARED, "seed=0", change)) for name, change in CONTROLS.items()]
    cells += [
        Cell(alone_name(slug), (*SHARED, "seed=0", *alone[index]))
        for index, slug in enumerate(train_tasks)
        if index > 0
    ]
    cells += [
        _fine_tuning(sft_name(rate, length), alone[0], rate, length)
        for rate in SFT_RATES
        for length in SFT_LENGTHS
    ]
    cells += [
        _fine_tuning(sft_alone_name(index, slug), alone[index], *SFT_ALONE)
        for index, slug in enumerate(train_tasks)
        if index > 0
    ]
    return cells


def _fine_tuning(name: str, only: tuple[str, str], rate: str, length: int) -> Cell:
    """Supervised fine-tuning on the task that `only` names."""
    changes = (
        f"learner.algorithm.learning_rate={rate}",
        f"learner.algorithm.iterations_per_task={length}",
    )
    return Cell(name, (*SHARED, "seed=0", *only, *SFT_SETTINGS, *changes))


def _only(index: int, train_tasks: list[str], held_out_tasks: list[str]) -> tuple[str, str]:
    """Trains one task; the others are measured as held-out tasks."""
    others = [slug for i, slug in enumerate(train_tasks) if i != index] + held_out_tasks
    return f"task_order=[{index}]", f"suite.held_out_tasks=[{','.join(others)}]"


def tabletop_tasks() -> tuple[list[str], list[str]]:
    """The suite's trained and held-out tasks."""
    from omegaconf import OmegaConf

    suite = OmegaConf.load(CONFIGS / "suite" / "tabletop.yaml")
    return list(suite.train_tasks), list(suite.held_out_tasks)

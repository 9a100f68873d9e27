"""What a comparison runs: a cell for each method and seed, and the beginnings that cells share.

A beginning is an ordinary run that ends early, by `learner.last_row`: after the base's evaluation
(row 0), or after the first task was learned and evaluated (row 1). A cell goes on from a copy of
it. Whether it may is decided from the composed settings: they must be alike in everything that
counts up to that row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from deploy.local.overrides import find_value, parse_overrides
from deploy.local.placement import BadSetting
from deploy.local.runfolder import recorded_settings
from deploy.local.settings import RunConfig, absolute_path, compose_run, find_model

BEGINNINGS = "beginnings"
# Continual methods that do the same as sequential fine-tuning until the end of row 1. Others act
# while the first task is learned, learn it with others or with other parts, or (dwe) evaluate the
# other tasks with the base.
IDLE_IN_FIRST_TASK = ("der", "er", "ewc", "sequential")
# What the base's evaluation does not depend on: how to learn, and the room for adapters.
OF_TRAINING = ("learner.algorithm", "learner.continual", "learner.sft", "agent.policy.adapter_rank")
CHOICES_OF_TRAINING = ("method", "algorithm", "continual")
# The base is evaluated on the same tasks, in whatever order they are learned.
OF_ORDER = ("task_order", "suite.train_tasks", "learner.suite.train_tasks")
KEY_CHARACTERS = 12


@dataclass(frozen=True)
class Cell:
    """One run of the comparison; `overrides` are all of its own, in Hydra's syntax."""

    name: str
    method: str
    seed: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One `perennial run` on the way to a cell's end: the cell's own, or a beginning.

    folder: its place below the folder of all runs. parent: the step from whose end it goes on;
    None if it begins with nothing. The folder alone says which step it is.
    """

    folder: str
    overrides: tuple[str, ...] = field(compare=False)
    parent: Step | None = field(default=None, compare=False)

    @property
    def chain(self) -> tuple[Step, ...]:
        """All steps up to this one, in the order they are run."""
        return (*(self.parent.chain if self.parent else ()), self)


def plan_cell(cell: Cell) -> Step:
    """The cell's own step, behind the beginnings that it may share. Raises BadSetting."""
    learner = compose(cell.overrides).processes["learner"]
    if learner["algorithm"]["iterations_per_task"] == 0:
        return Step(cell.name, cell.overrides)
    parent = _base(cell)
    is_longer = len(learner["suite"]["train_tasks"]) > 1
    if is_longer and learner["continual"]["method"] in IDLE_IN_FIRST_TASK:
        parent = _first_task(cell, parent) or parent
    return Step(cell.name, cell.overrides, parent)


@cache
def compose(overrides: tuple[str, ...]) -> RunConfig:
    """The run they ask for; nobody changes it. Raises BadSetting.

    The model need not be there: finished cells are reported on without it.
    """
    return compose_run(overrides, find=_place_of_model)


def require_model(step: Step) -> None:
    """Raises BadSetting if the model that the step begins with is not there."""
    find_model(compose(step.overrides).tree["model"]["model_dir"])


def _place_of_model(model_dir: str) -> Path:
    try:
        return find_model(model_dir)
    except BadSetting:
        return absolute_path("model.model_dir", model_dir)


def _base(cell: Cell) -> Step:
    """The base's evaluation, for all cells that differ in nothing but how they learn."""
    kept = _without_training(cell)
    is_shared = _before_training(settings_of(kept)) == _before_training(settings_of(cell.overrides))
    return _beginning("base", 0, kept if is_shared else cell.overrides, None)


def _first_task(cell: Cell, base: Step) -> Step | None:
    """The first task learned without a continual method; None if the cell would learn it else."""
    wanted = settings_of(cell.overrides)
    wanted["learner"]["continual"] = settings_of(_without_training(cell))["learner"]["continual"]
    kept = _without(cell.overrides, ("continual",), ("learner.continual",))
    plain = (*_without(kept, ("method",)), "method=sequential")
    for overrides in (plain, (*kept, "continual=sequential")):
        if _settings_if_any(overrides) == wanted:
            return _beginning("first-task", 1, overrides, base)
    return None


def _settings_if_any(overrides: tuple[str, ...]) -> dict[str, Any] | None:
    """None if they make no run: settings of a method's own have no place beside another's."""
    try:
        return settings_of(overrides)
    except BadSetting:
        return None


def _beginning(name: str, row: int, overrides: tuple[str, ...], parent: Step | None) -> Step:
    text = json.dumps([row, settings_of(overrides)], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:KEY_CHARACTERS]
    last_row = f"learner.last_row={row}"
    return Step(f"{BEGINNINGS}/{name}-{key}", (*overrides, last_row), parent)


def settings_of(overrides: tuple[str, ...]) -> dict[str, Any]:
    """A copy of the settings that decide a run's numbers."""
    return recorded_settings(compose(overrides))


def _before_training(settings: dict[str, Any]) -> dict[str, Any]:
    """What the base's evaluation depends on: its tasks as a set, nothing that trains."""
    for key in (*OF_TRAINING, *OF_ORDER):
        section, _, name = key.rpartition(".")
        node = find_value(settings, section) if section else settings
        value = node.pop(name)
        if name == "train_tasks":
            node[name] = sorted(value)
    return settings


def _without_training(cell: Cell) -> tuple[str, ...]:
    """The cell's overrides that do not say how to learn."""
    return _without(cell.overrides, CHOICES_OF_TRAINING, OF_TRAINING)


def _without(
    overrides: Sequence[str], groups: Sequence[str], sections: Sequence[str] = ()
) -> tuple[str, ...]:
    """The overrides that neither choose from `groups` nor set anything within `sections`."""
    kept = []
    for override in parse_overrides(overrides):
        group = override.text.partition("=")[0].lstrip("+~").partition("@")[0]
        if group not in groups and not any(override.touches(name) for name in sections):
            kept.append(override.text)
    return tuple(kept)

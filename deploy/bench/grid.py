"""The command line of a comparison: methods, seeds, where its files are, and settings for all."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.process.words import unquoted
from deploy.bench.cells import Cell, compose, settings_of
from deploy.local.composition import CONFIGS
from deploy.local.placement import BadSetting
from deploy.local.settings import absolute_path

BUDGET = "budget=bench"  # if no other is chosen
SEEDS = 3
# Settings of a single run, which the comparison gives each of its own.
OF_A_RUN = {
    "seed": "give seeds=N",
    "run_dir": "give out=FOLDER, and runs=FOLDER for the runs alone",
    "report": "the comparison writes its own",
    "parent_pid": "runs end with the comparison",
    "learner.last_row": "the comparison chooses where runs part",
    "continual": "a method chooses it; configs/method has them all",
}


@dataclass(frozen=True)
class Grid:
    """cells: in the order they are run. methods: name -> number of seeds.

    shared: the overrides of every cell. out: the report, and the results of finished cells in
    out/results. runs: the folders of the runs, which may be deleted.
    """

    cells: tuple[Cell, ...]
    methods: dict[str, int]
    shared: tuple[str, ...]
    out: Path
    runs: Path

    @property
    def results(self) -> Path:
        """Where each finished cell leaves a file."""
        return self.out / "results"


def parse_grid(words: Sequence[str]) -> Grid:
    """Raises BadSetting for what cannot be meant."""
    own, shared = _split(words)
    seeds = _count("seeds", own.get("seeds", str(SEEDS)))
    methods = _methods(own.get("method", ""), seeds)
    if not any(word.startswith("budget=") for word in shared):
        shared = [BUDGET, *shared]
    # Seed by seed: what is finished early is a comparison of all methods.
    cells = [
        Cell(f"{method}-seed{seed}", method, seed, (*shared, f"method={method}", f"seed={seed}"))
        for seed in range(max(methods.values()))
        for method, count in methods.items()
        if seed < count
    ]
    _refuse_alike([cell for cell in cells if cell.seed == 0])
    suite = compose(cells[0].overrides).processes["learner"]["suite"]["name"]
    out = absolute_path("out", own.get("out", f"runs/bench-{suite}"))
    runs = absolute_path("runs", own["runs"]) if "runs" in own else out / "runs"
    return Grid(tuple(cells), methods, tuple(shared), out, runs)


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The comparison's own settings, and the overrides of all runs."""
    own: dict[str, str] = {}
    shared: list[str] = []
    for word in words:
        name, separator, value = word.partition("=")
        if name in ("method", "seeds", "out", "runs"):
            if not separator or not value or name in own:
                raise BadSetting(f"{word}: expected {name}=VALUE, once")
            own[name] = unquoted(value)
        elif (bare := name.lstrip("+~").partition("@")[0]) in OF_A_RUN:
            raise BadSetting(f"{word}: drop it; {OF_A_RUN[bare]}")
        else:
            shared.append(word)
    return own, shared


def _refuse_alike(cells: Sequence[Cell]) -> None:
    """What is given by hand wins over a method's file, and could make one method of two."""
    known: dict[str, str] = {}
    for cell in cells:
        settings = json.dumps(settings_of(cell.overrides), sort_keys=True)
        other = known.setdefault(settings, cell.method)
        if other != cell.method:
            raise BadSetting(
                f"method: {cell.method} would be the same run as {other} with these settings; "
                "drop one of them, or the setting that both have"
            )


def _methods(text: str, seeds: int) -> dict[str, int]:
    """`sequential,ewc:1` -> the number of seeds of each."""
    known = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
    if not text:
        raise BadSetting(f"give method=NAME,NAME,...; there are: {', '.join(known)}")
    methods: dict[str, int] = {}
    for part in text.strip("[]").split(","):
        name, separator, count = part.strip().partition(":")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean '{nearest[0]}'? " if nearest else ""
            raise BadSetting(f"unknown method '{name}'; {hint}there are: {', '.join(known)}")
        if name in methods:
            raise BadSetting(f"method: {name} is named twice")
        methods[name] = _count(f"method {name}", count) if separator else seeds
    return methods


def _count(name: str, text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise BadSetting(f"{name}: expected the number of seeds, at least 1, got '{text}'")
    return int(text)

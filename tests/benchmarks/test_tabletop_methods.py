"""The methods' report: its cells compose, its arithmetic by hand, what is chosen is the best."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from benchmarks.remarks import REMARKS
from benchmarks.tabletop_methods import report, sections
from benchmarks.tabletop_methods.cells import (
    CHOSEN,
    CORE,
    JUDGED_PACE,
    OTHERS,
    PARTS,
    POLICIES,
    RATE,
    RESULTS,
    SINGLE,
    TRIED,
    UP_TO_ONE,
    VARIANTS,
    chosen,
    declare,
    pace_name,
    tuning_name,
)
from benchmarks.tabletop_methods.choice import choices
from benchmarks.tabletop_methods.targets import targets
from deploy.bench.cells import Cell, compose, plan_cell, settings_of
from deploy.bench.results import Result, ResultError, read_results, write_result
from deploy.local.composition import CONFIGS
from learner.config import LearnerConfig

TASKS, TRAINED = ["push", "pick", "stack"], ["push", "pick"]
EVERY = [cell for part in PARTS for cell in declare(part)]
SHARE = "sequential fine-tuning's share of the oracle's gain"
_NUMBER = re.compile(r"=[\d.]+(e-?\d+)?$")


def kinds(cell: Cell) -> set[str]:
    """What its overrides choose, whatever the numbers."""
    return {_NUMBER.sub("=N", override) for override in cell.overrides}


def representatives() -> list[Cell]:
    """Cells that together have every kind of override that any cell has."""
    seen: set[str] = set()
    found = []
    for cell in EVERY:
        if kinds(cell) - seen:
            seen |= kinds(cell)
            found.append(cell)
    return found


def make_result(
    name: str, final: Sequence[int] = (60, 60), own: int = 60, model: str = "nano"
) -> Result:
    """100 trials a cell: 40 at first, `own` once trained, `final` in the end."""
    successes = [[40, 40, 50], [own, 45, 50], [*final, 55]]
    is_joint = name.startswith("multitask")
    trials = [[100 * (row != 1 or not is_joint)] * 3 for row in range(3)]
    successes[1] = [0, 0, 0] if is_joint else successes[1]
    seed = re.search(r"seed(\d)", name)
    summary: dict[str, Any] = {
        "suite": "tabletop", "seed": int(seed[1]) if seed else 0, "tasks": TASKS,
        "train_tasks": TRAINED, "held_out_tasks": ["stack"], "final_avg": sum(final) / 200,
        "matrix": {"successes": successes, "trials": trials, "protocol": "disjoint",
                   "temperature": 1.0, "success": "once"},
        "settings": {"model": model, "versions": {"python": "3"}, "temperature": 1.0},
        "episodes": {"trained": 900, "filtered": 100, "eval": 900, "aborted": 0},
        "restarts": {"agent": 1},
    }  # fmt: skip
    cost = {"environment_steps": 12_000, "chunk_forwards": 4_000, "learned_chunks": 2_000,
            "wall_s": 600.0, "own_wall_s": 300.0, "own_episodes": 9, "starts": 3}  # fmt: skip
    times_s = {"wait": 60.0, "learn": 30.0, "publish": 10.0}
    machine = {"cores": 2, "processor": "x"}
    return Result(name, [], machine, times_s, [[0, 1, 3, 8]], summary, {}, ["v1"], cost)


def rows_of(lines: Sequence[str]) -> dict[str, list[str]]:
    """The rows of a table by their first cell."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {first: others for first, *others in cells}


def in_time(result: Result, learn_s: float) -> Result:
    """The same, that learned in another time."""
    return dataclasses.replace(result, time_s={"wait": 0.0, "learn": learn_s, "publish": 0.0})


@pytest.mark.slow
def test_every_kind_of_cell_is_a_run_that_the_learner_takes() -> None:
    for cell in representatives():
        values = compose(cell.overrides).processes["learner"]
        merged = OmegaConf.merge(OmegaConf.structured(LearnerConfig), OmegaConf.create(values))
        assert isinstance(OmegaConf.to_object(merged), LearnerConfig), cell.name


@pytest.mark.slow
def test_every_kind_of_cell_has_its_steps() -> None:
    for cell in representatives():
        assert plan_cell(cell).overrides == cell.overrides


def test_cells_have_names_of_their_own_and_no_two_are_the_same_run() -> None:
    assert len({cell.name for cell in EVERY}) == len(EVERY)
    known: dict[frozenset[str], str] = {}
    for cell in EVERY:
        other = known.setdefault(frozenset(cell.overrides), cell.name)
        assert other == cell.name


def test_every_method_that_can_be_chosen_is_measured() -> None:
    methods = {path.stem for path in (CONFIGS / "method").glob("*.yaml")}
    asynchronous, own_replay = "async", "er-own"  # part `pace`; a choice of er's memory
    assert methods - {*CORE, *SINGLE} == {asynchronous, own_replay}
    assert set(TRIED) | set(VARIANTS) <= {*CORE, *SINGLE}


@pytest.mark.parametrize("method", [*TRIED, *VARIANTS])
def test_a_method_is_tuned_as_it_is_run(method: str) -> None:
    """Beside the setting that is tuned, nothing that decides about learning differs."""
    origin = VARIANTS.get(method, method)
    key, values = TRIED[origin]
    tuned = next(c for c in declare("tuning") if c.name == tuning_name(origin, values[0]))
    wanted = {o for o in chosen(method) if not o.startswith(f"{key}=")}
    assert wanted <= set(tuned.overrides)
    assert key == RATE or any(o.startswith(f"{RATE}=") for o in wanted), "no budget's rate"


def test_choices_picks_the_best_and_nothing_before_all_are_measured() -> None:
    values = TRIED["ewc"][1]
    finals = dict.fromkeys(values, (40, 50))
    finals |= {values[0]: (50, 60), values[1]: (70, 60), values[2]: (60, 70)}
    results = {tuning_name("ewc", v): make_result("x", final) for v, final in finals.items()}
    choice = next(choice for choice in choices(results) if choice.method == "ewc")
    assert [*choice.finals.values()][:3] == [0.55, 0.65, 0.65]
    assert choice.best == values[1]  # the first of equals
    del results[tuning_name("ewc", values[2])]
    choice = next(choice for choice in choices(results) if choice.method == "ewc")
    assert choice.best is None
    assert choice.is_in_use


def test_what_is_used_did_best_among_the_committed_results() -> None:
    results, _ = read_results(RESULTS, [cell.name for cell in declare("tuning")])
    other = [
        f"{choice.method}: best is {choice.best}, used is {CHOSEN.get(choice.method)}"
        for choice in choices(results)
        if not choice.is_in_use
    ]
    assert not other
    assert {m: v for m, v in CHOSEN.items() if v not in TRIED[m][1]} == {}


def test_beyond_an_end_that_did_best_another_value_was_tried() -> None:
    results, _ = read_results(RESULTS, [cell.name for cell in declare("tuning")])
    left = [
        choice.method
        for choice in choices(results)
        if len(choice.finals) < 4 and choice.best in [*choice.finals][:: len(choice.finals) - 1]
    ]
    assert not set(left) - UP_TO_ONE, "three values, and the best of them is an outer one"


def test_axes_stand_beside_what_the_same_adapters_do_where_nothing_is_changed() -> None:
    names = ("sequential-seed0", "axis-noise-base", "axis-noise-sequential")
    results = {name: make_result(name, final=(60, 70)) for name in names}
    rows = rows_of(sections.axes(results))
    shown = {axis: [cell.split()[0] for cell in rows[axis]] for axis in ("none", "noise")}
    # Of an axis the only row is the first: 40 and 40 of 100.
    assert shown == {"none": ["40.0", "–", "65.0", "–"], "noise": ["40.0", "–", "40.0", "–"]}
    assert "none" not in rows_of(sections.axes({names[0]: results[names[0]]}))


def test_what_is_traded_off_has_every_value_that_was_run() -> None:
    run = {c.name for c in declare("others")} | {f"{m}-seed0" for m in (*OTHERS, "multitask")}
    results = {name: make_result(name) for name in run}
    found = sections.trade_off_runs(results)
    assert {traded.result.name for traded in found} == run - {"multitask-seed0"}
    for method in OTHERS:
        values = [float(traded.value) for traded in found if traded.method == method]
        assert values == sorted(values)


def test_targets_are_judged_over_the_seeds_that_both_have() -> None:
    results = {
        r.name: r
        for r in (
            *(make_result(f"sequential-seed{s}", (50 + 10 * s, 60)) for s in (0, 1, 2)),
            *(make_result(f"multitask-seed{s}", (60, 70)) for s in (0, 2)),
        )
    }
    # Gains 15, 20, 25 of sequential; 25 of the oracle: 60% and 100%, mean 80%, SE 20, t(1) = 12.71.
    rows = rows_of(targets(results))
    assert rows[SHARE] == ["≥ 80%", "80% [-174, 334]", "2 of 3 seeds so far"]
    # Forgotten: 60 - (50, 60, 70): mean 0, SE 5.77, t(2) = 4.303.
    assert rows["its forgetting, NBT (final)"][1:] == ["+0.0 [-24.8, 24.8]", "**met**"]
    results["multitask-seed1"] = make_result("multitask-seed1", (60, 70))
    assert rows_of(targets(results))[SHARE][1:] == [
        "80% [30, 130]",
        "**met**",
    ]  # 60, 80, 100: SE 11.55
    results["multitask-seed1"] = make_result("multitask-seed1", (40, 40))
    assert rows_of(targets(results))[SHARE][1:] == [
        "–",
        "in a seed the oracle gained nothing",
    ]


def test_paces_are_compared_seed_by_seed() -> None:
    made = {
        ("sequential", 0): 100.0, ("async", 0): 60.0, ("sequential", 1): 50.0, ("async", 1): 35.0,
        ("sequential", 2): 10.0,
    }  # fmt: skip
    results = {
        pace_name(JUDGED_PACE, mode, seed): in_time(make_result("any"), learn_s)
        for (mode, seed), learn_s in made.items()
    }
    row = f"wall time of learning, asynchronous / synchronous, {JUDGED_PACE}"
    assert rows_of(targets(results))[row][1:] == ["0.65 (0.60, 0.70)", "2 of 3 seeds so far"]
    results[pace_name(JUDGED_PACE, "async", 2)] = in_time(make_result("any"), 8.6)
    assert rows_of(targets(results))[row][1:] == ["0.72 (0.60, 0.70, 0.86)", "**missed**"]
    unpaced = row.replace(JUDGED_PACE, "unpaced")
    assert rows_of(targets(results))[unpaced][2] == "not measured yet"


@pytest.mark.parametrize(
    ("lost", "told", "verdict"),
    [
        ((2, 0, 4), "-2.0 [-7.0, 3.0]", "**met**"),
        ((8, 10, 12), "-10.0 [-15.0, -5.0]", "**missed**"),
    ],
)
def test_modes_are_compared_by_the_interval_of_their_difference(
    lost: Sequence[int], told: str, verdict: str
) -> None:
    """Student's with three seeds: 4.303 times the standard error, here 2 / sqrt(3) points."""
    results = {}
    for seed, points in enumerate(lost):
        results[pace_name("unpaced", "sequential", seed)] = make_result("any", (60, 60))
        results[pace_name("unpaced", "async", seed)] = make_result("any", (60 - points,) * 2)
    row = rows_of(targets(results))["success, asynchronous less synchronous"]
    assert row[1:] == [told, verdict]


def test_what_was_learned_is_told_beside_what_was_forgotten() -> None:
    result = make_result("sequential-seed0", (50, 70), own=80)
    # 80% and 70% against 40% and 40%, each of 100: variances .16, .21, .24, .24, by the hundred.
    # Own rows 80 and 70, at first 40 each: 35 points. Of the first task 80 - 50 are gone.
    assert sections.learned(result) == pytest.approx((0.35, 0.0085**0.5 / 2))
    row = rows_of(sections.trade_off({result.name: result}))["sequential"]
    assert row[0] == f"learning_rate {CHOSEN['sequential']}"
    assert [cell.split()[0] for cell in row[1:]] == ["+35.0", "+30.0"]
    assert sections.learned(make_result("multitask-seed0")) is None


def test_a_report_has_what_is_measured_and_names_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    monkeypatch.setattr(report, "REPORTS", tmp_path)
    monkeypatch.setattr(report, "RESULTS", results)
    cells = {cell.name: cell for cell in EVERY}
    for name, model in (("sequential-seed0", "nano"), ("ewc-seed0", "nano"), ("cnn-seed0", "cnn")):
        made = make_result(name, model=model)
        settings = settings_of(cells[name].overrides)
        write_result(results, dataclasses.replace(made, settings=settings))
    (results / REMARKS).write_text("Why it came so.\n")
    paths = report.write_report()
    assert {path.name for path in paths} == {
        "tabletop-methods.md", "tabletop-methods-curves.png", "tabletop-methods-trade-off.png"
    }  # fmt: skip
    text = paths[0].read_text()
    assert f"{len(CORE) * 3 - 2} of {len(CORE) * 3} of part `core`" in text
    assert f"1 of {len(POLICIES)} of part `policies`" in text
    assert "| base, nano | 1 | 40.0 (± 3.5) |" in text
    assert "| base, cnn | 1 |" in text
    assert "All 3 cells of this report together" in text
    assert "share counted once: 0.2 h." in text  # 5 minutes each
    told = [line.split() for line in text.splitlines() if line.startswith("perennial run")]
    assert [tuple(words[2:]) for words in told] == [
        cells[name].overrides for name in ("sequential-seed0", "ewc-seed0", "cnn-seed0")
    ]
    assert "## Remarks\n\nWhy it came so.\n" in text
    assert "| cnn | 13.1 | 60.0 (± 3.5) | +11.4 | +0.0 (± 6.9) |" in text
    wrong = dataclasses.replace(made, settings=settings_of(cells["ewc-seed0"].overrides))
    write_result(results, wrong)
    with pytest.raises(ResultError, match="cnn-seed0"):
        report.write_report()

"""What a comparison asks for: its cells, the beginnings they share, and what that will cost."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from deploy.bench.cells import IDLE_IN_FIRST_TASK, Step, compose, plan_cell
from deploy.bench.estimate import Effort, clock, describe, estimate, own_effort
from deploy.bench.grid import Grid, parse_grid
from deploy.local.composition import CONFIGS
from deploy.local.placement import BadSetting
from learner.config import LearnerConfig
from learner.continual.settings import METHODS

TOY = ("suite=toy", "budget=smoke")


def chains(*words: str) -> dict[str, list[str]]:
    """Cell -> the folders of its steps."""
    return {
        cell.name: [step.folder for step in plan_cell(cell).chain] for cell in grid(*words).cells
    }


def grid(*words: str) -> Grid:
    return parse_grid([*TOY, *words])


def test_cells_come_seed_by_seed_and_a_method_may_have_fewer() -> None:
    found = parse_grid(["method=sequential,ewc:1", "seeds=2", "out=x", "runs=y/z"])
    assert [cell.name for cell in found.cells] == ["sequential-seed0", "ewc-seed0",
                                                   "sequential-seed1"]  # fmt: skip
    assert found.cells[0].overrides == ("budget=bench", "method=sequential", "seed=0")
    assert (found.results, found.runs) == (Path("x/results").resolve(), Path("y/z").resolve())
    assert grid("method=ewc").out == Path("runs/bench-toy").resolve()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "give method=NAME,NAME,...; there are: "),
        (["method=ewcc"], "unknown method 'ewcc'; did you mean 'ewc'?"),
        (["method=ewc,ewc"], "ewc is named twice"),
        (["method=ewc:0"], "method ewc: expected the number of seeds, at least 1, got '0'"),
        (["method=ewc", "seeds=three"], "seeds: expected the number of seeds"),
        (["method=ewc", "out"], "out: expected out=VALUE"),
        (["method=ewc", "seed=1"], "seed=1: drop it; give seeds=N"),
        (["method=ewc", "+learner.last_row=1"], "drop it; the comparison chooses"),
        (["method=ewc", "sede=1"], "did you mean 'seed'"),
        (["method=ewc", "continual=er"], "continual=er: drop it; a method chooses it"),
        (["method=ewc", "continual@learner.continual=er"], "drop it; a method chooses it"),
        (["method=ppo,sequential", "algorithm=grpo-nano"], "sequential would be the same run as"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_refused_in_one_line(words: list[str], expected: str) -> None:
    with pytest.raises(BadSetting) as refusal:
        parse_grid(words)
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_methods_share_what_they_do_alike() -> None:
    found = chains("method=sequential,ewc,er,multitask,ppo,reversed", "seeds=1")
    base, first, own = found["sequential-seed0"]
    assert own == "sequential-seed0"
    for name in ("ewc-seed0", "er-seed0"):
        assert found[name][:2] == [base, first]
    assert found["multitask-seed0"] == [base, "multitask-seed0"]  # learns all tasks at once
    for name in ("ppo-seed0", "reversed-seed0"):
        assert found[name][0] == base
        assert found[name][1] not in (first, name)


def test_methods_that_act_from_the_start_learn_the_first_task_themselves() -> None:
    assert set(IDLE_IN_FIRST_TASK) <= set(METHODS)
    found = chains("method=retain,slca,dwe,crl-vla", "seeds=1")
    assert all(len(steps) == 2 for steps in found.values())  # the base, and the cell itself


def test_a_beginning_is_another_where_a_setting_counts_before_its_end() -> None:
    base, first, _ = chains("method=ewc", "seeds=1")["ewc-seed0"]
    slower = chains("method=ewc", "seeds=1", "learner.algorithm.learning_rate=0.001")["ewc-seed0"]
    assert (slower[0], slower[1] == first) == (base, False)
    wider = chains("method=ewc", "seeds=1", "learner.algorithm.lora_rank=4")["ewc-seed0"]
    assert (wider[0], wider[1] == first) == (base, False)
    weaker = chains("method=ewc", "seeds=1", "learner.continual.ewc.weight=1")["ewc-seed0"]
    assert weaker[:2] == [base, first]
    assert chains("method=ewc", "seeds=1", "suite.eval_init_states=5")["ewc-seed0"][0] != base
    assert chains("method=ewc", "seeds=2")["ewc-seed1"][0] != base
    assert chains("method=ewc", "seeds=1", "workers=2")["ewc-seed0"][:2] == [base, first]


@pytest.mark.slow
def test_every_step_of_every_method_is_a_run_that_the_learner_takes() -> None:
    methods = ",".join(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
    steps = {
        step
        for cell in parse_grid([f"method={methods}", "seeds=1"]).cells
        for step in plan_cell(cell).chain
    }
    for step in steps:
        learner = compose(step.overrides).processes["learner"]
        merged = OmegaConf.merge(OmegaConf.structured(LearnerConfig), OmegaConf.create(learner))
        assert isinstance(OmegaConf.to_object(merged), LearnerConfig)


def test_what_ends_with_its_beginning_has_none() -> None:
    one_task = chains("method=sequential", "seeds=1", "task_order=[0]")["sequential-seed0"]
    assert [name.partition("-")[0] for name in one_task] == ["beginnings/base", "sequential"]
    nothing = ("method=sequential", "seeds=1", "learner.algorithm.iterations_per_task=0")
    assert chains(*nothing)["sequential-seed0"] == ["sequential-seed0"]


def test_the_estimate_counts_what_is_shared_once() -> None:
    cells = grid("method=sequential,ewc", "seeds=1", "learner.evaluation.greedy=false").cells
    plans = [plan_cell(cell) for cell in cells]
    # 4 states, 3 tasks: base and last row whole, the row between its own task alone; 2 iterations
    # of 2 groups of 4 a task.
    parts = [Effort(0, 12), Effort(16, 4), Effort(16, 12)]
    assert [own_effort(step) for step in plans[0].chain] == parts
    steps = list(dict.fromkeys(step for plan in plans for step in plan.chain))
    found = estimate(plans, {}, steps)
    assert found.effort == Effort(16 + 2 * 16, 12 + 4 + 2 * 12)
    lines = describe(found, cells=2)
    assert lines[0] == "2 cells, 0 have a result, 2 to run"
    assert "2 beginnings that cells share: 32 episodes saved" in lines
    assert describe(estimate([], {}, []), cells=0) == ["0 cells, 0 have a result, 0 to run"]


def test_a_step_is_its_folder() -> None:
    assert Step("a", ("x",)) == Step("a", ("y",)) != Step("b", ("x",))


@pytest.mark.parametrize(
    ("time_s", "text"), [(1, "1 min"), (3540, "59 min"), (3570, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_times_are_told_in_words(time_s: float, text: str) -> None:
    assert clock(time_s) == text

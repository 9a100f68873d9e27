"""The success matrix's figures against hand-made cases."""

import math
import random
from dataclasses import replace

import pytest

from deploy.local.statistics import Matrix, Rate
from learner.matrix import SuccessMatrix

# Columns in percent of 100 trials, None: not measured. Trained are a, b, c in this order, held out
# x, y; rows: base, after a, after b, after c.
THREE = {
    "a": (20, 60, 50, 70), "b": (10, 30, 90, 60), "c": (45, 40, 65, 80),
    "x": (35, 30, 40, 25), "y": (5, 10, 20, 15),
}  # fmt: skip
TWO = {"a": (40, 80, 70), "b": (30, 35, 60), "x": (20, None, 25), "y": (30, None, 5)}
ONE = {"a": (50, 75), "x": (20, 40), "y": (60, None)}
CURVES = {
    "a": [Rate(6, 24), Rate(12, 16)],  # 25%, 75%
    "b": [Rate(2, 10), Rate(7, 10), Rate(9, 10)],  # 20%, 70%, 90%
    "c": [Rate(20, 50)],
}


def make_matrix(columns: dict[str, tuple[int | None, ...]], without: str = "") -> Matrix:
    """Matrix of `columns`, less the cell `without`, as in "2a"."""
    tasks = list(columns)
    cells = [
        [
            Rate(0, 0) if p is None or f"{row}{task}" == without else Rate(p, 100)
            for task, p in zip(tasks, percents, strict=True)
        ]
        for row, percents in enumerate(zip(*columns.values(), strict=True))
    ]
    trained, held_out = ([t for t in tasks if t in group] for group in ("abc", "xy"))
    return Matrix(tasks, trained, held_out, cells)


def values(matrix: Matrix) -> dict[str, float | None]:
    return {name: figure and figure[0] for name, figure in matrix.figures().items()}


def test_figures_of_three_tasks() -> None:
    assert values(replace(make_matrix(THREE), curves=CURVES)) == pytest.approx(
        {
            "base_avg": 0.25,  # (20 + 10 + 45) / 3
            "final_avg": 0.70,  # (70 + 60 + 80) / 3
            "gain": 0.45,
            "nbt_final": 0.10,  # (60 - 70 = -10, 90 - 60 = 30) / 2
            "nbt_libero": 0.15,  # a: 60 - (50 + 70) / 2 = 0, b: 30
            "bwt": -0.10,
            "fwt_zero": 0.40 / 3,  # a: 0, b: 30 - 10 = 20, c: 65 - 45 = 20
            "fwt_libero_train": 0.50,  # (50 + 60 + 40) / 3
            "ft_crl_vla": 0.20,
            "f_crl_vla": 0.10,  # a: 60 - 70 = -10, b: 90 - 60 = 30
            "base_zero_shot": 0.20,
            "final_zero_shot": 0.20,
        }
    )


def test_figures_of_two_tasks() -> None:
    assert values(make_matrix(TWO)) == pytest.approx(
        {
            "base_avg": 0.35,
            "final_avg": 0.65,
            "gain": 0.30,
            "nbt_final": 0.10,
            "nbt_libero": 0.10,
            "bwt": -0.10,
            "fwt_zero": 0.025,  # (0 + 5) / 2
            "fwt_libero_train": None,
            "ft_crl_vla": 0.05,
            "f_crl_vla": 0.10,
            "base_zero_shot": 0.25,
            "final_zero_shot": 0.15,
        }
    )


def test_one_task_has_no_transfer_and_what_was_not_measured_is_none() -> None:
    found = {name: value for name, value in values(make_matrix(ONE)).items() if value is not None}
    assert found == pytest.approx(
        {"base_avg": 0.50, "final_avg": 0.75, "gain": 0.25, "base_zero_shot": 0.40}
    )


NEEDS = {
    "base_avg": "0a 0b 0c",
    "final_avg": "3a 3b 3c",
    "gain": "0a 0b 0c 3a 3b 3c",
    "nbt_final": "1a 3a 2b 3b",
    "nbt_libero": "1a 2a 3a 2b 3b",
    "bwt": "1a 3a 2b 3b",
    "fwt_zero": "0b 1b 0c 2c",
    "fwt_libero_train": "",
    "ft_crl_vla": "0b 1b 0c 2c",
    "f_crl_vla": "0a 1a 2a 3a 0b 1b 2b 3b",
    "base_zero_shot": "0x 0y",
    "final_zero_shot": "3x 3y",
}


@pytest.mark.parametrize("cell", [f"{row}{task}" for task in THREE for row in range(4)])
def test_without_a_cell_just_the_figures_that_need_it_are_none(cell: str) -> None:
    found = replace(make_matrix(THREE, without=cell), curves=CURVES).figures()
    missing = {name for name, figure in found.items() if figure is None}
    assert missing == {name for name, cells in NEEDS.items() if cell in cells.split()}


def test_the_error_of_a_difference_adds_variances() -> None:
    gain = make_matrix({"a": (50, 50, 50), "b": (50, None, 50)}).gain()
    assert gain is not None
    assert gain[1] == pytest.approx(math.sqrt(4 * 0.25 / 100) / 2)


def test_the_learner_says_the_same_of_any_matrix() -> None:
    """Two implementations that share no code; in every other matrix cells were not measured."""
    drawn = random.Random(5)
    for number, trained in enumerate(("", "a", "ab", "abc", "abcde") * 8):
        learner = SuccessMatrix([*trained, "x", "y"], [*trained], ["x", "y"])
        for row in range(len(trained) + 1):
            for task in learner.tasks:
                trials = drawn.choice((3, 50, 100, 200, 0) if number % 2 else (3, 50))
                learner.record(row, task, drawn.randint(0, trials), trials)
        learner.curves = {t: [(k, 9) for k in range(drawn.randint(1, 4))] for t in trained}
        recounted = replace(
            Matrix.from_counts(vars(learner), learner.to_dict()),
            curves={task: [Rate(*c) for c in curve] for task, curve in learner.curves.items()},
        )
        found = {name: figure or (None, None) for name, figure in recounted.figures().items()}
        expected = learner.metrics()
        assert {name: value for name, (value, _) in found.items()} == pytest.approx(
            {name: value for name, value in expected.items() if not name.endswith("_se")}
        )
        assert {f"{name}_se": error for name, (_, error) in found.items()} == pytest.approx(
            {name: value for name, value in expected.items() if name.endswith("_se")}
        )


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 7), (50, 100)])
def test_wilson_interval_solves_its_equation(successes: int, trials: int) -> None:
    """Both ends p0 satisfy |p - p0| = z sqrt(p0 (1 - p0) / n) (Wilson 1927)."""
    rate = Rate(successes, trials)
    for end in rate.interval():
        distance = 1.959963984540054 * math.sqrt(max(0.0, end * (1 - end)) / trials)
        assert abs(rate.value - end) == pytest.approx(distance, abs=1e-6)


def test_the_interval_holds_the_rate_whatever_is_rounded() -> None:
    for trials in range(1, 120):
        for successes in range(trials + 1):
            rate = Rate(successes, trials)
            low, high = rate.interval()
            assert 0 <= low <= rate.value <= high <= 1


def test_wilson_interval_matches_published_values() -> None:
    # Newcombe 1998, table I: 81/263 and 0/20
    assert Rate(81, 263).interval() == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert Rate(0, 20).interval() == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_no_trials_say_nothing() -> None:
    assert Rate(0, 0).interval() == (0.0, 1.0)

import math

import pytest

from learner.matrix import UNDEFINED, SuccessMatrix

CELLS = {
    (0, "a"): (40, 100), (0, "b"): (50, 100), (0, "c"): (30, 100), (0, "h"): (25, 50),
    (1, "a"): (70, 100), (2, "b"): (80, 100), (3, "c"): (60, 100),
    (3, "a"): (60, 100), (3, "b"): (84, 100), (3, "h"): (20, 50),
}  # fmt: skip


def filled(cells=CELLS):
    matrix = SuccessMatrix(["a", "b", "c", "h"], ["a", "b", "c"], ["h"])
    for (row, task), counts in cells.items():
        matrix.record(row, task, *counts)
    return matrix


def se(*counts):
    return math.sqrt(sum(s / n * (1 - s / n) / n for s, n in counts))


def test_figures_match_hand_computed_values():
    matrix = filled()
    assert matrix.base_average().value == pytest.approx(0.4)
    assert matrix.final_average().value == pytest.approx((0.60 + 0.84 + 0.60) / 3)
    assert matrix.gain().value == pytest.approx(0.28)
    assert matrix.nbt().value == pytest.approx(((0.70 - 0.60) + (0.80 - 0.84)) / 2)
    assert matrix.bwt().value == pytest.approx(-0.03)
    assert matrix.zero_shot(0).value == pytest.approx(0.5)
    assert matrix.zero_shot(3).value == pytest.approx(0.4)


def test_standard_errors_match_hand_computed_values():
    matrix = filled()
    assert matrix.base_average().standard_error == pytest.approx(
        se((40, 100), (50, 100), (30, 100)) / 3
    )
    assert matrix.nbt().standard_error == pytest.approx(
        se((70, 100), (60, 100), (80, 100), (84, 100)) / 2
    )
    assert matrix.zero_shot(3).standard_error == pytest.approx(se((20, 50)))


def test_a_figure_with_a_missing_cell_is_undefined_not_guessed():
    cells = {k: v for k, v in CELLS.items() if k != (1, "a")}
    assert filled(cells).nbt() == UNDEFINED
    assert filled(cells).metrics()["nbt_se"] is None
    assert filled().fwt() == UNDEFINED  # S(1, b) was not measured
    assert filled({**CELLS, (1, "b"): (55, 100), (2, "c"): (33, 100)}).fwt().value == (
        pytest.approx((0.05 + 0.03) / 2)
    )


def test_forgetting_takes_the_best_row_nbt_the_own_row():
    matrix = filled({**CELLS, (2, "a"): (90, 100)})
    assert matrix.forgetting().value == pytest.approx(((0.9 - 0.6) + (0.80 - 0.84)) / 2)
    assert matrix.nbt().value == pytest.approx(0.03)


def test_one_task_has_no_nbt():
    matrix = SuccessMatrix(["a"], ["a"], [])
    matrix.record(0, "a", 1, 2)
    matrix.record(1, "a", 2, 2)
    assert matrix.nbt() == UNDEFINED
    assert matrix.zero_shot(0) == UNDEFINED
    assert matrix.gain().value == pytest.approx(0.5)


def test_impossible_counts_and_unknown_columns_are_refused():
    with pytest.raises(ValueError, match="5 successes of 4"):
        filled().record(0, "a", 5, 4)
    with pytest.raises(ValueError, match="not columns"):
        SuccessMatrix(["a"], ["b"], [])

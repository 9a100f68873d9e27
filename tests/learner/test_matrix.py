"""Every figure against matrices worked out by hand; S(i, j) below in percent of 100 trials."""

import math

import pytest

from learner.matrix import UNDEFINED, SuccessMatrix

# three trained tasks (a, b, c in this order) and two held out (x, y); rows: base, after a, b, c
THREE = {
    "a": (40, 70, 90, 60),
    "b": (50, 55, 80, 84),
    "c": (30, 36, 27, 60),
    "x": (25, 30, 20, 35),
    "y": (60, 58, 62, 45),
}
CURVES = {"a": [(10, 20), (16, 20)], "b": [(5, 10), (9, 10), (10, 10)], "c": [(12, 40)]}
EXPECTED_THREE = {
    "base_avg": 0.40,  # (40 + 50 + 30) / 3
    "final_avg": 0.68,  # (60 + 84 + 60) / 3
    "gain": 0.28,
    "nbt_final": 0.03,  # (70 - 60 = 10, 80 - 84 = -4) / 2
    "nbt_libero": -0.045,  # a: (70 - 90 = -20, 70 - 60 = 10) / 2 = -5; b: -4; (-5 - 4) / 2
    "bwt": -0.03,
    "fwt_zero": 0.02 / 3,  # a: 0, b: 55 - 50 = 5, c: 27 - 30 = -3
    "fwt_libero_train": 1.75 / 3,  # a: (0.5 + 0.8) / 2, b: (0.5 + 0.9 + 1) / 3, c: 0.3
    "ft_crl_vla": 0.01,  # (5 - 3) / 2
    "f_crl_vla": 0.13,  # a: 90 - 60 = 30, b: 80 - 84 = -4
    "base_zero_shot": 0.425,
    "final_zero_shot": 0.40,
}
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
TWO = {"a": (40, 80, 70), "b": (30, 35, 60), "x": (20, None, 25), "y": (50, None, 45)}
EXPECTED_TWO = {
    "base_avg": 0.35,
    "final_avg": 0.65,
    "gain": 0.30,
    "nbt_final": 0.10,
    "nbt_libero": 0.10,  # one later row: the same
    "bwt": -0.10,
    "fwt_zero": 0.025,  # (0 + 5) / 2
    "fwt_libero_train": None,
    "ft_crl_vla": 0.05,
    "f_crl_vla": 0.10,
    "base_zero_shot": 0.35,
    "final_zero_shot": 0.35,
}
ONE = {"a": (50, 75), "x": (20, 40), "y": (60, None)}
EXPECTED_ONE = {
    "base_avg": 0.50,
    "final_avg": 0.75,
    "gain": 0.25,
    "nbt_final": None,
    "nbt_libero": None,
    "bwt": None,
    "fwt_zero": None,
    "fwt_libero_train": None,
    "ft_crl_vla": None,
    "f_crl_vla": None,
    "base_zero_shot": 0.40,
    "final_zero_shot": None,  # y was not measured
}


def filled(columns, without=""):
    """Matrix of `columns`, less the cell `without`, as in "2a"."""
    trained = [task for task in columns if task in "abc"]
    matrix = SuccessMatrix(list(columns), trained, [task for task in columns if task in "xy"])
    for task, column in columns.items():
        for row, successes in enumerate(column):
            if successes is not None and f"{row}{task}" != without:
                matrix.record(row, task, successes, 100)
    return matrix


def values(matrix):
    return {name: v for name, v in matrix.metrics().items() if not name.endswith("_se")}


def test_figures_of_three_tasks():
    matrix = filled(THREE)
    matrix.curves = CURVES
    assert values(matrix) == pytest.approx(EXPECTED_THREE)


@pytest.mark.parametrize(("columns", "expected"), [(TWO, EXPECTED_TWO), (ONE, EXPECTED_ONE)])
def test_figures_of_fewer_tasks(columns, expected):
    found = values(filled(columns))
    assert found == pytest.approx(expected)
    assert {name for name, value in found.items() if value is None} == {
        name for name, value in expected.items() if value is None
    }


@pytest.mark.parametrize("cell", [f"{row}{task}" for task in THREE for row in range(4)])
def test_without_a_cell_just_the_figures_that_need_it_are_undefined(cell):
    matrix = filled(THREE, without=cell)
    matrix.curves = CURVES
    found = matrix.metrics()
    undefined = {name for name in NEEDS if found[name] is None}
    assert undefined == {name for name, cells in NEEDS.items() if cell in cells.split()}
    assert {name for name in NEEDS if found[f"{name}_se"] is None} == undefined


def test_standard_errors_weigh_each_cell_as_the_figure_does():
    """p (1 - p) / 100 is 0.0021 at 70%, 0.0024 at 60%, 0.0016 at 80%, 0.001344 at 84%, ..."""
    matrix = filled(THREE)
    matrix.curves = CURVES
    found = matrix.metrics()
    expected = {
        "base_avg_se": math.sqrt(0.0024 + 0.0025 + 0.0021) / 3,
        "nbt_final_se": math.sqrt(0.0021 + 0.0024 + 0.0016 + 0.001344) / 2,
        "nbt_libero_se": math.sqrt(0.0021 + (0.0009 + 0.0024) / 4 + 0.0016 + 0.001344) / 2,
        "bwt_se": math.sqrt(0.0021 + 0.0024 + 0.0016 + 0.001344) / 2,
        "fwt_zero_se": math.sqrt(0.002475 + 0.0025 + 0.001971 + 0.0021) / 3,
        "ft_crl_vla_se": math.sqrt(0.002475 + 0.0025 + 0.001971 + 0.0021) / 2,
        "f_crl_vla_se": math.sqrt(0.0009 + 0.0024 + 0.0016 + 0.001344) / 2,
        # a: (0.25 + 0.16) / 20 / 4, b: (0.25 + 0.09 + 0) / 10 / 9, c: 0.21 / 40
        "fwt_libero_train_se": math.sqrt(0.005125 + 0.034 / 9 + 0.00525) / 3,
        "final_zero_shot_se": math.sqrt(0.002275 + 0.002475) / 2,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_base_counts_among_the_rows_that_f_looks_for_its_best_in():
    found = values(filled({**THREE, "a": (95, 70, 90, 60)}))
    assert found["f_crl_vla"] == pytest.approx((0.35 - 0.04) / 2)
    assert found["nbt_final"] == pytest.approx(0.03)


def test_a_task_without_iterations_leaves_learning_speed_undefined():
    matrix = filled(THREE)
    matrix.curves = {"a": CURVES["a"], "b": CURVES["b"]}
    assert matrix.fwt_libero_train() == UNDEFINED


def test_nothing_trained_and_nothing_held_out():
    matrix = filled({"a": (50, 75)})
    assert matrix.zero_shot(0) == UNDEFINED
    assert SuccessMatrix(["x"], [], ["x"]).metrics()["gain"] is None


def test_impossible_counts_and_unknown_columns_are_refused():
    with pytest.raises(ValueError, match="5 successes of 4"):
        filled(THREE).record(0, "a", 5, 4)
    with pytest.raises(ValueError, match="not columns"):
        SuccessMatrix(["a"], ["b"], [])

"""Means over seeds and Student's intervals, against printed tables."""

import math

import pytest

from deploy.local.seeds import mean_interval, over_seeds, t_quantile

# 97.5% points of t, which bound 95%, as statistical tables print them
TABLE_95 = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
    10: 2.228, 15: 2.131, 20: 2.086, 25: 2.060, 29: 2.045, 30: 2.042, 120: 1.980,
}  # fmt: skip
TABLE_99 = {1: 63.657, 2: 9.925, 3: 5.841, 10: 3.169, 30: 2.750}


@pytest.mark.parametrize(("freedom", "t"), TABLE_95.items())
def test_quantiles_are_those_of_the_tables(freedom: int, t: float) -> None:
    assert t_quantile(0.95, freedom) == pytest.approx(t, abs=6e-4)


@pytest.mark.parametrize(("freedom", "t"), TABLE_99.items())
def test_quantiles_of_another_level(freedom: int, t: float) -> None:
    assert t_quantile(0.99, freedom) == pytest.approx(t, abs=6e-4)


def test_quantiles_with_a_closed_form() -> None:
    for level in (0.5, 0.9, 0.999):
        assert t_quantile(level, 1) == pytest.approx(math.tan(math.pi * level / 2))
        assert t_quantile(level, 2) == pytest.approx(level * math.sqrt(2 / (1 - level**2)))
    assert t_quantile(0.95, 100_000) == pytest.approx(1.95996, abs=1e-4)  # the normal one


@pytest.mark.parametrize(("level", "freedom"), [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_a_quantile_that_does_not_exist_is_refused(level: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="degree of freedom"):
        t_quantile(level, freedom)


def test_the_interval_of_three_seeds() -> None:
    """0.2, 0.3, 0.4: s = 0.1, SE = 0.1 / sqrt 3 = 0.057735, half = 4.302653 SE = 0.248414."""
    found = mean_interval([0.2, 0.3, 0.4])
    assert found == pytest.approx((0.3, 0.057735, 0.051586, 0.548414), abs=1e-6)
    assert mean_interval([0.2, 0.3, 0.4], level=0.5).high < found.high


def test_equal_seeds_have_an_interval_of_no_width() -> None:
    assert mean_interval([0.5, 0.5]) == (0.5, 0.0, 0.5, 0.5)


def test_one_seed_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 2 of them, got 1"):
        mean_interval([0.3])
    single = over_seeds([(0.2, 0.03)])
    assert single is not None
    assert (single.seeds_se, single.se, single.interval()) == (None, 0.03, None)


def test_errors_over_seeds_and_within_them() -> None:
    mean = over_seeds([(0.2, 0.03), (0.3, 0.04), (0.4, 0.0)])
    assert mean is not None
    assert mean.mean == pytest.approx(0.3)
    assert mean.seeds_se == pytest.approx(0.1 / 3**0.5)
    assert mean.trials_se == pytest.approx(0.05 / 3)
    assert mean.interval() == pytest.approx(mean_interval([0.2, 0.3, 0.4])[2:])


def test_a_seed_that_was_not_measured_leaves_no_mean() -> None:
    assert over_seeds([(0.3, 0.1), None]) is None
    assert over_seeds([]) is None

"""The success matrix's figures against hand-made cases."""

import math

import pytest

from deploy.local.statistics import Matrix, Rate


def make_matrix(percents: list[list[int | None]], trials: int = 100) -> Matrix:
    """Two trained tasks and a held-out one; cells in percent, None: not measured."""
    cells = [
        [Rate(0, 0) if p is None else Rate(p * trials // 100, trials) for p in row]
        for row in percents
    ]
    return Matrix(["a", "b", "z"], ["a", "b"], ["z"], cells)


def test_figures_of_a_known_matrix() -> None:
    matrix = make_matrix([[40, 30, 20], [80, 35, None], [70, 60, 25]])
    values = {name: figure[0] for name, figure in matrix.figures().items() if figure}
    assert values == pytest.approx(
        {
            "base_avg": 0.35,
            "final_avg": 0.65,
            "gain": 0.30,
            "nbt": 0.10,
            "base_zero_shot": 0.20,
            "final_zero_shot": 0.25,
        }
    )


def test_the_error_of_a_difference_adds_variances() -> None:
    gain = make_matrix([[50, 50, 50], [50, None, None], [50, 50, 50]]).gain()
    assert gain is not None
    assert gain[1] == pytest.approx(math.sqrt(4 * 0.25 / 100) / 2)


def test_what_was_not_measured_is_none_not_zero() -> None:
    figures = make_matrix([[40, 30, None], [None, 35, None], [70, 60, 25]]).figures()
    assert figures["nbt"] is None
    assert figures["base_zero_shot"] is None
    assert figures["final_zero_shot"] is not None


def test_a_single_task_forgets_nothing() -> None:
    matrix = Matrix(["a"], ["a"], [], [[Rate(1, 2)], [Rate(2, 2)]])
    assert matrix.nbt() == (0.0, 0.0)


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

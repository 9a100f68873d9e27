import itertools

import pytest

from learner.plan import PlanSettings, main, plan_task, usable_share


def test_usable_share_equals_enumeration():
    p, size = 0.3, 4
    share = 0.0
    for outcomes in itertools.product([0, 1], repeat=size):
        if 0 < sum(outcomes) < size:
            share += p ** sum(outcomes) * (1 - p) ** (size - sum(outcomes))
    assert usable_share(p, size) == pytest.approx(share)


def test_usable_share_at_the_edges():
    assert usable_share(0.0, 8) == 0.0
    assert usable_share(1.0, 8) == 0.0
    assert usable_share(0.5, 2) == pytest.approx(0.5)
    assert usable_share(0.5, 8, spread=0.4) < usable_share(0.5, 8)
    with pytest.raises(ValueError, match="success"):
        usable_share(1.2, 8)


def test_resampling_is_bounded_and_counted():
    base = PlanSettings(8, 16, 10, 0, 0, 1.0, 0.0)
    extra = PlanSettings(8, 16, 10, 4, 0, 1.0, 0.0)
    assert plan_task("t", 0.5, base).episodes == 8 * 16 * 10
    assert plan_task("t", 0.01, extra).episodes == 8 * 20 * 10
    assert plan_task("t", 0.0, extra).trained_episodes == 0.0
    assert plan_task("t", 0.5, base).hours == pytest.approx(1280 / 3600)


def test_the_command_prints_a_table_and_warns_about_hopeless_tasks(capsys):
    main(["pick=0.5", "stack=0.01", "--eval-episodes", "300"])
    out = capsys.readouterr().out
    assert "99%" in out
    assert "Warning" in out
    assert "stack" in out.splitlines()[-1]


def test_the_command_refuses_bad_rates(capsys):
    with pytest.raises(SystemExit):
        main(["pick=1.5"])
    assert "rate in 0..1" in capsys.readouterr().err

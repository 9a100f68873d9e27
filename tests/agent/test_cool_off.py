"""Pauses of clients whose work ends in vain."""

from agent.server.cool_off import FAILURES_MAX, FORGET_AFTER_S, LONGEST_PAUSE_S, CoolOff


def test_pauses_double_up_to_the_longest_and_are_the_clients_own() -> None:
    cool_off, now_s = CoolOff(), 100.0
    assert cool_off.left_s("a", now_s) == 0.0
    pauses = [cool_off.fail("a", now_s) for _ in range(FAILURES_MAX + 4)]
    assert pauses[:6] == [0.0, 0.0, 0.25, 0.5, 1.0, 2.0]
    assert pauses[-1] == LONGEST_PAUSE_S
    assert cool_off.left_s("a", now_s) == LONGEST_PAUSE_S
    assert cool_off.left_s("b", now_s) == 0.0
    assert cool_off.waiting(now_s) == ["a"]
    assert cool_off.left_s("a", now_s + LONGEST_PAUSE_S) == 0.0


def test_what_counts_halves_the_failures_and_time_forgets_them() -> None:
    cool_off = CoolOff()
    for _ in range(8):
        cool_off.fail("a", 0.0)
    cool_off.deliver("a")
    cool_off.deliver("stranger")
    assert cool_off.fail("a", 0.0) == 1.0
    later_s = FORGET_AFTER_S + 100.0
    cool_off.fail("b", later_s)
    assert cool_off.fail("a", later_s) == 0.0

"""The request table with a scripted socket and clock: one answer per request, in bounded time."""

from __future__ import annotations

from agent.wire.errors import WireError
from agent.wire.messages import Fault, Ok, Rollback, Status
from sim_bridge.client import MAX_REFUSALS, RequestTable, Unreadable


class ScriptedDealer:
    """Records what is sent; replies are put into `inbox` by the test."""

    endpoint = "inproc://scripted"

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sent: list[object] = []
        self.inbox: list[tuple[int, object]] = []
        self.waits_s: list[float] = []
        self.failure: WireError | None = None

    def send(self, message: object) -> int:
        self.sent.append(message)
        return len(self.sent)

    def poll(self, timeout_s: float) -> list[tuple[int, object]]:
        self.waits_s.append(timeout_s)
        if self.failure:
            raise self.failure
        replies, self.inbox = self.inbox, []
        return replies


def make(timeout_s: float = 1.0) -> tuple[ScriptedDealer, RequestTable]:
    dealer = ScriptedDealer()
    return dealer, RequestTable(dealer, timeout_s, clock=lambda: dealer.now_s)


def test_silence_resends_the_same_message_and_either_answer_is_taken_once() -> None:
    dealer, table = make()
    message = Status()
    table.ask("a", message)
    dealer.now_s = 1.0
    assert table.receive(0.0) == []
    assert dealer.sent == [message, message]
    dealer.inbox = [(1, Ok()), (2, Ok())]
    (answer,) = table.receive(0.0)
    assert (answer.key, answer.request, answer.sent, answer.elapsed_s) == ("a", message, 2, 1.0)
    assert table.unexpected_replies == 1
    dealer.now_s = 10.0
    table.receive(0.0)
    assert len(dealer.sent) == 2


def test_replies_to_cancelled_and_replaced_requests_are_dropped() -> None:
    dealer, table = make()
    table.ask("a", Status())
    table.ask("a", Rollback())
    table.ask("b", Status())
    table.cancel("b")
    dealer.inbox = [(1, Ok()), (3, Ok()), (2, Ok())]
    (answer,) = table.receive(0.0)
    assert answer.request == Rollback()
    assert table.unexpected_replies == 2


def test_a_transient_fault_is_retried_sooner_than_silence_and_not_for_ever() -> None:
    dealer, table = make(timeout_s=1000.0)
    table.ask("a", Status())
    for refusal in range(1, MAX_REFUSALS):
        dealer.inbox = [(len(dealer.sent), Fault("overloaded", "later"))]
        assert table.receive(0.0) == []
        assert table.unanswered() <= 1
        dealer.now_s += 60.0
        table.receive(0.0)
        assert len(dealer.sent) == refusal + 1
    dealer.inbox = [(len(dealer.sent), Fault("overloaded", "later"))]
    (answer,) = table.receive(0.0)
    assert answer.reply == Fault("overloaded", "later")


def test_only_the_newest_sending_can_be_refused() -> None:
    """A server that stood still refuses the repeats that it finds waiting, but for the last."""
    dealer, table = make(timeout_s=1.0)
    table.ask("a", Status())
    while len(dealer.sent) < 5 * MAX_REFUSALS:
        dealer.now_s += 1.0
        table.receive(0.0)
    newest = len(dealer.sent)
    dealer.inbox = [(number, Fault("overloaded", "asked again")) for number in range(1, newest)]
    assert table.receive(0.0) == []
    assert table.unanswered() == 1
    dealer.inbox = [(newest, Ok())]
    assert [answer.reply for answer in table.receive(0.0)] == [Ok()]


def test_waits_end_when_the_next_request_is_overdue() -> None:
    dealer, table = make(timeout_s=1.0)
    table.ask("a", Status())
    dealer.now_s = 0.75
    table.receive(10.0)
    assert dealer.waits_s == [0.25]


def test_an_unreadable_reply_answers_its_own_request_only() -> None:
    dealer, table = make()
    table.ask("a", Status())
    table.ask("b", Status())
    dealer.failure = WireError("bad_array", "has NaN", request_id=2)
    (answer,) = table.receive(0.0)
    assert (answer.key, answer.reply) == ("b", Unreadable("bad_array", "has NaN"))
    dealer.failure = WireError("bad_message", "no header")
    assert table.receive(0.0) == []
    dealer.failure = None
    dealer.inbox = [(1, Ok())]
    assert [answer.key for answer in table.receive(0.0)] == ["a"]
    assert table.unreadable_replies == 2


def test_a_delayed_request_goes_out_when_it_is_due_and_is_no_resending() -> None:
    dealer, table = make(timeout_s=1.0)
    table.ask("a", Status(), delay_s=2.0)
    table.ask("b", Rollback(), delay_s=-1.0)  # was due before
    assert dealer.sent == [Rollback()]
    assert table.is_open("a")
    table.cancel("b")
    dealer.now_s = 1.5
    table.receive(10.0)
    assert dealer.waits_s == [0.5]  # sleeps until then, and no longer
    assert (dealer.sent, table.unanswered()) == ([Rollback()], 0)
    dealer.now_s = 2.0
    table.receive(0.0)
    assert (dealer.sent, table.resent) == ([Rollback(), Status()], 0)
    dealer.now_s, dealer.inbox = 2.25, [(2, Ok())]
    (answer,) = table.receive(0.0)
    assert (answer.sent, answer.elapsed_s) == (1, 0.25)


def test_a_delayed_request_that_is_lost_is_sent_again_and_one_cancelled_never_goes_out() -> None:
    dealer, table = make(timeout_s=1.0)
    table.ask("a", Status(), delay_s=2.0)
    table.ask("b", Rollback(), delay_s=2.0)
    table.cancel("b")
    for dealer.now_s in (2.0, 3.0):
        table.receive(0.0)
    assert (dealer.sent, table.resent) == ([Status(), Status()], 1)

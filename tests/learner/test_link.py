"""What the learner makes of an agent's refusals."""

import threading

import pytest

from agent.wire.errors import ConfigError, WireError
from learner.link import AgentLink


class RefusingAgent:
    """Stands where a DealerClient and a Session do."""

    timeout_s = 1.0

    def __init__(self, code: str) -> None:
        self.code = code

    def epoch(self, client: object, lost: int | None = None) -> int:
        return 1

    def request(self, message: object, timeout_s: float) -> object:
        raise WireError(self.code, "order 'o': slot 0 was aborted 8 times")


@pytest.mark.parametrize(
    ("code", "raised"),
    [("order_refused", ConfigError), ("forbidden", ConfigError), ("bad_message", WireError)],
)
def test_a_refusal_that_time_does_not_mend_ends_the_learner(code, raised):
    agent = RefusingAgent(code)
    link = AgentLink(agent, agent, threading.Event())
    with pytest.raises(raised, match="order 'o'"):
        link.fetch(1, 0.0)

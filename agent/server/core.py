"""What the handlers of both sockets share; made once, in `agent.server.app`."""

from __future__ import annotations

from dataclasses import dataclass

from agent.adapters import AdapterStore
from agent.journal import Journal
from agent.metrics import AgentMetrics
from agent.orders import OrderBook
from agent.policy import Policy
from agent.server.exchange import Mailbox
from agent.server.inference import Inference
from agent.server.residency import Residency
from agent.server.state import ServerState
from agent.success import SuccessRecord


@dataclass(frozen=True, slots=True)
class Core:
    """The parts of one server; all but `policy` and `metrics` are for the loop's thread only."""

    state: ServerState
    policy: Policy
    book: OrderBook
    journal: Journal
    store: AdapterStore
    inference: Inference
    residency: Residency
    mailbox: Mailbox
    metrics: AgentMetrics
    success: SuccessRecord

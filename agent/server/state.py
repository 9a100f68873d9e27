"""The few facts that every part of the server shares; owned by the loop's thread."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from agent.wire.errors import WireError
from agent.wire.messages import BASE_VERSION, Order


@dataclass(frozen=True, slots=True)
class Task:
    """A task that a robot may start by its slug."""

    suite: str
    instruction: str


@dataclass(slots=True)
class ServerState:
    """server_id is new at every start; `tasks` holds those of the config and of all orders."""

    server_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    active_version: str = BASE_VERSION
    active_fault: str = ""  # why the active version cannot be served; "" while it is
    tasks: dict[str, Task] = field(default_factory=dict)
    is_stopping: bool = False
    recording_fault: str = ""  # why nothing is kept of episodes; "" while they are
    requests: int = 0  # received so far

    def version_to_serve(self) -> str:
        """What a robot's own task gets. Raises WireError("overloaded") while there is nothing."""
        if self.active_fault:
            raise WireError("overloaded", self.active_fault)
        return self.active_version

    def task(self, slug: str) -> Task:
        """Raises WireError("unknown_task") that names some of those there are."""
        if slug not in self.tasks:
            known = ", ".join(sorted(self.tasks)[:10]) or "none yet: no order was posted"
            raise WireError("unknown_task", f"task {slug!r:.80} is not registered; known: {known}")
        return self.tasks[slug]

    def register(self, orders: list[Order]) -> None:
        """Makes the orders' tasks known."""
        for order in orders:
            self.tasks[order.task] = Task(order.suite, order.instruction)

"""What the order book keeps of a slot, and what it tells of changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto

from agent.wire.messages import Order, SlotLease


class SlotState(Enum):
    FREE = auto()
    LEASED = auto()
    RUNNING = auto()
    FILLED = auto()


@dataclass(slots=True)
class Slot:
    """One episode to collect; `place` is its rank in posting order."""

    slot_id: str
    order: Order
    index: int
    place: int
    state: SlotState = SlotState.FREE
    client_id: str = ""
    who: str = ""  # answers for the client: its key's name, or the client itself
    start_key: str = ""
    episode_id: str = ""  # of the open episode (RUNNING) or the counted one (FILLED)
    expires_s: float = 0.0
    spoken_of_s: float = 0.0  # the last message about this very slot
    # Who aborted it how often, since the server's start.
    aborts: Counter[str] = field(default_factory=Counter)

    def lease(self, lease_s: float) -> SlotLease:
        """What its client is told."""
        order = self.order
        return SlotLease(
            slot_id=self.slot_id,
            suite=order.suite,
            task=order.task,
            instruction=order.instruction,
            split=order.split,
            init_state=order.init_state,
            horizon_steps=order.horizon_steps,
            phase=order.phase,
            version=order.version,
            lease_s=lease_s,
        )


@dataclass(frozen=True, slots=True)
class Started:
    """`is_new` is False when a repeated start got the episode that it had already started."""

    episode_id: str
    order: Order
    slot_index: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class Expired:
    """Slots free again, and open episodes that the caller must end with `finish(.., "aborted")`.

    holders: who had leased those slots and not started them.
    """

    slot_ids: list[str]
    episode_ids: list[str]
    holders: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Finished:
    """`counted`: this episode is the one that its slot keeps."""

    slot_id: str
    counted: bool
    state: SlotState


def slot_id_of(order: Order, index: int) -> str:
    return f"{order.order_id}#{index}"

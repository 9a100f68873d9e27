"""What a client may say: every field that comes from outside is checked here before it is used."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from agent.policy import Policy
from agent.process.instruction import clean_instruction
from agent.process.shown import printable
from agent.wire.arrays import brief
from agent.wire.errors import WireError
from agent.wire.messages import (
    PROTOCOL_VERSION,
    Act,
    EpisodeEnd,
    Executed,
    Order,
    Outcome,
    Phase,
)

IMAGE_SIDE_PIXELS = (8, 2048)
REASON_MAX_CHARS = 500
ORDER_SLOTS_MAX = 4096
HORIZON_MAX_STEPS = 1_000_000
TEMPERATURE_MAX = 100.0
MATRIX_ROW_MAX = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # clients, start keys
_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")  # suites, tasks, splits: they become labels
# Order ids are paths of plain words, never with an empty or dotted part.
_ORDER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_ORDER_ID_MAX_CHARS = 200


def check_protocol_version(version: int) -> None:
    """Raises WireError("version_mismatch")."""
    if version != PROTOCOL_VERSION:
        raise WireError(
            "version_mismatch", f"protocol version {version}, this server speaks {PROTOCOL_VERSION}"
        )


def check_name(field: str, value: str) -> None:
    """Client ids and start keys. Raises WireError("bad_message")."""
    if not _NAME.fullmatch(value):
        raise WireError(
            "bad_message",
            f"{field}: expected 1 to 64 letters, digits, '.', '_' or '-', got {brief(value)}",
        )


def check_slug(field: str, value: str) -> None:
    """Suites, tasks and splits. Raises WireError("bad_message")."""
    if not _SLUG.fullmatch(value):
        raise WireError(
            "bad_message",
            f"{field}: expected 1 to 128 of a-z, 0-9, '_' and '-', got {brief(value)}",
        )


def check_range(field: str, value: float, low: float, high: float) -> None:
    """Raises WireError("bad_message")."""
    if not low <= value <= high:
        raise WireError("bad_message", f"{field}: expected {low} to {high}, got {value}")


def check_observation(act: Act, policy: Policy) -> None:
    """Images, proprio and executed codes against the contract. Raises WireError("bad_array")."""
    if act.images.keys() != policy.images.keys():
        got = sorted(map(brief, act.images))[:8]
        raise WireError("bad_array", f"images: expected {sorted(policy.images)}, got {got}")
    low, high = IMAGE_SIDE_PIXELS
    for camera, image in act.images.items():
        shape_fits = image.ndim == 3 and image.shape[2] == 3
        if image.dtype != np.uint8 or not shape_fits:
            raise WireError(
                "bad_array",
                f"image {camera}: expected uint8 [H, W, 3], got {image.dtype}{list(image.shape)}",
            )
        if not (low <= image.shape[0] <= high and low <= image.shape[1] <= high):
            raise WireError(
                "bad_array",
                f"image {camera}: sides of {low} to {high} pixels, got {list(image.shape)}",
            )
    proprio = act.proprio
    if proprio.dtype != np.float32 or proprio.shape != (policy.proprio_dim,):
        raise WireError(
            "bad_array",
            f"proprio: expected float32[{policy.proprio_dim}], "
            f"got {proprio.dtype}{list(proprio.shape)}",
        )
    check_executed(act.executed)


def check_executed(executed: np.ndarray) -> None:
    """u8 `Executed` codes. Raises WireError("bad_array")."""
    if executed.dtype != np.uint8 or executed.ndim != 1:
        raise WireError(
            "bad_array",
            f"executed: expected uint8[n], got {executed.dtype}{list(executed.shape)}",
        )
    if len(executed) and executed.max() > max(Executed):
        raise WireError("bad_array", f"executed: codes are 0 to {int(max(Executed))}")


def checked_end(end: EpisodeEnd, chunks: int) -> EpisodeEnd:
    """The end of an episode with `chunks` answered observations, its reason harmless to show.

    Raises WireError (bad_outcome, bad_array, bad_message).
    """
    if end.outcome not in set(Outcome):
        raise WireError(
            "bad_outcome", f"outcome {brief(end.outcome)}, expected {[str(o) for o in Outcome]}"
        )
    if chunks == 0 and end.outcome != Outcome.ABORTED:
        raise WireError(
            "bad_outcome",
            f"outcome {end.outcome} before the first answered observation; only aborted fits",
        )
    check_executed(end.executed)
    check_range("steps", end.steps, 0, HORIZON_MAX_STEPS)
    return replace(end, reason=printable(end.reason.strip(), REASON_MAX_CHARS))


def checked_order(order: Order) -> Order:
    """The order with its instruction in the one spelling that is served and recorded.

    Raises WireError("bad_message") naming the order and the field.
    """
    if len(order.order_id) > _ORDER_ID_MAX_CHARS or not _ORDER_ID.fullmatch(order.order_id):
        raise WireError(
            "bad_message", f"order_id {brief(order.order_id)} is not plain words and '/'"
        )
    where = f"order {order.order_id}"
    for field in ("suite", "task", "split"):
        value = getattr(order, field)
        if not _SLUG.fullmatch(value):
            raise WireError("bad_message", f"{where}: {field} {brief(value)} is no slug")
    if order.phase not in set(Phase):
        raise WireError("bad_message", f"{where}: phase {brief(order.phase)}")
    check_range(f"{where}: slots", order.slots, 1, ORDER_SLOTS_MAX)
    check_range(f"{where}: init_state", order.init_state, 0, 1 << 31)
    check_range(f"{where}: horizon_steps", order.horizon_steps, 1, HORIZON_MAX_STEPS)
    check_range(f"{where}: temperature", order.temperature, 0.0, TEMPERATURE_MAX)
    check_range(f"{where}: run_seed", order.run_seed, 0, (1 << 63) - 1)
    check_range(f"{where}: row", order.row, -1, MATRIX_ROW_MAX)
    if order.mode and not _SLUG.fullmatch(order.mode):
        raise WireError("bad_message", f"{where}: mode {brief(order.mode)} is no slug")
    if (order.row >= 0) != bool(order.mode):
        raise WireError("bad_message", f"{where}: row and mode name one cell: give both or none")
    try:
        return replace(order, instruction=clean_instruction(order.instruction))
    except ValueError as error:
        raise WireError("bad_message", f"{where}: {error}") from error

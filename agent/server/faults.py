"""The one place where errors of the server's own parts become typed Faults."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from agent.adapters import AdapterError
from agent.durable import may_be_read_later, may_pass
from agent.policy import AdapterUnusable, NoFreeSlot, UnknownInstruction
from agent.server.exchange import Exchange
from agent.wire.errors import PerennialError, WireError

log = logging.getLogger(__name__)

LOG_EVERY_S = 10.0  # of one kind of error in one kind of work
KINDS_MAX = 64  # logged within that time

_logged_s: OrderedDict[str, float] = OrderedDict()  # when each was logged, the oldest first
_lock = threading.Lock()


def wire_error_of(error: BaseException, doing: str) -> WireError:
    """The typed refusal for an error; one that nobody foresaw is logged with its traceback.

    What happens again and again is logged once in LOG_EVERY_S.
    """
    if isinstance(error, WireError):
        return error
    may_come = may_be_read_later(error)
    if isinstance(error, AdapterError | AdapterUnusable) and not may_come:
        return WireError("unknown_version", str(error))
    if isinstance(error, UnknownInstruction):
        return WireError("unknown_task", str(error))
    if isinstance(error, NoFreeSlot):
        return WireError("overloaded", str(error))
    if isinstance(error, PerennialError):
        if _is_due(f"{type(error).__name__} {doing}"):
            log.error("%s failed: %s", doing, error)
        return WireError("overloaded" if may_come or may_pass(error) else "internal", str(error))
    if _is_due(f"{type(error).__name__} {doing}"):
        log.error("%s failed", doing, exc_info=error)
    return WireError(
        "internal", f"{doing} failed on the server: {type(error).__name__}; see its log"
    )


def _is_due(what: str) -> bool:
    """Whether a line about `what` may be logged now."""
    now_s = time.monotonic()
    with _lock:
        while _logged_s and now_s - next(iter(_logged_s.values())) >= LOG_EVERY_S:
            _logged_s.popitem(last=False)
        if what in _logged_s or len(_logged_s) >= KINDS_MAX:
            return False
        _logged_s[what] = now_s
        return True


@contextmanager
def answering(exchange: Exchange | None, doing: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes the request's Fault, and the server goes on.

    Without an exchange (work that no request waits for) it is logged.
    """
    try:
        yield
    except Exception as error:
        refusal = wire_error_of(error, doing)
        if exchange is not None:
            exchange.fail(refusal.code, refusal.message)
        elif refusal is error:
            log.error("%s: %s", doing, error)

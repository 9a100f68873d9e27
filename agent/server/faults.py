"""The one place where errors of the server's own parts become typed Faults."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from agent.adapters import AdapterError
from agent.durable import StorageError
from agent.policy import AdapterUnusable, NoFreeSlot, UnknownInstruction
from agent.server.exchange import Exchange
from agent.wire.errors import WireError

log = logging.getLogger(__name__)


def wire_error_of(error: BaseException, doing: str) -> WireError:
    """The typed refusal for an error; one that nobody foresaw is logged with its traceback."""
    if isinstance(error, WireError):
        return error
    if isinstance(error, AdapterError | AdapterUnusable):
        return WireError("unknown_version", str(error))
    if isinstance(error, UnknownInstruction):
        return WireError("unknown_task", str(error))
    if isinstance(error, NoFreeSlot):
        return WireError("overloaded", str(error))
    log.error("%s failed", doing, exc_info=error)
    if isinstance(error, StorageError):
        return WireError("internal", str(error))
    return WireError(
        "internal", f"{doing} failed on the server: {type(error).__name__}; see its log"
    )


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

"""What a learner does while its disk takes or gives nothing: it waits, and loses nothing."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from agent.durable import may_be_read_later, may_pass
from learner.stopping import Stopped

RETRY_PAUSE_S = 0.5
LOG_EVERY_S = 60.0

log = logging.getLogger(__name__)
Result = TypeVar("Result")


def until_taken(
    action: Callable[[], Result], should_stop: Callable[[], bool], *, is_read: bool = False
) -> Result:
    """Repeat `action`, which must be safe to repeat, until the disk takes what it writes.

    is_read: it only reads; what is lost is not waited for.

    Raises:
        Stopped: asked to stop meanwhile. Also whatever waiting does not mend.
    """
    began_s = time.monotonic()
    logged_s = float("-inf")
    while True:
        try:
            result = action()
        except Exception as error:
            if not (may_be_read_later(error) if is_read else may_pass(error)):
                raise
            now_s = time.monotonic()
            if now_s - logged_s > LOG_EVERY_S:
                logged_s = now_s
                log.warning("waiting for the disk, %.0f s: %s", now_s - began_s, error)
        else:
            if logged_s > began_s:
                log.warning("the disk takes it, after %.0f s", time.monotonic() - began_s)
            return result
        if should_stop():
            raise Stopped
        time.sleep(RETRY_PAUSE_S)

"""Batches for the policy: what waits while one batch runs makes up the next.

The policy runs on a thread of its own. The loop's thread decides when a batch is due, so adapters
are installed strictly between batches and in the order of the requests around them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from agent.metrics import AgentMetrics
from agent.policy import ActRequest, ActResult, Policy, Staged
from agent.server.exchange import Mailbox
from agent.server.faults import wire_error_of
from agent.wire.errors import WireError

_NOT_FINITE = WireError("internal", "the policy produced NaN or infinite actions; none was sent")

ActDone = Callable[[ActResult | WireError], None]
InstallDone = Callable[[float | WireError], None]


@dataclass(frozen=True, slots=True)
class Job:
    """An observation in the queue. `is_wanted(now_s)`: somebody still waits for the result."""

    request: ActRequest
    queued_s: float
    is_wanted: Callable[[float], bool]
    done: ActDone


class Inference:
    """The queue in front of the policy; every method is for the loop's thread.

    Args:
        max_batch: observations per call of the policy.
        max_wait_s: how long the first of a batch waits for others.
    """

    def __init__(
        self,
        policy: Policy,
        mailbox: Mailbox,
        metrics: AgentMetrics,
        max_batch: int,
        max_wait_s: float,
    ) -> None:
        self._policy = policy
        self._mailbox = mailbox
        self._metrics = metrics
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._queue: list[Job] = []
        self._is_running = False
        self._executor = ThreadPoolExecutor(1, "inference")

    @property
    def is_idle(self) -> bool:
        """Nothing is queued or running."""
        return not self._queue and not self._is_running

    def submit(self, job: Job) -> None:
        """Queues an observation; `job.done` gets its result on the loop's thread."""
        self._queue.append(job)
        self._metrics.inflight.inc()

    def pump(self, now_s: float, expected: int) -> float | None:
        """Starts a batch if one is due; else returns the seconds until it is (None: no need).

        expected: how many observations can come at most; nobody waits for more than that.
        """
        self._drop_unwanted(now_s)
        if self._is_running or not self._queue:
            return None
        due_s = self._queue[0].queued_s + self._max_wait_s
        if len(self._queue) < min(self._max_batch, expected) and now_s < due_s:
            return due_s - now_s
        batch, self._queue = self._queue[: self._max_batch], self._queue[self._max_batch :]
        self._is_running = True
        self._metrics.batch_size.observe(len(batch))
        for job in batch:
            self._metrics.duration.labels("queue").observe(now_s - job.queued_s)
        future = self._executor.submit(self._act, [job.request for job in batch])
        future.add_done_callback(
            lambda done: self._mailbox.post(partial(self._finish, batch, now_s, done))
        )
        return None

    def install(self, staged: Staged, done: InstallDone) -> None:
        """Copies an adapter in after the running batch; `done` gets the seconds that took."""

        def install() -> float:
            started_s = time.perf_counter()
            self._policy.install(staged)
            return time.perf_counter() - started_s

        def finish(future: Future[float]) -> None:
            error = future.exception()
            if error is not None:
                done(wire_error_of(error, f"installing {staged.version}"))
            else:
                self._metrics.swap_pause.observe(future.result())
                done(future.result())

        future = self._executor.submit(install)
        future.add_done_callback(lambda future: self._mailbox.post(partial(finish, future)))

    def drop(self, version: str) -> None:
        """Frees a version's slot after the running batch."""
        future = self._executor.submit(self._policy.drop, version)
        future.add_done_callback(lambda done: self._mailbox.post(done.result))

    def close(self) -> None:
        """Waits for the running batch; queued ones are forgotten."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _drop_unwanted(self, now_s: float) -> None:
        unwanted = [job for job in self._queue if not job.is_wanted(now_s)]
        if not unwanted:
            return
        self._queue = [job for job in self._queue if job.is_wanted(now_s)]
        self._metrics.inflight.dec(len(unwanted))
        for job in unwanted:
            waited_s = now_s - job.queued_s
            job.done(WireError("deadline", f"still queued after {waited_s:.2f} s"))

    def _act(self, requests: list[ActRequest]) -> list[ActResult]:
        """On the policy's thread."""
        started_s = time.perf_counter()
        try:
            return self._policy.act(requests)
        finally:
            self._metrics.inference_busy.inc(time.perf_counter() - started_s)

    def _finish(self, batch: list[Job], started_s: float, future: Future[list[ActResult]]) -> None:
        self._is_running = False
        self._metrics.inflight.dec(len(batch))
        self._metrics.duration.labels("infer").observe(time.monotonic() - started_s)
        error = future.exception()
        if error is not None:
            refusal = wire_error_of(error, "inference")
            for job in batch:
                job.done(refusal)
            return
        for job, result in zip(batch, future.result(), strict=True):
            job.done(result if _is_finite(result) else _NOT_FINITE)


def _is_finite(result: ActResult) -> bool:
    return bool(np.isfinite(result.actions_KA).all() and np.isfinite(result.logprobs_KA).all())

"""Batches for the policy: what waits while one batch runs makes up the next, party by party.

The policy runs on a thread of its own. The loop's thread decides when a batch is due, so adapters
are installed strictly between batches and in the order of the requests around them.
"""

from __future__ import annotations

import time
from collections import deque
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

_REFUSALS = {
    "wrong_shape": "the policy produced a chunk of the wrong shape; it was not sent",
    "non_finite": "the policy produced NaN or infinite actions; none was sent",
    "far_outside": "the policy produced actions far outside its statistics; none was sent",
}

BATCH_BYTES = 64 << 20  # of observations; one that is larger is a batch of its own
FIRST_BATCH_LIMIT_S = 300.0  # a 7B on a CPU needs minutes
BATCH_LIMIT_S = 60.0  # on top of ...
MAX_SLOWDOWN = 50.0  # ... so many times the slowest so far: of one row, perhaps, on an idle machine

ActDone = Callable[[ActResult | WireError], None]
InstallDone = Callable[[float | WireError], None]


@dataclass(frozen=True, slots=True)
class Job:
    """An observation in the queue. `is_wanted(now_s)`: somebody still waits for the result.

    party: whose it is; parties take turns.
    """

    request: ActRequest
    queued_s: float
    is_wanted: Callable[[float], bool]
    done: ActDone
    party: str = ""
    size_bytes: int = 0


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
        self._queues: dict[str, deque[Job]] = {}  # by party; the one whose turn it is first
        self._queued = 0
        self._running_since_s: float | None = None
        self._slowest_s: float | None = None  # batch so far
        self._executor = ThreadPoolExecutor(1, "inference")

    @property
    def is_idle(self) -> bool:
        """Nothing is queued or running."""
        return not self._queued and self._running_since_s is None

    @property
    def running_since_s(self) -> float | None:
        """When the batch that runs now was started; for any thread."""
        return self._running_since_s

    @property
    def batch_limit_s(self) -> float:
        """How long a batch may take before it counts as one that hangs; for any thread.

        No machine is known before its first batch. Later ones may be larger than all before.
        """
        if self._slowest_s is None:
            return FIRST_BATCH_LIMIT_S
        return BATCH_LIMIT_S + MAX_SLOWDOWN * self._slowest_s

    def submit(self, job: Job) -> None:
        """Queues an observation; `job.done` gets its result on the loop's thread."""
        self._queues.setdefault(job.party, deque()).append(job)
        self._queued += 1
        self._metrics.inflight_requests.inc()

    def pump(self, now_s: float, expected: int) -> float | None:
        """Starts a batch if one is due; else returns the seconds until it is (None: no need).

        expected: how many observations can come at most; nobody waits for more than that.
        """
        self._drop_unwanted(now_s)
        if self._running_since_s is not None or not self._queued:
            return None
        due_s = min(jobs[0].queued_s for jobs in self._queues.values()) + self._max_wait_s
        if self._queued < min(self._max_batch, expected) and now_s < due_s:
            return due_s - now_s
        batch = self._take_batch()
        self._running_since_s = now_s
        self._metrics.batch_size.observe(len(batch))
        for job in batch:
            self._metrics.observe_stage("queue", now_s - job.queued_s)
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
                self._metrics.adapter_swap_pause_seconds.observe(future.result())
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

    def _take_batch(self) -> list[Job]:
        """One job of each party in turn, while there is room; at least one.

        A party that sends large pictures, or many, delays its own answers and not those of others.
        """
        batch: list[Job] = []
        size_bytes = 0
        while self._queues and len(batch) < self._max_batch:
            party, jobs = next(iter(self._queues.items()))
            size_bytes += jobs[0].size_bytes
            if batch and size_bytes > BATCH_BYTES:
                break
            batch.append(jobs.popleft())
            del self._queues[party]
            if jobs:
                self._queues[party] = jobs  # behind the others
        self._queued -= len(batch)
        return batch

    def _drop_unwanted(self, now_s: float) -> None:
        queued = [job for jobs in self._queues.values() for job in jobs]
        unwanted = [job for job in queued if not job.is_wanted(now_s)]
        if not unwanted:
            return
        for party, jobs in list(self._queues.items()):
            wanted = deque(job for job in jobs if job.is_wanted(now_s))
            if wanted:
                self._queues[party] = wanted
            else:
                del self._queues[party]
        self._queued -= len(unwanted)
        self._metrics.inflight_requests.dec(len(unwanted))
        for job in unwanted:
            waited_s = now_s - job.queued_s
            job.done(WireError("deadline", f"still queued after {waited_s:.2f} s"))

    def _act(self, requests: list[ActRequest]) -> tuple[list[ActResult], float]:
        """On the policy's thread: the results, and the part of the time for preparation [s]."""
        started_s, prepared_s = time.perf_counter(), self._policy.preprocess_s
        try:
            results = self._policy.act(requests)
        finally:
            self._metrics.inference_busy_seconds_total.inc(time.perf_counter() - started_s)
        return results, self._policy.preprocess_s - prepared_s

    def _finish(
        self,
        batch: list[Job],
        started_s: float,
        future: Future[tuple[list[ActResult], float]],
    ) -> None:
        self._running_since_s = None
        self._metrics.inflight_requests.dec(len(batch))
        elapsed_s = time.monotonic() - started_s
        self._slowest_s = max(elapsed_s, self._slowest_s or 0.0)
        error = future.exception()
        if error is not None:
            refusal = wire_error_of(error, "inference")
            for job in batch:
                job.done(refusal)
            return
        results, preprocess_s = future.result()
        for _ in batch:  # each of them waited for all of it
            self._metrics.observe_stage("preprocess", preprocess_s)
            self._metrics.observe_stage("infer", elapsed_s - preprocess_s)
        for job, result in zip(batch, results, strict=True):
            reason = self._fault_in(result)
            if reason is None:
                job.done(result)
            else:
                self._metrics.actions_rejected_total.labels(reason).inc()
                job.done(WireError("internal", _REFUSALS[reason]))

    def _fault_in(self, result: ActResult) -> str | None:
        """Why a chunk must not be sent."""
        arrays = (result.actions_KA, result.choices_KA, result.logprobs_KA)
        shape_KA = (self._policy.chunk_steps, self._policy.action_dim)
        if any(array.shape != shape_KA for array in arrays):
            return "wrong_shape"
        if not all(np.isfinite(array).all() for array in arrays):
            return "non_finite"
        return "far_outside" if self._policy.strays(result.choices_KA) else None

"""Every metric of Perennial's processes: name, type, help, labels, unit and buckets.

Labels are bounded: a task is a slug of an order or of the config, never an instruction or an id.
`docs/metrics.md` is made from this file (`python -m agent.metrics_page`).
"""

# One declaration a metric reads better here than one argument a line.
# fmt: off

from __future__ import annotations

from prometheus_client import Counter, Enum, Gauge, Histogram

from agent.metric_set import (
    MetricSet,
    OptionalGauge,
    ToldHistogram,
    counter,
    gauge,
    histogram,
    optional_gauge,
    state,
    told_histogram,
)
from agent.wire.telemetry import AGE_BOUNDS_S, LATENESS_BOUNDS_S

PROTOCOL = "perennial"  # the wire protocol of agent.wire, as a label
LATENCY_BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5,
)
PAUSE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)
FSYNC_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
UPDATE_BUCKETS_S = (0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
JUMP_BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
STEP_BUCKETS = (25, 50, 100, 150, 220, 300, 400, 520, 800)
SUCCESS_WINDOWS = (20, 100)

LABEL_MEANINGS = {
    "task": "slug of a registered task",
    "phase": "why it was collected: train, eval, or serve (a robot's own task)",
    "outcome": "success, failure, timeout, intervened or aborted",
    "window": "number of last episodes that are looked at",
    "row": "row of the success matrix: after so many tasks",
    "mode": "of evaluation: rollout (sampled) or greedy",
    "suite": "task suite",
    "suite_protocol": "the suite's evaluation protocol: which init states train and evaluate",
    "temperature": "of sampling; 0 is greedy",
    "solved": "once: the episode ends there; at_end: the predicate at the horizon's end",
    "protocol": "wire protocol of the client",
    "type": "message of the wire protocol, or unreadable",
    "code": "ok, or the code of the Fault",
    "stage": "part of the time of one observation",
    "version": "adapter version, or the program's in build_info",
    "sha12": "first 12 digits of the adapter's content hash",
    "parent": "version that the adapter was trained from",
    "collector": "what failed to be collected",
}


class SuccessMetrics(MetricSet):
    """Success per task

    Rebuilt from the ledger at start, so a restart changes none of them. Aborted episodes are in
    no rate. Every rate has its number of episodes beside it, and Wilson intervals: of 95%, but for
    the best's. Protocol and temperatures of a run are in the learner's `perennial_run_info`.
    """

    episodes_total: Counter = counter("Sealed episodes.", "task", "outcome", "phase")
    episode_steps: Histogram = histogram(
        "Control steps of sealed episodes.", "task", "outcome", buckets=STEP_BUCKETS, unit="steps")
    task_success_rate: Gauge = gauge(
        "Share of successes among a task's last episodes.",
        "task", "window=20|100", "phase", unit="ratio")
    task_success_episodes: Gauge = gauge(
        "Episodes in the window.", "task", "window=20|100", "phase", unit="episodes")
    task_success_wilson_low: Gauge = gauge(
        "Lower end of the interval of window 100.", "task", "phase", unit="ratio")
    task_success_wilson_high: Gauge = gauge(
        "Upper end of the interval of window 100.", "task", "phase", unit="ratio")
    task_success_best: Gauge = gauge(
        "Best rate that window 100 ever had with 20 or more episodes.",
        "task", "phase", unit="ratio")
    task_success_best_wilson_low: Gauge = gauge(
        "Lower end of the best rate's interval of 4 sigma: it is the largest of many windows.",
        "task", "phase", unit="ratio")
    task_forgetting: Gauge = gauge(
        "Best rate minus the present one of window 100, at least 0.", "task", "phase", unit="ratio")
    task_success_before_swap: Gauge = gauge(
        "Rate of window 100 when the active version was activated; absent if it was empty.",
        "task", "phase", unit="ratio")
    task_success_before_swap_wilson_low: Gauge = gauge(
        "Lower end of that rate's interval.", "task", "phase", unit="ratio")
    task_success_since_swap: Gauge = gauge(
        "Rate of the active version's episodes since it was activated.",
        "task", "phase", unit="ratio")
    task_success_since_swap_wilson_high: Gauge = gauge(
        "Upper end of that rate's interval.", "task", "phase", unit="ratio")
    task_episodes_since_swap: Gauge = gauge(
        "Episodes in that rate.", "task", "phase", unit="episodes")
    task_last_episode_timestamp_seconds: Gauge = gauge(
        "When a task's last episode was sealed.", "task")
    eval_success_rate: Gauge = gauge(
        "Success matrix: row i is measured after i tasks.", "row", "mode", "task", unit="ratio")
    eval_episodes: Gauge = gauge(
        "Episodes measured so far in that cell.", "row", "mode", "task", unit="episodes")


class ServingMetrics(MetricSet):
    """Serving"""

    requests_total: Counter = counter(
        "Answered requests by message type and result.", "protocol", "type", "code")
    request_duration_seconds: Histogram = histogram(
        "Time of one observation by stage; the other messages are not in it.",
        "protocol", "stage=decode|queue|preprocess|infer|encode|total", buckets=LATENCY_BUCKETS_S)
    latency_budget_seconds: Gauge = gauge(
        "What the whole answer to an observation may take: the setting latency_budget_s.")
    inflight_requests: Gauge = gauge("Observations that wait for their chunk.")
    batch_size: Histogram = histogram(
        "Observations per call of the policy.", buckets=BATCH_BUCKETS, unit="observations")
    inference_busy_seconds_total: Counter = counter(
        "Time in which the policy computed, each batch counted once.")
    sessions_active: Gauge = gauge("Clients that were seen within the lease time.", "protocol")
    clients_cooling_off: Gauge = gauge(
        "Clients or keys that get no work for a while, because theirs ended in vain.")
    dropped_messages_total: Counter = counter(
        "Answers that nobody could be given.", "reason=nobody_to_answer")
    actions_total: Counter = counter(
        "Actions by what clients say became of them.", "how=not_run|run|limited|replaced")
    chunk_seam_jump: Histogram = histogram(
        "Distance (L2) between the last action of a chunk that was executed and the first of the "
        "next chunk, as the policy gave them.",
        "phase", buckets=JUMP_BUCKETS, unit="normalised action units")
    actions_rejected_total: Counter = counter(
        "Chunks of the policy that were not sent.", "reason=non_finite|wrong_shape|far_outside")
    observations_outside_total: Counter = counter(
        "Observations whose robot state lies a whole width or more beyond the bounds of the "
        "policy's statistics; the policy sees it at the bound.")
    clients_refused_total: Counter = counter(
        "Clients without a key that is known, and messages without the permission.",
        "reason=unknown_key|no_curve|wrong_server_key|bad_handshake|forbidden")
    connections_cut_total: Counter = counter(
        "Connections that were cut: there were too many (those that said least come first), it "
        "sent a message without an end, of far too many parts, or more than may wait, or it was "
        "silent.",
        "reason=too_many|flood|silent")
    watchdog_trips_total: Counter = counter(
        "Stalls, each counted once.", "reason=loop_stalled|inference_stalled")


class SimulatorMetrics(MetricSet):
    """Simulator workers

    Told by the workers once a second and summed over them; the totals only grow, also when a worker
    is started again. What a worker did before the agent first heard of it is not in them.
    """

    sim_envs: Gauge = gauge("Bodies of the workers that were seen within the lease time.")
    sim_seconds_total: Counter = counter(
        "Time in which workers moved bodies, rendered, or had nothing to do.",
        "part=step|render|wait")
    sim_steps_total: Counter = counter("Control steps.")
    sim_requests_resent_total: Counter = counter("Requests that workers had to send again.")


class RobotMetrics(MetricSet):
    """Robots in real time

    Told by the robots once a second and at the end of an episode, and summed over them like those
    of simulators. Robots measure on their own monotonic clock: no time of theirs is compared with
    one of the agent's.
    """

    robot_ticks_total: Counter = counter(
        "Control ticks: an action was executed, the robot held for want of one, or the tick before "
        "took too long.",
        "what=executed|held|missed")
    tick_lateness_seconds: ToldHistogram = told_histogram(
        "How late ticks came.", LATENESS_BOUNDS_S)
    observation_age_seconds: ToldHistogram = told_histogram(
        "Age of an observation when the first action that answers it was executed.", AGE_BOUNDS_S)
    chunks_stale_total: Counter = counter(
        "Chunks that were refused because their observation was too old when they came.")
    actions_clamped_total: Counter = counter(
        "Actions that a limit of the robot's changed, by what they move; one may count in several. "
        "An action that is not of 3 + 3 + 1 numbers is other.",
        "dim_group=position|rotation|gripper|other")
    robot_watchdog_trips_total: Counter = counter(
        "Times that a robot was without a fresh action for its watchdog_s, each counted once.")


class AdapterMetrics(MetricSet):
    """Adapters"""

    adapter_info: Gauge = gauge("1 for the active version.", "version", "sha12", "parent")
    adapter_version: Gauge = gauge("Number of the active version; 0 is the base.")
    adapter_unreadable: Gauge = gauge(
        "1 while the active version cannot be read: one before it is served, or none.")
    adapter_swaps_total: Counter = counter(
        "Activations, and versions that could not be loaded.",
        "result=ok|verify_failed|rolled_back")
    adapter_swap_pause_seconds: Histogram = histogram(
        "Time for which inference was held to copy an adapter in.", buckets=PAUSE_BUCKETS_S)
    adapter_staleness_episodes: Gauge = gauge("Episodes sealed since the last activation.")
    adapter_activated_timestamp_seconds: OptionalGauge = optional_gauge(
        "When the active version was activated; absent if none ever was.")


class DataMetrics(MetricSet):
    """Data safety"""

    episodes_unacked: Gauge = gauge("Sealed episodes that the learner has not acknowledged.")
    oldest_unacked_timestamp_seconds: OptionalGauge = optional_gauge(
        "When the oldest of them was sealed; absent if there is none.")
    open_episodes: Gauge = gauge("Episodes that run now.")
    open_slots: Gauge = gauge("Slots of orders without a counted episode.")
    episode_store_bytes: Gauge = gauge(
        "Size of the episode files that the agent holds.", "state=open|sealed|quarantined")
    episode_store_fsync_seconds: Histogram = histogram(
        "Time to make an episode file or its folder survive a loss of power.",
        buckets=FSYNC_BUCKETS_S)
    recording: Gauge = gauge(
        "1 while episodes are kept, 0 while the disk takes nothing; robots are served as before.")
    observations_unrecorded_total: Counter = counter(
        "Observations that were answered and not kept, because the disk took nothing.")
    episodes_quarantined_total: Counter = counter(
        "Episode files put aside since the start of the process.",
        "reason=missing|altered|torn|foreign|no_row|rejected")
    episodes_too_large_total: Counter = counter(
        "Episodes not recorded whole: max_chunk_bytes or max_episode_bytes was reached.")
    orders_refused_total: Counter = counter(
        "Orders that cannot be carried out: too many clients aborted one of their slots.")


class ProcessMetrics(MetricSet):
    """Both processes"""

    ready: OptionalGauge = optional_gauge("1 where /readyz answers 200, 0 where it answers 503.")
    build_info: Gauge = gauge("1; the version of the program.", "version", "role=agent|learner")
    disk_free_bytes: Gauge = gauge(
        "Free space for this user where a folder lies.", "folder=state|adapters")
    disk_size_bytes: Gauge = gauge("Size of the disk where a folder lies.", "folder=state|adapters")


class LearningMetrics(MetricSet):
    """Learning

    Figures of the last update are absent before the first one of a process.
    """

    learner_state: Enum = state(
        "What the learner does.",
        "waiting_for_agent", "evaluating", "collecting", "learning", "publishing", "done")
    learner_last_progress_timestamp_seconds: Gauge = gauge(
        "When the learner started, accepted an episode, made an update or measured a row.")
    learner_task_index: Gauge = gauge("Place of the task that is trained, from 0.")
    learner_episodes_total: Counter = counter(
        "Episodes by what became of them; continues over restarts.",
        "disposition=trained|filtered|surplus|eval|demonstration|aborted")
    learner_episodes_quarantined_total: Counter = counter(
        "Episodes put aside by the learner: damaged on the way or on its disk, or contradictory.")
    learner_orders_refused_total: Counter = counter(
        "Orders that were given up: the agent says that no client can carry them out.")
    run_info: Gauge = gauge(
        "1; what the run's rates are measured under. Training episodes are as mode rollout.",
        "suite", "suite_protocol", "mode", "temperature", "solved=once|at_end")
    grpo_updates_total: Counter = counter("Committed updates; continues over restarts.")
    grpo_update_seconds: Histogram = histogram(
        "Time of one iteration by part.", "part=wait|learn|publish", buckets=UPDATE_BUCKETS_S)
    grpo_groups_total: Counter = counter("Groups of episodes that were collected.")
    grpo_degenerate_groups_total: Counter = counter(
        "Groups whose outcomes were all equal: nothing to learn from.")
    grpo_group_reward_std: OptionalGauge = optional_gauge(
        "Mean standard deviation of the rewards within a group.")
    grpo_kl: OptionalGauge = optional_gauge("Estimated KL(old || new).", unit="nats")
    grpo_clip_fraction: OptionalGauge = optional_gauge("Share of clipped tokens.", unit="ratio")
    grpo_grad_norm: OptionalGauge = optional_gauge("Mean norm of the gradient before clipping.")
    grpo_entropy: OptionalGauge = optional_gauge("Mean policy entropy per token.", unit="nats")
    grpo_logprob_difference_max: OptionalGauge = optional_gauge(
        "Largest |recomputed - recorded| log-probability.", unit="nats")
    grpo_logprob_difference_p99: OptionalGauge = optional_gauge(
        "99% quantile of the same.", unit="nats")
    ppo_value_loss: OptionalGauge = optional_gauge("The critic's loss.")
    ppo_explained_variance: OptionalGauge = optional_gauge(
        "Share of the returns' variance that the critic foresaw; 0 is no better than their mean.",
        unit="ratio")


class AgentMetrics(
    SuccessMetrics, ServingMetrics, SimulatorMetrics, RobotMetrics, AdapterMetrics, DataMetrics,
    ProcessMetrics,
):
    """What the agent exports."""

    def observe_stage(self, stage: str, seconds: float) -> None:
        """A part of the time of one observation."""
        self.request_duration_seconds.labels(PROTOCOL, stage).observe(seconds)


class LearnerMetrics(LearningMetrics, ProcessMetrics):
    """What the learner exports. Success is the agent's to tell."""

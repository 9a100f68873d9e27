"""What a run has done so far, from the lines its processes append; no drawing here.

Episodes come from the clients' logs (live), updates and versions from the learner's. Slot ids say
what an episode was for: `eval/ROW/MODE/TASK/STATE#k` or `train/TASK_INDEX/UPDATE/...#k`.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from agent.process.terminal import LINE_CHARS
from deploy.local.statistics import Rate

ROLLOUT = "rollout"
RECENT_EPISODES = 64
CLOCK_CHARS = 10  # before a milestone on its line
IDLE_LIMIT_S = 60.0  # a longer pause between two episodes is no work: the run was stopped


@dataclass(frozen=True)
class Plan:
    """How much a run will collect, from its configuration."""

    train_tasks: list[str]
    held_out_tasks: list[str]
    iterations_per_task: int
    episodes_per_iteration: int
    eval_episodes: int
    is_joint: bool = False  # all tasks at once, in as many iterations as one after another
    last_row: int | None = None  # after which the run ends, if not the last

    @classmethod
    def from_learner(cls, learner: dict[str, Any]) -> Plan:
        """From the learner's resolved settings."""
        suite, algorithm = learner["suite"], learner["algorithm"]
        rows = measured_rows(learner)
        collects = algorithm.get("method") != "sft"
        per_iteration = algorithm["group_size"] * algorithm["groups_per_iteration"]
        return cls(
            train_tasks=list(suite["train_tasks"]),
            held_out_tasks=list(suite["held_out_tasks"]),
            iterations_per_task=algorithm["iterations_per_task"],
            episodes_per_iteration=per_iteration if collects else 0,
            eval_episodes=sum(episodes_of_row(learner, row) for row in rows),
            last_row=rows[-1],
            is_joint=learner["continual"]["method"] == "multitask",
        )

    @property
    def train_episodes(self) -> int:
        """Of the whole run, without resampled groups."""
        tasks = len(self.train_tasks) if self.last_row is None else self.last_row
        return tasks * self.iterations_per_task * self.episodes_per_iteration


def measured_rows(learner: dict[str, Any]) -> list[int]:
    """The rows of the success matrix that a run measures, by the learner's resolved settings."""
    last = len(learner["suite"]["train_tasks"])
    if learner["algorithm"]["iterations_per_task"] == 0:
        return [0]
    is_joint = learner["continual"]["method"] == "multitask"
    rows = [0, last] if is_joint else list(range(last + 1))
    limit = learner.get("last_row")
    return rows if limit is None else [row for row in rows if row <= limit]


def episodes_of_row(learner: dict[str, Any], row: int) -> int:
    """Evaluation episodes of one row, at both temperatures."""
    suite, evaluation = learner["suite"], learner["evaluation"]
    trained, held_out = len(suite["train_tasks"]), len(suite["held_out_tasks"])
    slots, held_out_slots = evaluation["slots_per_state"], evaluation["held_out_slots_per_state"]
    is_middle = 0 < row < trained
    middle_slots = evaluation.get("middle_slots_per_state")
    if is_middle and middle_slots is not None:
        slots = held_out_slots = middle_slots
    is_sampled = learner.get("temperature", 1.0) > 0  # what is greedy anyway is measured once
    if not is_sampled:
        slots = held_out_slots = 1
    is_whole = not is_middle or evaluation["full_matrix"]
    episodes = trained * slots + held_out * held_out_slots if is_whole else slots
    if evaluation["greedy"] and is_sampled and not is_middle:
        is_only_measured = learner["algorithm"]["iterations_per_task"] == 0
        episodes += trained + (held_out if is_only_measured else 0)
    return int(suite["eval_init_states"] * episodes)


@dataclass
class TaskView:
    """One task's successes: by evaluation row, and the latest of its training episodes."""

    eval_rates: dict[int, Rate] = field(default_factory=dict)
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT_EPISODES))
    update_rates: dict[int, Rate] = field(default_factory=dict)

    @property
    def latest(self) -> tuple[int, Rate] | None:
        """The newest evaluation after the base, as (row, rate)."""
        rows = [row for row in self.eval_rates if row > 0]
        return (max(rows), self.eval_rates[max(rows)]) if rows else None


class Progress:
    """Everything the live view shows. Feed it lines; it never reads a file itself."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tasks = {slug: TaskView() for slug in [*plan.train_tasks, *plan.held_out_tasks]}
        self.episodes: Counter[str] = Counter()  # counted, by phase
        self.aborted = 0
        self.version = "base"
        self.updates = 0
        self.is_done = False
        self.latest_slot = ""
        self.milestones: list[str] = []  # a line for each update, measured row and swap
        self._measured: dict[tuple[int, str, str], Rate] = {}  # cells, by (row, mode, task)
        self._new_cells: list[tuple[int, str, str]] = []  # of the row that is being told
        self._busy_s: dict[str, float] = defaultdict(float)  # by phase
        self._last_unix_s = 0.0

    def add_ends(self, lines: Iterable[dict[str, Any]]) -> None:
        """Lines of the clients' logs, of shape END."""
        for line in lines:
            if line["outcome"] == "aborted":
                self.aborted += 1
            if line["counted"]:
                self._add_end(line)

    def add_events(self, lines: Iterable[dict[str, Any]]) -> None:
        """Lines of the learner's log (EVENTS); without any, the row told last is complete."""
        told = list(lines)
        for line in told:
            event = line["event"]
            if event in ("start", "iteration"):
                self.version = line["version"]
            if event == "eval":
                self._add_cell(line)
            else:
                self._close_row()
            if event == "iteration" and line["update"] > self.updates:
                self.updates = line["update"]
                rate = Rate(line["successes"], line["trials"])
                self.milestones.append(f"update {self.updates}: {percent(rate)}, {line['task']}")
            self.is_done = event == "done"
        if not told:
            self._close_row()

    def take_milestones(self) -> list[str]:
        """Those since the last call."""
        taken, self.milestones = self.milestones, []
        return taken

    def forget_milestones(self) -> None:
        """What was read so far is of earlier starts."""
        self._close_row()
        self.milestones.clear()

    def add_activations(self, versions: Iterable[str]) -> None:
        """Versions that the agent has made active, in their order."""
        for version in versions:
            self.version = version
            self.milestones.append(f"serving {version}")

    def _add_cell(self, line: dict[str, Any]) -> None:
        cell = (line["row"], line["mode"], line["task"])
        if cell not in self._measured:  # a row that is complete is told again by every resume
            if self._new_cells and self._new_cells[-1][0] != cell[0]:
                self._close_row()
            self._measured[cell] = Rate(line["successes"], line["trials"])
            self._new_cells.append(cell)

    def _close_row(self) -> None:
        """A line for each mode of the row that was told, with every task if that is short."""
        for mode in dict.fromkeys(cell[1] for cell in self._new_cells):
            cells = [cell for cell in self._new_cells if cell[1] == mode]
            rates = {task: self._measured[row, mode, task] for row, _, task in cells}
            after = "" if mode == ROLLOUT else f", {mode}"
            head = f"row {cells[0][0]}{after}: "
            each = head + ", ".join(f"{task} {percent(rate)}" for task, rate in rates.items())
            mean = Rate(
                sum(rate.successes for rate in rates.values()),
                sum(rate.trials for rate in rates.values()),
            )
            is_short = len(each) <= LINE_CHARS - CLOCK_CHARS
            self.milestones.append(each if is_short else f"{head}{percent(mean)}, all measured")
        self._new_cells.clear()

    def _add_end(self, line: dict[str, Any]) -> None:
        phase, view = line["phase"], self.tasks.get(line["task"])
        pause_s = line["unix_s"] - self._last_unix_s
        if 0 < pause_s < IDLE_LIMIT_S:
            self._busy_s[phase] += pause_s
        self._last_unix_s = max(self._last_unix_s, line["unix_s"])
        self.episodes[phase] += 1
        is_success = line["outcome"] == "success"
        parts = line["slot_id"].split("/")
        if view is None or not self._is_planned(parts):
            return
        self.latest_slot = line["slot_id"]
        if parts[0] == "eval" and parts[2] == ROLLOUT:
            _count(view.eval_rates, int(parts[1]), is_success)
        elif parts[0] == "train":
            view.recent.append(is_success)
            _count(view.update_rates, int(parts[2]), is_success)

    def _is_planned(self, parts: list[str]) -> bool:
        """Whether a slot's row or task is one of the run's: a damaged line can say anything."""
        tasks = len(self.plan.train_tasks)
        return parts[0] not in ("eval", "train") or int(parts[1]) < tasks + (parts[0] == "eval")

    def left_s(self) -> float | None:
        """Expected remaining time; None until there is something to go by.

        Until training has begun, an episode of it is taken to cost twice one of the evaluation,
        which learns nothing.
        """
        eval_done, train_done = self.episodes["eval"], self.episodes["train"]
        if eval_done < RECENT_EPISODES:
            return None
        eval_s = self._busy_s["eval"] / eval_done
        is_training_known = train_done >= self.plan.episodes_per_iteration
        train_s = self._busy_s["train"] / train_done if is_training_known else 2 * eval_s
        return (
            max(0, self.plan.eval_episodes - eval_done) * eval_s
            + max(0, self.plan.train_episodes - train_done) * train_s
        )

    def share_done(self) -> float:
        """Between 0 and 1, in episodes."""
        planned = self.plan.train_episodes + self.plan.eval_episodes
        done = self.episodes["eval"] + self.episodes["train"]
        return 1.0 if self.is_done else min(1.0, done / planned)

    def stage(self) -> str:
        """What is being done now, in words."""
        if self.is_done:
            return "Done"
        parts = self.latest_slot.split("/")
        if parts[0] == "eval":
            row = int(parts[1])
            after = f"after {self.plan.train_tasks[row - 1]}" if row else "the base policy"
            return f"Evaluating {after}"
        if parts[0] == "train":
            return self._training_stage(int(parts[1]))
        return "Starting"

    def _training_stage(self, index: int) -> str:
        plan, tasks = self.plan, self.plan.train_tasks
        trained = tasks if plan.is_joint else [tasks[index]]
        rates = [self.tasks[task].update_rates for task in trained]
        updates = {update for each in rates for update in each}
        collected = sum(each[max(updates)].trials for each in rates if max(updates) in each)
        wanted = plan.episodes_per_iteration
        doing = "learning" if collected >= wanted else f"{collected} of {wanted} episodes"
        which = (
            f"all {len(tasks)} tasks"
            if plan.is_joint
            else f"{tasks[index]} (task {index + 1} of {len(tasks)})"
        )
        total = plan.iterations_per_task * len(trained)
        return f"Training {which}, update {len(updates)} of {total}: {doing}"


def percent(rate: Rate | None) -> str:
    """`48% n=64`; an evaluation that is still under way shows by its n how far it is."""
    return f"{100 * rate.value:.0f}% n={rate.trials}" if rate and rate.trials else ""


def _count(rates: dict[int, Rate], key: int, is_success: bool) -> None:
    old = rates.get(key, Rate(0, 0))
    rates[key] = Rate(old.successes + is_success, old.trials + 1)

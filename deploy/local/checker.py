"""Recounts a run from its ledgers and the clients' own logs, without trusting the learner's sums.

A client logs an episode's end once it has seen the server's answer, durably, before it asks for
more work. So every logged end must be in a ledger, every counted one must have exactly one
disposition at the learner, and the success matrix must equal what the clients counted. Ends of
episodes that were damaged afterwards are left out: their slots were run again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from deploy.local.records import QUARANTINED, EpisodeRow, Records
from deploy.local.statistics import Matrix, Rate

ROLLOUT, GREEDY = "rollout", "greedy"
MODES = (ROLLOUT, GREEDY)
DISPOSITIONS = ("trained", "filtered", "surplus", "eval", "aborted", "demonstration")
LISTED = 5  # episodes named per problem


@dataclass
class Recount:
    """What the logs alone say. `problems` is empty when everything agrees.

    unseen: counted ends whose answer no client lived to log; the agent's ledger vouches for them.
    """

    matrices: dict[str, Matrix]
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def recount(records: Records) -> Recount:
    """Counts again, and compares every source with every other."""
    unseen = _unseen(records)
    found = Recount(
        matrices={mode: count_matrix(records, mode, unseen) for mode in MODES},
        lost=_lost(records),
        duplicated=_duplicated(records),
        unseen=[row.episode_id for row in unseen],
    )
    found.problems += _name("lost: no disposition at the learner", found.lost)
    found.problems += _name("duplicated", found.duplicated)
    found.problems += _name("trained on, but not a counted training episode", _misused(records))
    found.problems += _name("ledgers and client log disagree", _contradicted(records))
    found.problems += _name("chunks of more than one version", _mixed(records))
    for mode in MODES:
        found.problems += _compare_matrix(records, found.matrices[mode], mode)
    return found


def count_matrix(records: Records, mode: str, unseen: list[EpisodeRow]) -> Matrix:
    """Success matrix from the counted ends of `eval/ROW/MODE/...` slots.

    Slots of orders that were given up are no trials. The rollout mode has the curves of the
    training episodes, too.
    """
    results = records.results
    tasks, rows = results["tasks"], len(results["train_tasks"]) + 1
    successes: Counter[tuple[int, str]] = Counter()
    trials: Counter[tuple[int, str]] = Counter()
    ends = [(e["slot_id"], e["task"], e["outcome"]) for e in records.ends if e["counted"]]
    ends += [(row.slot_id, row.task, row.outcome) for row in unseen]
    for slot_id, task, outcome in ends:
        parts, order_id = slot_id.split("/"), slot_id.rpartition("#")[0]
        if parts[0] == "eval" and parts[2] == mode and order_id not in records.refused:
            cell = (int(parts[1]), task)
            trials[cell] += 1
            successes[cell] += outcome == "success"
    cells = [
        [Rate(successes[row, task], trials[row, task]) for task in tasks] for row in range(rows)
    ]
    curves = count_curves(ends) if mode == ROLLOUT else {}
    return Matrix(tasks, results["train_tasks"], results["held_out_tasks"], cells, curves)


def count_curves(ends: Iterable[tuple[str, str, str]]) -> dict[str, list[Rate]]:
    """By task, the rate of each iteration, from counted (slot id, task, outcome).

    Slots are `train/TASK_INDEX/UPDATE/...`; others are passed over.
    """
    counts: dict[tuple[str, int], Counter[bool]] = defaultdict(Counter)
    for slot_id, task, outcome in ends:
        parts = slot_id.split("/")
        if parts[0] == "train":
            counts[task, int(parts[2])][outcome == "success"] += 1
    curves: dict[str, list[Rate]] = defaultdict(list)
    for task, update in sorted(counts):
        count = counts[task, update]
        curves[task].append(Rate(count[True], count.total()))
    return dict(curves)


def _unseen(records: Records) -> list[EpisodeRow]:
    logged = {end["episode_id"] for end in [*records.ends, *records.set_aside]}
    return [
        row for row in records.agent_rows.values() if row.counted and row.episode_id not in logged
    ]


def _lost(records: Records) -> list[str]:
    """Logged ends that no ledger knows, or counted ones that the learner did not use.

    An agent that lost its ledger knows nothing of what the learner held by then.
    """
    lost = []
    for end in records.ends:
        episode_id = end["episode_id"]
        row = records.learner_rows.get(episode_id)
        is_used = row is not None and row.disposition in DISPOSITIONS
        is_known = row is not None or episode_id in records.agent_rows
        if not is_known or (end["counted"] and not is_used):
            lost.append(episode_id)
    return sorted(set(lost))


def _duplicated(records: Records) -> list[str]:
    """Ends logged twice, and slots for which more than one episode counts."""
    logged = Counter(end["episode_id"] for end in records.ends)
    duplicated = [episode_id for episode_id, count in logged.items() if count > 1]
    sources = (
        {(e["slot_id"], e["episode_id"]) for e in records.ends if e["counted"]},
        {(r.slot_id, r.episode_id) for r in records.agent_rows.values() if r.counted},
        {(r.slot_id, r.episode_id) for r in records.learner_rows.values() if r.counted},
    )
    for pairs in sources:
        slots = Counter(slot for slot, _ in pairs)
        duplicated += [slot for slot, count in slots.items() if count > 1]
    return sorted(set(duplicated))


def _misused(records: Records) -> list[str]:
    return [
        row.episode_id
        for row in records.learner_rows.values()
        if row.disposition in ("trained", "filtered")
        and (row.phase != "train" or row.outcome == "aborted" or not row.counted)
    ]


def _contradicted(records: Records) -> list[str]:
    """Ends whose slot, task, version, outcome or counting differs from a ledger's.

    What an agent has put aside, although the learner has the whole of it, counts there alone.
    """
    names = ("slot_id", "task", "phase", "version", "outcome", "counted")
    wrong = []
    for end in records.ends:
        for rows in (records.agent_rows, records.learner_rows):
            row = rows.get(end["episode_id"])
            if row is None or row.state == QUARANTINED:
                continue
            if any(getattr(row, name) != end[name] for name in names):
                wrong.append(end["episode_id"])
    return sorted(set(wrong))


def _mixed(records: Records) -> list[str]:
    return [
        end["episode_id"]
        for end in records.ends
        if any(version != end["version"] for version in end["versions"])
    ]


def _compare_matrix(records: Records, matrix: Matrix, mode: str) -> list[str]:
    """Cells in which the learner's results differ from the recount."""
    reported: dict[str, Any] = records.results["matrix" if mode == ROLLOUT else GREEDY]
    problems = []
    for row, cells in enumerate(matrix.cells):
        for task, rate, successes, trials in zip(
            matrix.tasks, cells, reported["successes"][row], reported["trials"][row], strict=True
        ):
            if (rate.successes, rate.trials) != (successes, trials):
                problems.append(
                    f"{mode} matrix, row {row}, {task}: learner says {successes}/{trials}, "
                    f"clients say {rate.successes}/{rate.trials}"
                )
    return problems


def _name(what: str, ids: list[str]) -> list[str]:
    if not ids:
        return []
    more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
    return [f"{what}: {', '.join(ids[:LISTED])}{more}"]

"""summary.json: what a run was, what came of it, and what it cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

from deploy.local.checker import GREEDY, ROLLOUT, Recount, count_curves
from deploy.local.conditions import Conditions
from deploy.local.records import Records
from deploy.local.statistics import Figure, Matrix

SETTING_SECTIONS = ("algorithm", "evaluation", "temperature", "micro_batch")
GREEDY_FIGURES = ("base_avg", "final_avg", "gain", "base_zero_shot", "final_zero_shot")
FIRST_FIGURES = ("base_avg", "final_avg", "gain", "nbt", "base_zero_shot", "final_zero_shot")
USED = ("trained", "filtered")  # every counted training episode is one or the other
FIGURE_TOLERANCE = 1e-9


def reported_matrix(records: Records, name: str = "matrix") -> Matrix:
    """The learner's own matrix; `name` is "matrix" (rollout, with curves) or "greedy"."""
    matrix = Matrix.from_counts(records.results, records.results[name])
    if name == GREEDY:
        return matrix
    used = [row for row in records.learner_rows.values() if row.disposition in USED]
    return replace(matrix, curves=count_curves((r.slot_id, r.task, r.outcome) for r in used))


def build_summary(records: Records, recounted: Recount) -> dict[str, Any]:
    """The whole of summary.json. Success figures are at the rollout temperature.

    Each matrix says under which protocol and temperature its rates were measured.
    """
    results, config = records.results, records.config
    rollout, greedy = reported_matrix(records), reported_matrix(records, GREEDY)
    return {
        "suite": results["suite"],
        "seed": results["seed"],
        "settings": {name: config["learner"][name] for name in SETTING_SECTIONS}
        | _given_adapter(config["learner"])
        | {"model": config["model"]["name"], "versions": records.state["versions"]},
        "tasks": results["tasks"],
        "train_tasks": results["train_tasks"],
        "held_out_tasks": results["held_out_tasks"],
        "matrix": results["matrix"] | Conditions.of_matrix(results, "matrix").as_dict(),
        **figures(rollout),
        "greedy": {"matrix": results["greedy"] | Conditions.of_matrix(results, "greedy").as_dict()}
        | {k: v for k, v in figures(greedy).items() if k.startswith(GREEDY_FIGURES)},
        "episodes": count_episodes(records)
        | {"lost": len(recounted.lost), "duplicated": len(recounted.duplicated)},
        "swaps": measure_swaps(records),
        "restarts": _sum_restarts(records),
        "wall_s": round(_wall_s(records), 1),
    }


def _given_adapter(learner: dict[str, Any]) -> dict[str, Any]:
    """What was measured in place of the base, if anything was."""
    names = ("start_adapter", "start_adapter_scale") if learner.get("start_adapter") else ()
    return {name: learner[name] for name in names}


def _wall_s(records: Records) -> float:
    """How long the supervisor ran the processes; services have none: first event to last."""
    supervised_s = sum(s["ended_unix_s"] - s["began_unix_s"] for s in records.state["sessions"])
    done = [event["unix_s"] for event in records.events if event["event"] == "done"]
    return supervised_s or (done[0] - records.events[0]["unix_s"] if done else 0.0)


def figures(matrix: Matrix) -> dict[str, float | None]:
    """Every figure and its standard error, None where it was not measured.

    `nbt` is `nbt_final` by the name that every summary has had; of a single task, which has nothing
    to forget, it is 0.
    """
    values: dict[str, float | None] = {}
    for name, figure in matrix.figures().items():
        values |= _split(name, figure)
    is_single = len(matrix.train_tasks) == 1
    return values | _split("nbt", (0.0, 0.0) if is_single else matrix.nbt_final())


def _split(name: str, figure: Figure) -> dict[str, float | None]:
    value, error = figure if figure else (None, None)
    return {name: value, f"{name}_se": error}


def count_episodes(records: Records) -> dict[str, int]:
    """Ordered episodes that ended, and what became of them."""
    ended = records.ended()
    used = Counter(row.disposition for row in records.learner_rows.values())
    return {
        "collected": len(ended),
        "trained": used["trained"],
        "filtered": used["filtered"],
        "surplus": used["surplus"],
        "eval": used["eval"],
        "aborted": sum(row.outcome == "aborted" for row in ended),
    }


def measure_swaps(records: Records) -> dict[str, Any]:
    """What activations cost: time the inference loop was held, and what the probe noticed."""
    holds_s = [event["hold_s"] for event in records.events if event.get("hold_s")]
    answered_s = sorted(line["unix_s"] for line in records.probe if not line["error"])
    sessions = records.state["sessions"]
    gaps_s = [
        after - before
        for before, after in pairwise(answered_s)
        if not any(before < s["began_unix_s"] <= after for s in sessions)  # the run was stopped
    ]
    return {
        "count": len(records.updates),
        "hold_p50_s": median(holds_s) if holds_s else None,
        "hold_max_s": max(holds_s, default=None),
        "probe_gap_max_s": max(gaps_s, default=None),
        "dropped_requests": count_dropped(records),
    }


def count_dropped(records: Records) -> int:
    """Requests of the probe that were refused or never answered while the run went on.

    The probe asks again until it is answered, so a reply that died with a restarted agent makes a
    gap and no drop. Nor is it a drop that the new agent refuses to go on with an episode which
    ended with the old one, or that the run was stopped before the answer came.
    """
    sessions = records.state["sessions"]
    was_restarted = len(sessions) > 1 or _sum_restarts(records).get("agent", 0) > 0
    dropped = 0
    for line in records.probe:
        if line["error"].startswith("server_restarted:"):
            dropped += not was_restarted
        elif line["error"] == "unanswered":
            dropped += not any(line["unix_s"] <= s["began_unix_s"] for s in sessions)
        else:
            dropped += bool(line["error"])
    return dropped


def _sum_restarts(records: Records) -> dict[str, int]:
    total: Counter[str] = Counter()
    for session in records.state["sessions"]:
        total.update(session["restarts"])
    return dict(total)


def compare(summary: dict[str, Any], records: Records, recounted: Recount) -> list[str]:
    """Where `summary` differs from the figures that the logs alone give; empty if nowhere.

    A summary of before a figure existed says nothing of it; what all have had must be there.
    """
    problems = []
    for name, value in figures(recounted.matrices[ROLLOUT]).items():
        if name in summary or name.removesuffix("_se") in FIRST_FIGURES:
            problems += _difference(name, summary.get(name), value)
    for name, value in figures(recounted.matrices[GREEDY]).items():
        if name in summary["greedy"]:
            problems += _difference(f"greedy {name}", summary["greedy"][name], value)
    counted = count_episodes(records) | {
        "lost": len(recounted.lost),
        "duplicated": len(recounted.duplicated),
    }
    for name, count in counted.items():
        problems += _difference(f"episodes.{name}", summary["episodes"].get(name), count)
    rows = [row for row in records.ended() if row.counted]
    for what, phase, names in (
        ("training", "train", ("trained", "filtered")),
        ("evaluation", "eval", ("eval",)),
    ):
        ledger = sum(row.phase == phase for row in rows)
        used = sum(summary["episodes"].get(name, 0) for name in names)
        problems += _difference(f"{what} episodes ({' + '.join(names)})", used, ledger)
    return problems


def _difference(name: str, reported: Any, counted: Any) -> list[str]:
    try:
        is_same = reported is counted or abs(reported - counted) <= FIGURE_TOLERANCE
    except (TypeError, OverflowError):  # not measured in one of them, or no number that counts
        is_same = False
    return [] if is_same else [f"{name}: summary says {reported}, recount says {counted}"]

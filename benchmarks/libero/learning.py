"""What sequential GRPO taught nano-libero, from the logs of finished `make libero` runs.

python -m benchmarks.libero.learning RUN...   writes benchmarks/reports/libero-nano.md

Runs that trained nothing (`perennial eval`) are told as the base policy under other conditions,
such as the other renderer. Every rate is counted anew from the clients' logs. A gain is paired by
init state: the same states and the same noise before and after, the state being the unit that its
error is computed over.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.libero.drawing import draw_curves, task_names
from benchmarks.libero.machine import describe_machine
from deploy.local.conditions import Conditions
from deploy.local.records import Records, read_records
from deploy.local.statistics import Z_95, Rate

REPORT = Path(__file__).parents[1] / "reports" / "libero-nano.md"
CURVES = REPORT.with_name("libero-nano-curves.png")
VIDEO = REPORT.with_name("libero-nano.gif")  # of benchmarks.libero.video
ROLLOUT, GREEDY = "rollout", "greedy"
WANTED = 0.15  # gain over the trained tasks
WANTED_TRIALS = 100  # of each trained task, before and after
Place = tuple[int, str, str]  # row, mode, task
MEANING = "../../docs/libero.md#a-policy-that-learns-here"


@dataclass(frozen=True)
class Paired:
    """A mean difference over (task, init state) pairs, and its standard error."""

    value: float
    error: float
    pairs: int

    @property
    def interval(self) -> tuple[float, float]:
        """At 95%."""
        return self.value - Z_95 * self.error, self.value + Z_95 * self.error

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


@dataclass(frozen=True)
class Outcomes:
    """`of[row, mode, task][init_state]`: how each counted trial ended, one slot after the other."""

    of: dict[Place, dict[int, list[bool]]]

    @classmethod
    def from_records(cls, records: Records) -> Outcomes:
        """A slot that was leased again counts once, as it was counted."""
        ended = {e["slot_id"]: e for e in records.ends if e["phase"] == "eval" and e["counted"]}
        found: dict[Place, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
        for slot_id in sorted(ended):
            _, row, mode, task, state = slot_id.partition("#")[0].split("/")
            success = ended[slot_id]["outcome"] == "success"
            found[int(row), mode, task][int(state)].append(success)
        return cls({place: dict(states) for place, states in found.items()})

    def rate(self, row: int, mode: str, task: str) -> Rate:
        """Of one cell; 0 of 0 if it was not measured."""
        trials = [each for state in self.of.get((row, mode, task), {}).values() for each in state]
        return Rate(sum(trials), len(trials))

    def gain(self, last: int, mode: str, tasks: list[str]) -> Paired | None:
        """Row `last` less row 0 over `tasks`; None where one of the two was not measured."""
        differences = [
            fmean(after) - fmean(self.of[0, mode, task][state])
            for task in tasks
            for state, after in self.of.get((last, mode, task), {}).items()
        ]
        if len(differences) < 2:
            return None
        error = stdev(differences) / math.sqrt(len(differences))
        return Paired(fmean(differences), error, len(differences))


def main() -> None:
    """Writes the report of the named run folders."""
    runs = [read_records(Path(name)) for name in sys.argv[1:]]
    if not runs:
        sys.exit("benchmarks.libero.learning: expected run folders of `make libero`")
    trained = [records for records in runs if _iterations(records) > 0]
    if not trained:
        sys.exit("benchmarks.libero.learning: none of these runs trained anything")
    draw_curves(trained, CURVES)
    text = report(trained, [records for records in runs if records not in trained])
    REPORT.write_text(text, encoding="utf-8")
    print(text)


def report(runs: list[Records], bases: list[Records]) -> str:
    """The whole of it as Markdown; `bases` trained nothing."""
    parts = [_head(runs[0]), *map(_run, runs), *map(_base, bases)]
    parts += [
        f"How settings were chosen, and what the committed run shows: [docs/libero.md]({MEANING}).",
        f"![Success while training]({CURVES.name})",
    ]
    if VIDEO.is_file():
        parts += [
            "An evaluation episode before (left) and after (right), from the same init state with "
            "the same noise: `python -m benchmarks.libero.video`.",
            f"![Before and after]({VIDEO.name})",
        ]
    return "\n\n".join(parts) + "\n"


def _head(records: Records) -> str:
    learner, suite = records.config["learner"], records.config["suite"]
    algorithm = {k: v for k, v in learner["algorithm"].items() if v is not None}
    conditions = Conditions.of_matrix(records.results, "matrix")
    trained, held_out = (len(records.results[key]) for key in ("train_tasks", "held_out_tasks"))
    return "\n".join(
        [
            "# Sequential GRPO on LIBERO with nano-libero",
            "",
            f"`make libero` on {suite['name']}: {trained} tasks learned one after the other, "
            f"{held_out} never trained. {conditions}.",
            f"Renderer {suite['renderer']}, {suite['image_size']} pixels; training on init states "
            f"0 to {suite['train_init_states'] - 1}, evaluation on the next "
            f"{suite['eval_init_states']}.",
            describe_machine(),
            "",
            *(
                f"- {name}: {_instruction(suite, task)}"
                for task, name in task_names(records).items()
            ),
            "",
            "Settings: " + ", ".join(f"{name} {value}" for name, value in algorithm.items()) + ".",
        ]
    )


def _run(records: Records) -> str:
    outcomes = Outcomes.from_records(records)
    trained, held_out = records.results["train_tasks"], records.results["held_out_tasks"]
    last = len(trained)
    gain = outcomes.gain(last, ROLLOUT, trained)
    lines = [f"## Seed {records.results['seed']}", ""]
    if gain is not None:
        trials = min(
            outcomes.rate(row, ROLLOUT, task).trials for row in (0, last) for task in trained
        )
        reached = gain.value >= WANTED and gain.interval[0] > 0 and trials >= WANTED_TRIALS
        lines += [
            f"Trained tasks, sampled: **{gain} points** over {gain.pairs} pairs of task and init "
            f"state; at least {100 * WANTED:+.0f} with an interval above 0 and n = "
            f"{WANTED_TRIALS}: {'reached' if reached else 'MISSED'}.",
        ]
    for words, mode, tasks in (
        ("Trained tasks, greedy", GREEDY, trained),
        ("Held-out tasks, sampled", ROLLOUT, held_out),
    ):
        change = outcomes.gain(last, mode, tasks)
        if change is not None:
            lines += [f"{words}: {change} points over {change.pairs} pairs."]
    lines += ["", *_matrix(records, ROLLOUT), ""]
    lines += ["Greedy:", "", *_matrix(records, GREEDY), "", *_cost(records)]
    return "\n".join(lines)


def _base(records: Records) -> str:
    suite, results = records.config["suite"], records.results
    lines = [
        f"## The base, renderer {suite['renderer']}",
        "",
        f"It never saw such pictures. {Conditions.of_matrix(results, 'matrix')}.",
        "",
    ]
    lines += _matrix(records, ROLLOUT)
    if records.config["learner"]["evaluation"]["greedy"]:
        lines += ["", "Greedy:", "", *_matrix(records, GREEDY)]
    return "\n".join(lines)


def _iterations(records: Records) -> int:
    return records.config["learner"]["algorithm"]["iterations_per_task"]


def _instruction(suite: dict[str, Any], slug: str) -> str:
    return next(task["instruction"] for task in suite["tasks"] if task["slug"] == slug)


def _matrix(records: Records, mode: str) -> list[str]:
    outcomes, names = Outcomes.from_records(records), task_names(records)
    trained, held_out = records.results["train_tasks"], records.results["held_out_tasks"]
    tasks = [task for task in (*trained, *held_out) if outcomes.rate(0, mode, task).trials]
    heads = [names[task] + (" (held out)" if task in held_out else "") for task in tasks]
    lines = ["| after | " + " | ".join(heads) + " |", "|---" * (len(tasks) + 1) + "|"]
    for row, name in enumerate(["nothing", *(names[task] for task in trained)]):
        rates = [outcomes.rate(row, mode, task) for task in tasks]
        if any(rate.trials for rate in rates):
            lines.append(f"| {name} | " + " | ".join(map(_cell, rates)) + " |")
    return lines


def _cell(rate: Rate) -> str:
    if not rate.trials:
        return "–"
    low, high = rate.interval()
    return f"{100 * rate.value:.0f}% [{100 * low:.0f}, {100 * high:.0f}] n={rate.trials}"


def _cost(records: Records) -> list[str]:
    ends = [end for end in records.ends if end["counted"]]
    hours = sum(s["ended_unix_s"] - s["began_unix_s"] for s in records.state["sessions"]) / 3600
    by_phase = {
        phase: [end for end in ends if end["phase"] == phase] for phase in ("train", "eval")
    }
    told = ", ".join(
        f"{len(found)} episodes ({sum(end['steps'] for end in found):,} steps) of {phase}"
        for phase, found in by_phase.items()
    )
    return [f"{hours:.2f} hours of wall time; {told}; {len(records.updates)} updates."]


if __name__ == "__main__":
    main()

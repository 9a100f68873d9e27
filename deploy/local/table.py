"""A run's summary as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.process.shown import printable
from deploy.local.conditions import Conditions
from deploy.local.statistics import Rate


def draw_summary(summary: dict[str, Any]) -> RenderableType:
    """The success matrix, the figures a run is judged by, and what it cost."""
    title = (
        f"{printable(summary['suite'])}, seed {summary['seed']}: success on evaluation init states"
    )
    under = f"{conditions_of(summary)}; 95% Wilson intervals"
    head = (Text(""), Text(title, "bold"), Text(under, "dim"), Text(""))
    return Group(*head, _matrix(summary), _figures(summary))


def conditions_of(part: dict[str, Any]) -> Conditions:
    """What the rates of a summary, or of its section `greedy`, were measured under."""
    return Conditions(**{name: part["matrix"][name] for name in Conditions.__dataclass_fields__})


def _matrix(summary: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("after training")
    held_out = summary["held_out_tasks"]
    for task in summary["tasks"]:
        name = printable(task)
        # A Text, since a plain string would be read as markup.
        heading = Text(f"{name}\n(held out)" if task in held_out else name)
        table.add_column(heading, justify="right")
    rows = ["nothing (base)", *summary["train_tasks"]]
    for row, name in enumerate(rows):
        counts = zip(
            summary["matrix"]["successes"][row], summary["matrix"]["trials"][row], strict=True
        )
        cells = [_cell(Rate(*count)) for count in counts]
        own = summary["tasks"].index(name) if row else -1
        styled = [Text(c, "bold cyan" if i == own else "") for i, c in enumerate(cells)]
        table.add_row(Text(printable(name)), *styled)
    return table


def _cell(rate: Rate) -> str:
    if not rate.trials:
        return "–"
    low, high = rate.interval()
    return f"{100 * rate.value:.0f}% [{100 * low:.0f}, {100 * high:.0f}] n={rate.trials}"


def _figures(summary: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 3, 0, 0))
    episodes, swaps, greedy = summary["episodes"], summary["swaps"], summary["greedy"]
    rows = (
        ("", ""),
        (
            "trained tasks",
            _change(summary, "base_avg", "final_avg", "gain")
            + _trials(summary, summary["matrix"], "train_tasks"),
        ),
        (
            "  greedy (T = 0)",
            _change(greedy, "base_avg", "final_avg", "gain")
            + _trials(summary, greedy["matrix"], "train_tasks"),
        ),
        (
            "held-out tasks",
            _change(summary, "base_zero_shot", "final_zero_shot")
            + _trials(summary, summary["matrix"], "held_out_tasks"),
        ),
        *_greedy_held_out(summary, greedy),
        ("forgetting (NBT)", _value(summary, "nbt", "+.1f")),
        (
            "episodes",
            f"{episodes['collected']} collected: {episodes['trained']} trained, "
            f"{episodes['filtered']} filtered, {episodes['eval']} evaluation, "
            f"{episodes['surplus']} surplus, {episodes['aborted']} aborted; "
            f"{episodes['lost']} lost, {episodes['duplicated']} duplicated",
        ),
        (
            "adapter swaps",
            f"{swaps['count']}, inference held {_milliseconds(swaps['hold_p50_s'])} (median), "
            f"{_milliseconds(swaps['hold_max_s'])} (longest); "
            f"{swaps['dropped_requests']} requests dropped",
        ),
        ("time", f"{summary['wall_s'] / 60:.1f} min"),
    )
    for name, text in rows:
        table.add_row(Text(name, "dim"), Text(text))
    return table


def _greedy_held_out(summary: dict[str, Any], greedy: dict[str, Any]) -> list[tuple[str, str]]:
    """A row where it was measured: by runs that train nothing."""
    if greedy.get("base_zero_shot") is None:
        return []
    told = _change(greedy, "base_zero_shot", "final_zero_shot")
    return [("  greedy (T = 0)", told + _trials(summary, greedy["matrix"], "held_out_tasks"))]


def _change(values: dict[str, Any], before: str, after: str, gain: str = "") -> str:
    """`40.0 ± 2.1% -> 61.3 ± 2.0%  (+21.3 ± 2.9)`; the base alone where nothing was trained."""
    if values[before] is None:
        return "not measured"
    if values[after] is None:
        return f"{_value(values, before)}%"
    text = f"{_value(values, before)}% → {_value(values, after)}%"
    return text + (f"  ({_value(values, gain, '+.1f')} points)" if gain else "")


def _trials(summary: dict[str, Any], matrix: dict[str, Any], group: str) -> str:
    """`  n = 300`: episodes behind each of the two averages; both where they differ."""
    columns = [summary["tasks"].index(task) for task in summary[group]]
    rows = (matrix["trials"][0], matrix["trials"][-1])
    counts = [sum(row[column] for column in columns) for row in rows]
    different = dict.fromkeys(str(count) for count in counts if count)
    return f"  n = {' → '.join(different)}" if different else ""


def _value(values: dict[str, Any], name: str, form: str = ".1f") -> str:
    """In points of percent, with its standard error."""
    if values[name] is None:
        return "not measured"
    return f"{100 * values[name]:{form}} ± {100 * values[f'{name}_se']:.1f}"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.1f} ms"

"""The live view of a run in a terminal, and plain lines where there is none."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.local.progress import Progress, TaskView
from deploy.local.statistics import Rate

BARS = "▁▂▃▄▅▆▇█"
REFRESHES_PER_S = 4
SPARK_UPDATES = 12  # the newest updates that a task's curve shows


class LiveView:
    """Draws a run's progress until it is closed; a context manager."""

    def __init__(self, console: Console, title: str, under: str, progress: Progress) -> None:
        """under: what the success rates are measured under."""
        self._console = console
        self._title = title
        self._under = under
        self._progress = progress
        self._started_s = time.monotonic()
        self._printed = ""
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> LiveView:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._console.print(f"Success rates: {self._under}", highlight=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def refresh(self, processes: str) -> None:
        """Draws the present state; `processes` says how the children are."""
        if self._console.is_terminal:
            self._live.update(self._draw(processes), refresh=True)
        elif (line := self._plain_line()) != self._printed:
            self._printed = line
            self._console.print(f"{_clock(self._elapsed_s)}  {line}", highlight=False)

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _plain_line(self) -> str:
        """Changes once an update or evaluation, so that a log file stays short."""
        progress = self._progress
        stage = progress.stage().partition(":")[0]
        rates = [f"{slug} {_percent(_current(view))}" for slug, view in progress.tasks.items()]
        return f"{stage}  [{progress.version}]" + (
            "  " + ", ".join(rates) if stage.startswith("Training") else ""
        )

    def _draw(self, processes: str) -> RenderableType:
        progress = self._progress
        left_s = progress.left_s()
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        head.add_row(
            Text.assemble(("Perennial", "bold green"), "  ", self._title),
            Text(
                f"{_clock(self._elapsed_s)} elapsed"
                + (f", about {_clock(left_s)} left" if left_s is not None else ""),
                "dim",
            ),
        )
        bar = Table.grid(expand=True)  # a bare bar does not end its line
        bar.add_row(ProgressBar(total=1.0, completed=progress.share_done(), complete_style="green"))
        counts = progress.episodes
        foot = Text.assemble(
            ("serving ", "dim"),
            (progress.version, "cyan"),
            (f"   {counts['train']} training and {counts['eval']} evaluation episodes", "dim"),
            (f", {progress.aborted} aborted" if progress.aborted else "", "yellow"),
            (f"\n{processes}   Ctrl-C stops; the same command goes on from there", "dim"),
        )
        stage = Text(progress.stage(), "bold")
        body = Group(head, bar, stage, Text(""), self._table(), Text(""), foot)
        return Padding(body, (1, 2))

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        table.add_column("task")
        for heading in ("before", "in training", "after", "change"):
            table.add_column(heading, justify="right")
        table.add_column("per update")
        table.title, table.title_justify = f"success: {self._under}", "left"
        table.title_style = "dim"
        for slug, view in self._progress.tasks.items():
            table.add_row(*_task_cells(slug, view, slug in self._progress.plan.held_out_tasks))
        return table


def _task_cells(slug: str, view: TaskView, is_held_out: bool) -> list[Text]:
    base, latest = view.eval_rates.get(0), view.latest
    change = Text("")
    if base and latest and latest[1].trials >= base.trials // 2:
        points = 100 * (latest[1].value - base.value)
        change = Text(f"{points:+.0f}", "green" if points > 0 else "red")
    recent = Rate(sum(view.recent), len(view.recent)) if view.recent else None
    return [
        Text.assemble(slug, ("  held out", "dim")) if is_held_out else Text(slug),
        Text(_percent(base)),
        Text(_percent(recent), "bold"),
        Text(_percent(latest[1]) if latest else ""),
        change,
        Text(_spark(view), "cyan"),
    ]


def _spark(view: TaskView) -> str:
    newest = sorted(view.update_rates)[-SPARK_UPDATES:]
    top = len(BARS) - 1
    return "".join(BARS[round(view.update_rates[update].value * top)] for update in newest)


def _current(view: TaskView) -> Rate | None:
    if view.recent:
        return Rate(sum(view.recent), len(view.recent))
    return view.latest[1] if view.latest else view.eval_rates.get(0)


def _percent(rate: Rate | None) -> str:
    """`48% n=64`; an evaluation that is still under way shows by its n how far it is."""
    return f"{100 * rate.value:.0f}% n={rate.trials}" if rate and rate.trials else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"

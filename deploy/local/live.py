"""How a run shows its progress: drawn on a terminal, in single lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agent.process.terminal import LINE_CHARS, PLAIN_PERIOD_S, clock, fit
from deploy.local.progress import Progress, TaskView, percent
from deploy.local.statistics import Rate

BARS = "▁▂▃▄▅▆▇█"
REFRESHES_PER_S = 4
TROUBLE_CHARS = 400  # when it is new: a cut reason would be none
SPARK_UPDATES = 12  # the newest updates that a task's curve shows


class View(Protocol):
    """Shows a run's progress until it is closed; a context manager."""

    def __enter__(self) -> View: ...

    def __exit__(self, *_: object) -> None: ...

    def refresh(self, processes: str, trouble: str = "") -> None:
        """Shows the present state.

        processes: how the children are. trouble: why one of them is started again, if one is.
        """


def new_view(console: Console, title: str, under: str, progress: Progress) -> View:
    """The view that fits the console. under: what the success rates are measured under."""
    if console.is_terminal:
        return LiveView(console, title, under, progress)
    return PlainView(console, title, under, progress)


class PlainView:
    """A line for every update, measured row, swap and trouble; else one every 30 s at most."""

    def __init__(
        self,
        console: Console,
        title: str,
        under: str,
        progress: Progress,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._progress, self._now_s = console, progress, now_s
        self._head = (title, f"success rates: {under}")
        self._began_s = self._told_s = now_s()
        self._trouble = ""

    def __enter__(self) -> PlainView:
        for line in self._head:
            self._say(line)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def refresh(self, processes: str, trouble: str = "") -> None:
        """Prints what is new."""
        for line in self._progress.take_milestones():
            self._tell(line)
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                self._tell(trouble, TROUBLE_CHARS)
        if self._now_s() - self._told_s >= PLAIN_PERIOD_S:
            self._tell(trouble or self._progress.stage())

    def _tell(self, line: str, chars: int = LINE_CHARS) -> None:
        self._told_s = self._now_s()
        self._say(fit(f"{clock(self._told_s - self._began_s):>6}  {line}", chars))

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)


class LiveView:
    """Draws a run's progress until it is closed; a context manager."""

    def __init__(self, console: Console, title: str, under: str, progress: Progress) -> None:
        """under: what the success rates are measured under."""
        self._console = console
        self._title = title
        self._under = under
        self._progress = progress
        self._started_s = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def refresh(self, processes: str, trouble: str = "") -> None:
        """Draws the present state."""
        self._live.update(self._draw(processes, trouble), refresh=True)

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _draw(self, processes: str, trouble: str) -> RenderableType:
        progress = self._progress
        left_s = progress.left_s()
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        head.add_row(
            Text.assemble(("Perennial", "bold green"), "  ", self._title),
            Text(
                f"{clock(self._elapsed_s)} elapsed"
                + (f", about {clock(left_s)} left" if left_s is not None else ""),
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
        if trouble:
            stage = Text(trouble, "bold yellow")
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
        Text(percent(base)),
        Text(percent(recent), "bold"),
        Text(percent(latest[1]) if latest else ""),
        change,
        Text(_spark(view), "cyan"),
    ]


def _spark(view: TaskView) -> str:
    newest = sorted(view.update_rates)[-SPARK_UPDATES:]
    top = len(BARS) - 1
    return "".join(BARS[round(view.update_rates[update].value * top)] for update in newest)

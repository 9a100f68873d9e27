"""`perennial report RUN`: summary.json, plots, and the summary as a table; or a recount."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.durable import StorageError, replace_file
from agent.process import BAD_INPUT, run_command
from agent.process.paths import user_path
from agent.process.shown import complain

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.local.checker import Recount
    from deploy.local.records import Records


DIFFERENT = 1


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 all agrees, 1 a recount differs, 2 bad input."""
    parser = argparse.ArgumentParser(prog="perennial report", description=__doc__)
    parser.add_argument("run_dir", type=user_path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--recount",
        action="store_true",
        help="derive every figure again from ledgers and client logs, and compare",
    )
    arguments = parser.parse_args(argv)

    from agent.process.terminal import new_console
    from deploy.local.checker import recount
    from deploy.local.ledgers import RecordError
    from deploy.local.records import read_records

    console = new_console()
    try:
        records = read_records(arguments.run_dir.resolve())
        for line in records.damaged:
            complain("perennial report", line)
        recounted = recount(records)
        if arguments.recount:
            return _recount(console, records, recounted)
        return _report(console, records, recounted)
    except (RecordError, OSError, StorageError) as error:
        complain("perennial report", error)
        return BAD_INPUT


def _report(console: Console, records: Records, recounted: Recount) -> int:
    from deploy.local.summary import build_summary
    from deploy.local.table import draw_summary

    summary = build_summary(records, recounted)
    path = records.run_dir / "summary.json"
    replace_file(path, (json.dumps(summary, indent=1) + "\n").encode())
    console.print(draw_summary(summary))
    _print_problems(console, recounted.problems)
    plots = _plot(console, records, summary)
    console.print(f"\nSummary  {path}", highlight=False, markup=False)
    for plot in plots:
        console.print(f"Plot     {plot}", highlight=False, markup=False)
    return DIFFERENT if recounted.problems else 0


def _plot(console: Console, records: Records, summary: dict[str, Any]) -> list[Path]:
    from agent.process.optional import PackageError, needing

    try:
        with needing("report"):
            from deploy.local.plots import draw_plots
    except PackageError as error:
        console.print(f"No plots: {error}", markup=False, highlight=False)
        return []
    return draw_plots(records, summary)


def _recount(console: Console, records: Records, recounted: Recount) -> int:
    from agent.process.json_files import DamagedFile, read_json
    from deploy.local.ledgers import RecordError
    from deploy.local.shapes import COMPARED
    from deploy.local.summary import compare

    path = records.run_dir / "summary.json"
    again = f"make it again with perennial report {shlex.quote(str(records.run_dir))}"
    try:
        summary = read_json(path, COMPARED, again)
    except DamagedFile as error:
        raise RecordError(str(error)) from error
    problems = recounted.problems + compare(summary, records, recounted)
    _print_problems(console, problems)
    if problems:
        return DIFFERENT
    note = f", {len(recounted.unseen)} of them unseen by their client" if recounted.unseen else ""
    if records.set_aside:
        note += f", {len(records.set_aside)} more of episodes set aside and run again"
    console.print(
        f"Recounted {len(records.ends)} logged episode ends{note} and {len(records.agent_rows)} "
        "ledger rows: every figure agrees."
    )
    return 0


def _print_problems(console: Console, problems: list[str]) -> None:
    from rich.text import Text

    for problem in problems:
        console.print(Text.assemble(("differs", "red"), f"  {problem}"), highlight=False)


if __name__ == "__main__":
    run_command(main)

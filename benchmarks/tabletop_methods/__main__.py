"""`python -m benchmarks.tabletop_methods run|report|choice`: every method on the tabletop suite."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.process.shown import complain
from benchmarks.tabletop_methods.cells import PARTS, RESULTS, RUNS, declare
from deploy.local.processes import PACKAGE_ROOT

if TYPE_CHECKING:
    from rich.console import Console

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 a cell failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="tabletop_methods", description=__doc__)
    parser.add_argument("what", choices=("run", "report", "choice"))
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all of them")
    parser.add_argument("--estimate", action="store_true", help="say what it costs, run nothing")
    arguments = parser.parse_args(argv)
    if unknown := sorted(set(arguments.parts) - set(PARTS)):
        parser.error(f"unknown part '{unknown[0]}'; there are: {', '.join(PARTS)}")

    from agent.process.json_files import DamagedFile
    from agent.process.terminal import new_console
    from deploy.bench.results import ResultError
    from deploy.local.placement import BadSetting

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.chdir(PACKAGE_ROOT)  # demonstrations and models are named from there
    console = new_console()
    try:
        if arguments.what == "run":
            parts = arguments.parts or PARTS
            failed = [run_part(part, console, is_estimate=arguments.estimate) for part in parts]
            return FAILED if any(failed) else 0
        if arguments.what == "choice":
            from benchmarks.tabletop_methods.choice import show_choice

            return 0 if show_choice(console) else FAILED
        from benchmarks.tabletop_methods.report import write_report

        for path in write_report():
            console.print(f"Report   {path}", highlight=False)
        return 0
    except (BadSetting, ResultError, DamagedFile, OSError) as error:
        complain("tabletop_methods", error)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED


def run_part(part: str, console: Console, *, is_estimate: bool) -> Sequence[str]:
    """Runs what has no result yet; returns the names of the cells that failed."""
    from deploy.bench.runner import run_missing

    console.print(f"[bold]{part}[/bold]")
    return run_missing(declare(part), RUNS, RESULTS, console, lambda: None, is_estimate=is_estimate)


if __name__ == "__main__":
    sys.exit(main())

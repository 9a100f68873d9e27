"""`perennial bench`: the same tasks learned by several methods, and one report on all of them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from agent.process import BAD_INPUT, FAILED, Ended, StopFlag, stoppable
from agent.process.shown import complain

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.bench.grid import Grid

INTERRUPTED = 130
_EPILOG = """\
settings:
  method=sequential,ewc,ppo:1   of configs/method; :N gives one its own number of seeds
  seeds=3                       runs of each method, with seed 0, 1, 2
  out=runs/bench-SUITE          report.md, its pictures, and results/: a small file a finished run
  runs=OUT/runs                 the runs themselves; may be deleted once there are results
Everything else is a setting of `perennial run` for all of them: suite=tabletop, model=...,
budget=bench (configs/budget/bench.yaml), learner.evaluation.slots_per_state=4

The same command again goes on from wherever it was stopped, and runs only what has no result.
"""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 a cell failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="perennial bench",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings, see below")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--estimate", action="store_true", help="say what it costs, run nothing")
    only.add_argument("--report", action="store_true", help="report what there is, run nothing")
    arguments = parser.parse_intermixed_args(argv)

    from agent.durable import StorageError
    from agent.process.terminal import new_console
    from deploy.bench.grid import parse_grid
    from deploy.bench.report import refuse_foreign
    from deploy.bench.results import ResultError
    from deploy.local.placement import BadSetting

    console = new_console()
    try:
        grid = parse_grid(arguments.words)
        refuse_foreign(grid)
        if arguments.report:
            return _report(grid, console)
        with StopFlag().unwinding():
            return _run(grid, console, is_estimate=arguments.estimate)
    except (BadSetting, ResultError, OSError, StorageError) as error:
        complain("perennial bench", error)
        return BAD_INPUT
    except Ended:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED


def _run(grid: Grid, console: Console, *, is_estimate: bool) -> int:
    from deploy.bench.report import write_report
    from deploy.bench.runner import run_missing

    failed = run_missing(
        grid.cells,
        grid.runs,
        grid.results,
        console,
        lambda: write_report(grid),
        is_estimate=is_estimate,
    )
    if not is_estimate:
        _report(grid, console)
    return FAILED if failed else 0


def _report(grid: Grid, console: Console) -> int:
    from deploy.bench.report import write_report

    for path in write_report(grid):
        console.print(f"Report   {path}", highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    with stoppable("perennial bench", INTERRUPTED):
        sys.exit(main())

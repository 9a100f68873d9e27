"""`python -m benchmarks.tabletop_grpo run | report`: the tabletop report and the runs behind it."""

from __future__ import annotations

import argparse
import signal
import sys

from agent.process.json_files import DamagedFile
from agent.process.shown import complain
from benchmarks.tabletop_grpo.cells import REPORTS, RESULTS, RUNS, declare_cells, tabletop_tasks
from deploy.bench.results import ResultError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 a cell failed, 2 bad input, 130 interrupted."""
    cells = declare_cells(*tabletop_tasks())
    names = [cell.name for cell in cells]
    parser = argparse.ArgumentParser(prog="benchmarks.tabletop_grpo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the cells that have no result yet (hours)")
    run.add_argument("--only", nargs="+", metavar="NAME", help=f"of: {', '.join(names)}")
    commands.add_parser("report", help="write the report from the results that exist")
    arguments = parser.parse_args(argv)
    if arguments.command == "report":
        return _report()
    unknown = sorted(set(arguments.only or []) - set(names))
    if unknown:
        parser.error(f"there is no cell {unknown[0]}; there are: {', '.join(names)}")
    chosen = [cell for cell in cells if arguments.only is None or cell.name in arguments.only]

    from agent.process.terminal import new_console
    from benchmarks.tabletop_grpo.runner import run_cells
    from deploy.local.ledgers import RecordError
    from deploy.local.processes import ProcessFailed
    from deploy.local.settings import BadSetting

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_cells(chosen, RUNS, RESULTS, new_console())
    except (ResultError, DamagedFile, BadSetting, RecordError) as error:
        complain("tabletop_grpo", error)
        return BAD_INPUT
    except ProcessFailed as error:
        complain("tabletop_grpo", error)
        return FAILED
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _report() -> int:
    from benchmarks.tabletop_grpo.report import write_report

    try:
        paths = write_report(*tabletop_tasks(), RESULTS, REPORTS)
    except (ResultError, OSError) as error:
        complain("tabletop_grpo", error)
        return BAD_INPUT
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

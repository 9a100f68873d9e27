"""Model latency on this machine.

python -m benchmarks.model_latency --device cuda --size 7b --out FILE.json

Builds the model with random weights on the device and measures it cell by cell, the most important
first; FILE.json and FILE.md are complete after every cell, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

from agent.process.shown import complain

SIZES = ("7b", "nano")  # as in `build`, which takes seconds to import
REPORT = Path(__file__).parents[1] / "reports" / "model-latency.json"
BAD_INPUT, INTERRUPTED = 2, 130


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 done or out of time, 2 bad input, 130 interrupted."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.out.suffix != ".json":
        parser.error(f"--out must end in .json, got {arguments.out}; the report goes beside it")

    import torch
    import transformers

    from agent.process.terminal import new_console
    from benchmarks.model_latency.build import Machine
    from benchmarks.model_latency.cells import declare_cells
    from benchmarks.model_latency.report import render
    from benchmarks.model_latency.results import Results, ResultsError
    from benchmarks.model_latency.sweep import run_cells
    from benchmarks.model_latency.timing import PATIENT, QUICK

    machine = Machine(torch.device(arguments.device), arguments.size)
    if machine.is_cuda and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: torch finds no CUDA device; try --device cpu")
    setting = {
        "device": machine.name,
        "size": arguments.size,
        "quick": arguments.quick,
        "dtype": str(machine.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "Python": platform.python_version(),
        "CPU cores": os.cpu_count(),
    }
    cells = declare_cells(arguments.quick)
    patience = QUICK if arguments.quick else PATIENT
    report = arguments.out.with_suffix(".md")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        results = Results(arguments.out, setting)

        def write() -> None:
            report.write_text(render(results, cells), encoding="utf-8")

        limit_s = arguments.time_limit_s
        done = run_cells(cells, machine, patience, results, new_console(), limit_s, write)
        write()
    except ResultsError as error:
        complain("model_latency", error)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    print(report if done else f"{report} (out of time; the same command goes on from here)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.model_latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="a torch device (default: cuda)")
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--out", type=Path, default=REPORT, metavar="FILE.json")
    parser.add_argument("--quick", action="store_true", help="few cells, few repeats")
    parser.add_argument(
        "--time-limit-s", type=float, default=float("inf"), help="begin no cell after this long"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

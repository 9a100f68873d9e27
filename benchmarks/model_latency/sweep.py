"""Measures the missing cells one after another."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch._dynamo.exc import TorchDynamoException

from agent.model.gpus import Gpu
from agent.process.shown import printable
from benchmarks.model_latency.adapters import measure_merge, measure_swap
from benchmarks.model_latency.build import Machine
from benchmarks.model_latency.cells import Cell
from benchmarks.model_latency.forwards import (
    Unavailable,
    measure_device,
    measure_forward,
    measure_generate,
)
from benchmarks.model_latency.results import FAILED, OK, OUT_OF_MEMORY, UNAVAILABLE, Record, Results
from benchmarks.model_latency.timing import Patience
from benchmarks.model_latency.training import measure_training


def run_cells(
    cells: list[Cell],
    machine: Machine,
    patience: Patience,
    results: Results,
    console: Console,
    limit_s: float,
    after_each: Callable[[], None],
) -> bool:
    """Measures every cell that is not settled; False if `limit_s` was over before the end.

    A cell that runs out of memory or fails is recorded as such, and the sweep goes on. No cell is
    begun after `limit_s`; one that has begun is finished.
    """
    start_s = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
    is_plain = not console.is_terminal
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=is_plain
    ) as bars:
        bar = bars.add_task("", total=len(cells))
        for cell in cells:
            if not results.is_settled(cell.name):
                if time.monotonic() - start_s > limit_s:
                    return False
                bars.update(bar, description=cell.name)
                record = measure_cell(cell, machine, patience, results)
                results.add(cell.name, record)
                console.print(f"{cell.name:<44} {_describe(record)}", highlight=False)
                after_each()
            bars.advance(bar)
    return True


def measure_cell(cell: Cell, machine: Machine, patience: Patience, results: Results) -> Record:
    """One cell; whatever becomes of it is in the record, and its memory is given back."""
    if machine.is_cuda:
        torch.cuda.reset_peak_memory_stats(machine.device)
    try:
        values = _measure(cell, machine, patience, results)
        if machine.is_cuda:
            values["memory_bytes"] = torch.cuda.max_memory_allocated(machine.device)
        record = Record(OK, values=values)
    except torch.OutOfMemoryError as error:
        record = Record(OUT_OF_MEMORY, printable(str(error).splitlines()[0]))
    except Unavailable as error:
        record = Record(UNAVAILABLE, printable(error))
    except (RuntimeError, TorchDynamoException) as error:
        # What a kernel, a capture or a compiler says when it cannot; the next cell starts anew.
        reason = str(error).strip().splitlines() or [""]
        record = Record(FAILED, f"{type(error).__name__}: {printable(reason[0])}")
    if "compile" in cell.mode:
        torch.compiler.reset()
    gc.collect()
    if machine.is_cuda:
        torch.cuda.empty_cache()
    return record


def _measure(
    cell: Cell, machine: Machine, patience: Patience, results: Results
) -> dict[str, float]:
    if cell.kind == "device":
        return measure_device(machine, patience)
    if cell.kind == "swap":
        return measure_swap(machine, patience)
    if cell.kind == "merge":
        return measure_merge(machine, patience)
    own = results.records["device"].values
    if not own:
        raise RuntimeError("the cell `device` failed, so there is no peak to compare with")
    peak = Gpu(machine.name, own["flops_per_s"], own["bytes_per_s"], 0.0)
    if cell.kind == "train":
        return measure_training(cell, machine, patience, peak)
    measure = measure_generate if cell.kind == "generate" else measure_forward
    return measure(cell, machine, patience, peak)


def _describe(record: Record) -> str:
    """`9.84 ms`, or what happened instead."""
    if record.status != OK:
        return f"{record.status}: {record.reason:.80}"
    for name in ("seconds_s", "publish_to_served_s", "merge_s"):
        if name in record.values:
            return f"{1e3 * record.values[name]:.2f} ms"
    return f"{record.values['flops_per_s'] / 1e12:.2f} TFLOP/s"

"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.model_latency.build import RANK, SLOTS
from benchmarks.model_latency.cells import Cell
from benchmarks.model_latency.results import OK, Record, Results

Columns = Callable[[dict[str, float]], list[str]]
NOT_MEASURED = "not measured"
SWAP_STEPS = {
    "publish_s": "publish to the store, durable",
    "verify_s": "verify its hashes",
    "read_s": "read and check the folder",
    "prepare_s": "fit to the bank, copy to the device",
    "install_s": "copy into a free slot (the pause)",
    "first_answer_s": "the first chunk from it",
    "publish_to_served_s": "all of it",
}


def render(results: Results, cells: Sequence[Cell]) -> str:
    """The report of `cells`; one that has no record says so."""
    lines = [
        f"# Model latency: {results.setting['device']}",
        "",
        f"`python -m benchmarks.model_latency --size {results.setting['size']}`, random weights, "
        f"medians. {_listing(results)}.",
        "",
        *_device(results),
        "`floor` is the larger of FLOPs over the measured matrix-product peak and bytes over the",
        "measured copy speed; `of peak` is FLOPs over time as a share of that matrix-product peak.",
        "FLOPs are counted from the config (docs/performance.md). `tokens/s` counts all positions",
        f"of the sequence. `slots`: a bank of {SLOTS - 1} adapters of rank {RANK} and the base, "
        "neighbouring",
        "rows on different adapters. `first call` includes capturing or compiling.",
        "",
        "## Chunks of the parallel variant, tokens of the causal one",
        "",
    ]
    rates = ("tokens/s", "of peak", "GB", "first call s")
    head = ["cell", "ms", "floor ms", "chunks/s", "actions/s", *rates]
    lines += _table(head, (
        _row(cell, results, _forward_columns)
        for cell in cells
        if cell.kind in ("forward", "generate")
    ))  # fmt: skip
    lines += ["## Adapters", "", *_swap(results), "## One LoRA training step", ""]
    head = ["cell", "ms", "floor ms", "samples/s", *rates]
    training = [cell for cell in cells if cell.kind == "train"]
    lines += _table(head, (_row(cell, results, _training_columns) for cell in training))
    return "\n".join(lines).rstrip() + "\n"


def _listing(results: Results) -> str:
    rest = {k: v for k, v in results.setting.items() if k not in ("device", "size")}
    return ", ".join(f"{name} {value}" for name, value in rest.items())


def _device(results: Results) -> list[str]:
    record = results.records.get("device")
    if record is None or record.status != OK:
        return ["The device's own peaks are not measured.", ""]
    peak, copy = record.values["flops_per_s"], record.values["bytes_per_s"]
    return [
        f"The device's own peaks: {peak / 1e12:.3g} TFLOP/s in a large matrix product, "
        f"{copy / 1e9:.4g} GB/s in a large copy.",
        "",
    ]


def _row(cell: Cell, results: Results, columns: Columns) -> list[str]:
    record = results.records.get(cell.name)
    if record is None or record.status != OK:
        return [f"`{cell.name}`", _why(record)]
    return [f"`{cell.name}`", *columns(record.values)]


def _why(record: Record | None) -> str:
    if record is None:
        return NOT_MEASURED
    return f"{record.status}: {record.reason}".replace("|", "/").rstrip(": ")


def _forward_columns(values: dict[str, float]) -> list[str]:
    return [
        *_milliseconds(values, "seconds_s", "floor_s"),
        f"{values['chunks_per_s']:.1f}",
        f"{values['actions_per_s']:.0f}",
        f"{values['tokens_per_s']:.0f}",
        *_tail(values),
    ]


def _training_columns(values: dict[str, float]) -> list[str]:
    return [
        *_milliseconds(values, "seconds_s", "floor_s"),
        f"{values['samples_per_s']:.2f}",
        f"{values['tokens_per_s']:.0f}",
        *_tail(values),
    ]


def _tail(values: dict[str, float]) -> list[str]:
    memory = values.get("memory_bytes")
    return [
        f"{values['peak_share']:.0%}",
        "–" if memory is None else f"{memory / 1e9:.1f}",
        f"{values['first_s']:.1f}",
    ]


def _milliseconds(values: dict[str, float], *names: str) -> list[str]:
    return [f"{1e3 * values[name]:.2f}" for name in names]


def _swap(results: Results) -> list[str]:
    swap, merge = results.records.get("swap"), results.records.get("merge")
    lines = []
    if swap is None or swap.status != OK:
        lines += [f"`swap`: {_why(swap)}.", ""]
    else:
        size = swap.values["slot_bytes"] / 1e6
        lines += [f"From a trained adapter to its first answer; a slot holds {size:.1f} MB.", ""]
        rows = ([text, *_milliseconds(swap.values, name)] for name, text in SWAP_STEPS.items())
        lines += _table(("step", "ms"), rows)
    if merge is None or merge.status != OK:
        return [*lines, f"`merge`: {_why(merge)}.", ""]
    merge_ms, forward_ms = _milliseconds(merge.values, "merge_s", "forward_s")
    text = (
        f"Merging one adapter: {merge_ms} ms; a chunk from the merged copy, eager: {forward_ms} ms."
    )
    return [*lines, text, ""]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right; short rows are filled up."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    lines += [[*row, *[""] * (len(head) - len(row))] for row in rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]

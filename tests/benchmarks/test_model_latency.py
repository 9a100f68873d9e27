"""The model benchmark itself, at nano size on a CPU: it must run wherever there is no GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from agent.model.cost import train_flops
from agent.model.layers import list_attention
from agent.model.lora import attach_lora
from agent.model.recompute import recompute_blocks
from benchmarks.model_latency import sweep
from benchmarks.model_latency.__main__ import BAD_INPUT, main
from benchmarks.model_latency.build import (
    RANK,
    Machine,
    build_config,
    build_inputs,
    build_model,
)
from benchmarks.model_latency.cells import BATCHES, IMAGES, MODES, Cell, declare_cells
from benchmarks.model_latency.report import render
from benchmarks.model_latency.results import (
    FAILED,
    OK,
    OUT_OF_MEMORY,
    UNAVAILABLE,
    Record,
    Results,
    ResultsError,
)
from benchmarks.model_latency.timing import QUICK

MACHINE = Machine(torch.device("cpu"), "nano")
SETTING = {"device": "cpu", "size": "nano"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a quick sweep."""
    path = tmp_path_factory.mktemp("latency") / "nano.json"
    assert main(["--device", "cpu", "--size", "nano", "--quick", "--out", str(path)]) == 0
    return path


def run_sweep(results: Results, cells: list[Cell], limit_s: float = 60.0) -> bool:
    console = Console(quiet=True)
    return sweep.run_cells(cells, MACHINE, QUICK, results, console, limit_s, lambda: None)


@pytest.mark.slow
def test_every_quick_cell_runs_on_a_cpu_except_cuda_graphs(out: Path) -> None:
    records = json.loads(out.read_text())["cells"]
    assert list(records) == [cell.name for cell in declare_cells(quick=True)]
    for name, record in records.items():
        wanted = UNAVAILABLE if "graph" in name else OK
        assert record["status"] == wanted, f"{name}: {record['reason']}"
        assert all(value > 0 for value in record["values"].values()), name


@pytest.mark.slow
def test_rates_are_those_of_the_time(out: Path) -> None:
    values = json.loads(out.read_text())["cells"]["forward-eager-b8-1im"]["values"]
    assert values["chunks_per_s"] * values["seconds_s"] == pytest.approx(8)
    assert values["actions_per_s"] == pytest.approx(5 * values["chunks_per_s"])


@pytest.mark.slow
def test_the_report_has_a_row_for_every_cell_and_the_swap_adds_up(out: Path) -> None:
    report = out.with_suffix(".md").read_text()
    for cell in declare_cells(quick=True):
        if cell.kind in ("forward", "generate", "train"):
            assert f"| `{cell.name}` |" in report
    assert "not available: CUDA graphs need a CUDA device" in report
    assert "(the pause)" in report


@pytest.mark.slow
def test_the_same_command_measures_nothing_twice(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = out.read_text()
    monkeypatch.setattr(sweep, "measure_cell", lambda *_: pytest.fail("measured again"))
    assert main(["--device", "cpu", "--size", "nano", "--quick", "--out", str(out)]) == 0
    assert out.read_text() == before


@pytest.mark.slow
def test_results_of_other_settings_are_not_continued(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--device", "cpu", "--size", "nano", "--out", str(out)]) == BAD_INPUT
    assert "choose another --out" in capsys.readouterr().err


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("[1]")
    with pytest.raises(ResultsError, match="no results file"):
        Results(path, SETTING)


@pytest.mark.slow
def test_a_cell_that_runs_out_of_memory_or_fails_does_not_end_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(cell: Cell, *_: Any) -> dict[str, float]:
        if cell.batch == 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
        if cell.batch == 16:
            raise RuntimeError("a kernel | failed")
        return {"flops_per_s": 1.0}

    monkeypatch.setattr(sweep, "_measure", measure)
    cells = [Cell("forward", batch=batch) for batch in (16, 32, 1)]
    results = Results(tmp_path / "r.json", SETTING)
    assert run_sweep(results, cells)
    statuses = [results.records[cell.name].status for cell in cells]
    assert statuses == [FAILED, OUT_OF_MEMORY, OK]
    report = render(Results(tmp_path / "r.json", SETTING), cells[:2])
    assert "out of memory: CUDA out of memory. Tried to allocate 2 GiB. |" in report
    assert "failed: RuntimeError: a kernel / failed" in report
    # What failed is tried again, what ran out of memory is known.
    again = Results(tmp_path / "r.json", SETTING)
    assert [again.is_settled(cell.name) for cell in cells] == [False, True, True]


def test_no_cell_is_begun_after_the_time_limit(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.json", SETTING)
    cells = [Cell("device"), Cell("forward")]
    assert not run_sweep(results, cells, limit_s=-1.0)
    assert "not measured" in render(results, cells)


def test_a_cell_without_the_devices_own_peak_says_why(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.json", SETTING)
    results.add("device", Record(FAILED, "broken"))
    record = sweep.measure_cell(Cell("train"), MACHINE, QUICK, results)
    assert (record.status, "no peak" in record.reason) == (FAILED, True)


def test_checkpointed_training_has_the_flops_that_torch_counts() -> None:
    config = build_config("nano", variant="oft-discrete")
    model = build_model(config, MACHINE)
    attach_lora(model, RANK, alpha=RANK).train()
    recompute_blocks(model)
    ids, pixels = build_inputs(config, 1, MACHINE)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids, pixels).logits_BKAV.sum().backward()
    length = ids.shape[1]
    # Plain kernels keep QK^T: 4 products backward instead of 5.
    kept = sum(a.flops for a in list_attention(config, length)) // 2
    computed = train_flops(config, length, RANK, checkpointing=True) - kept
    # Recomputing ends with the last tensor that is needed, short of each block's last product.
    assert 0.98 * computed < counter.get_total_flops() <= computed


def test_the_full_sweep_has_every_combination_once_and_the_quick_one_is_part_of_it() -> None:
    cells = declare_cells(quick=False)
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    assert names[0] == "device"
    for mode in MODES:
        for batch in BATCHES:
            for images in IMAGES:
                for bank in (False, True):
                    assert Cell("forward", batch, images, mode, bank) in cells
    assert set(declare_cells(quick=True)) < set(cells)

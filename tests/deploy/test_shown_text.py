"""Names and reasons from other machines cannot act on a terminal, a page or a picture."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from deploy.bench.tables import table
from deploy.local.plots import plt
from deploy.local.table import _matrix
from deploy.local.tail import JsonTail

ESCAPES = "\x1b[2Jwell\n[red]| $x_1$\u202e"


def test_lines_of_other_processes_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "client.jsonl"
    path.write_text(json.dumps({"reason": ESCAPES, "more": [{ESCAPES: ESCAPES}], "n": 1.5}) + "\n")
    (line,) = JsonTail(path).read()
    assert line["n"] == 1.5
    ((key, value),) = line["more"][0].items()
    assert all(text.isprintable() for text in (line["reason"], key, value))


def test_a_task_is_no_markup_in_a_summary() -> None:
    summary = {
        "tasks": [ESCAPES],
        "train_tasks": [ESCAPES],
        "held_out_tasks": [],
        "matrix": {"successes": [[1], [2]], "trials": [[4], [4]]},
    }
    out = io.StringIO()
    Console(file=out, width=200, force_terminal=True).print(_matrix(summary))
    assert "[red]" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
    assert "\u202e" not in out.getvalue()


def test_a_name_cannot_end_its_cell() -> None:
    lines = table(["method", "n"], [[ESCAPES, "1"]])
    assert len(lines) == 4
    assert lines[2].count("|") - lines[2].count("\\|") == 3
    assert all(line.isprintable() for line in lines)


def test_a_dollar_in_a_name_is_drawn(tmp_path: Path) -> None:
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.set_title("$\\no_such_symbol{$")
    figure.savefig(tmp_path / "a.png")
    plt.close(figure)

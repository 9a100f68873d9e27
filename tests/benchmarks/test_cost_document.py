"""The committed cost document against what the code computes now."""

import pytest

from agent.model.cost import chunk_forwards, published_config
from agent.model.gpus import GPUS, bandwidth_floor_s, compute_floor_s, floor_s
from benchmarks.model_cost import DOCUMENT, PADDED_PROMPT, PROMPT, SUSTAINED, fill_tables

HBM = ("H200 SXM", "H100 SXM", "A100 SXM 80GB")


def test_the_document_is_up_to_date() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert fill_tables(text) == text, "run python -m benchmarks.model_cost"


def test_a_document_with_other_tables_is_refused() -> None:
    with pytest.raises(ValueError, match="has the tables"):
        fill_tables("<!-- table parameters -->\n<!-- end -->")


def test_what_the_prose_says_follows_from_the_figures() -> None:
    discrete = published_config(variant="oft-discrete")
    (one,) = chunk_forwards(discrete, PROMPT)
    assert 0.9 < one.flops_by_part["llm"] / one.flops < 0.93
    (two,) = chunk_forwards(published_config(variant="oft-discrete", num_images=2), PROMPT)
    assert round(two.flops / one.flops, 2) == 1.77
    (padded,) = chunk_forwards(discrete, PADDED_PROMPT)
    assert round(padded.flops / one.flops, 2) == 1.25
    causal = chunk_forwards(published_config(variant="openvla"), PROMPT)
    for gpu in GPUS:
        if gpu.name in HBM:
            assert compute_floor_s([one], gpu) > bandwidth_floor_s([one], gpu)
        assert floor_s(causal[1:], gpu) == pytest.approx(bandwidth_floor_s(causal[1:], gpu))
        sustained = gpu.reaching(*SUSTAINED)
        actions_per_s = 8 / floor_s([one], sustained)
        assert actions_per_s * floor_s(causal, sustained) > 20
        assert 1 / floor_s([two], sustained) > 2 * 2.5

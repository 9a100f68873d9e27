"""The jump at a seam is that between actions that were executed, whenever their fate is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_fixtures import K, finish, observe, running, start_own

from agent.server.seams import SeamMeter
from agent.wire.messages import Executed

RUN, NOT_RUN = Executed.RUN, Executed.NOT_RUN


def chunk_of(*values: float) -> np.ndarray:
    return np.array(values)[:, None] * [3.0, 4.0]


@given(st.lists(st.integers(0, 9), max_size=20))
def test_jumps_do_not_depend_on_when_codes_are_told(cuts: list[int]) -> None:
    meter = SeamMeter()
    codes = np.array([1, 1, 0, 0, 0, 0, 0, 2, 3], np.uint8)  # a chunk between was stale
    for chunk in (chunk_of(0, 1, 2), chunk_of(7, 8, 9), chunk_of(5, 4, 3)):
        meter.sent(chunk)
    parts = np.split(codes, sorted(cuts))
    jumps = [jump for part in parts for jump in meter.told(part)]
    assert jumps == pytest.approx([5.0 * 3]), "from 1 to 4 along [3, 4]"


def test_one_chunk_has_no_seam_and_what_was_not_run_no_say() -> None:
    meter = SeamMeter()
    meter.sent(chunk_of(0, 1))
    assert meter.told(np.array([RUN, RUN], np.uint8)) == []
    meter.sent(chunk_of(5, 6))
    assert meter.told(np.array([NOT_RUN, NOT_RUN], np.uint8)) == []
    meter.sent(chunk_of(1, 9))
    assert meter.told(np.array([RUN, NOT_RUN], np.uint8)) == [0.0]


def test_the_server_exports_the_seams_of_an_episode(tmp_path) -> None:
    with running(tmp_path) as server:
        client = server.client()
        started = start_own(client)
        for step in range(3):  # the policy answers 0, then 1, then 2 in all seven dimensions
            codes = np.full(K if step else 0, RUN, np.uint8)
            client.request(observe(started.episode_id, step, executed=codes))
        client.request(finish(started.episode_id))
        count = server.sample("perennial_chunk_seam_jump_count", phase="serve")
        total = server.sample("perennial_chunk_seam_jump_sum", phase="serve")
    assert (count, total) == (2, pytest.approx(2 * 7**0.5))

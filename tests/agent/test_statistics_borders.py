"""Statistics that no data can have are refused, and numbers far outside good ones are noticed."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from server_fixtures import CountingPolicy, observe, running, start_own

from agent.model.actions import NormBounds, encode_actions, normalise_proprio
from agent.model.errors import ModelFolderError
from agent.model.policy_model import NANO_FOLDER, load_policy_model
from agent.wire.errors import WireError

LOW, HIGH = [-1.0, -2.0, 0.5], [1.0, 2.0, 1.5]
NAN, INF = float("nan"), float("inf")
BAD = {
    "NaN": ({"q01": [NAN, -2.0, 0.5]}, "low is nan in dimension 0"),
    "infinite": ({"q99": [1.0, INF, 1.5]}, "high is inf in dimension 1"),
    "beyond float32": ({"q99": [1.0, 2.0, 1e300]}, "high is 1e\\+300 in dimension 2"),
    "null": ({"q01": [None, -2.0, 0.5]}, "q01 must be a list of numbers"),
    "text": ({"q01": ["-1.0", "-2.0", "0.5"]}, "q01 must be a list of numbers"),
    "truth": ({"q01": [True, False, True]}, "q01 must be a list of numbers"),
    "a number": ({"q01": 0.0}, "q01 must be a list of numbers"),
    "one too few": ({"q01": [0.0, 0.0]}, "one length"),
    "swapped": ({"q01": HIGH, "q99": LOW}, r"swapped in dimensions \[0, 1, 2\]"),
    "one swapped": ({"q01": [-1.0, 3.0, 0.5]}, r"swapped in dimensions \[1\], 3 to 2"),
    "no width at all": ({"q01": LOW, "q99": LOW}, "never moved"),
    "a mask of numbers": ({"mask": [0.5, 1, 1]}, "mask must hold true and false"),
    "a mask of text": ({"mask": ["true", "true", "false"]}, "mask must be a list"),
}


def statistics(**changes: object) -> dict:
    return {"arm": {"action": {"q01": LOW, "q99": HIGH, **changes}}}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_statistics_that_no_data_has_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NormBounds.from_stats(statistics(**changes), "arm")


@pytest.mark.parametrize("missing", ["q01", "q99"])
def test_a_missing_bound_is_named(missing: str) -> None:
    values = statistics()
    del values["arm"]["action"][missing]
    with pytest.raises(KeyError, match="lacks"):
        NormBounds.from_stats(values, "arm")


def test_what_is_not_normalised_may_be_anything_finite() -> None:
    bounds = NormBounds.from_stats(statistics(q99=[1.0, 2.0, 0.0], mask=[True, True, False]), "arm")
    assert bounds.normalise(np.array([1.0, 2.0, 9.0]))[2] == 9.0


@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
def test_a_dimension_without_width_is_constant(epsilon: float) -> None:
    bounds = NormBounds.from_stats(statistics(q99=[1.0, -2.0, 1.5]), "arm", epsilon=epsilon)
    seen = np.array([[0.0, -2.0, 1.0], [0.0, -2.0 + 1e-7, 1.0], [0.0, 57.0, 1.0]])
    assert (bounds.normalise(seen)[:, 1] == 0.0).all()
    assert np.isfinite(normalise_proprio(seen, bounds)).all()
    assert bounds.unnormalise(np.array([0.0, 0.7, 0.0]))[1] == pytest.approx(-2.0, rel=1e-6)


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_a_folder_with_such_statistics_is_refused(
    tmp_path: Path, changes: dict, message: str
) -> None:
    folder = shutil.copytree(NANO_FOLDER, tmp_path / "model")
    file = folder / "dataset_statistics.json"
    values = json.loads(file.read_text())
    stored = values["tabletop"]["proprio"]
    for name, value in changes.items():
        longer = isinstance(value, list) and len(value) == 3
        stored[name] = [*value, *stored.get(name, [True] * 99)[3:]] if longer else value
    if "never moved" in message:
        stored["q99"] = stored["q01"]
    file.write_text(json.dumps(values))
    with pytest.raises(ModelFolderError, match=r"norm_stats of 'tabletop': proprio.*"):
        load_policy_model(str(folder), {}, ("agentview", "wrist"), "tabletop")


def test_far_outside_is_more_than_a_width_beyond() -> None:
    model = load_policy_model("", {}, ("agentview", "wrist"), "tabletop")
    assert model.proprio is not None
    low, high = model.proprio.low, model.proprio.high
    width = high - low
    assert model.stray_state(np.float32(low)) == model.stray_state(np.float32(high)) == ""
    assert model.stray_state(np.float32(high + 0.9 * width)) == ""
    far = np.float32(low)
    far[1] -= 1.1 * width[1]
    assert model.stray_state(far).startswith("proprio[1] is ")
    assert not model.strays(np.full((5, 7), 255, np.int32))
    assert not model.strays(np.full((5, 7), -9.5, np.float32))
    assert model.strays(np.full((5, 7), -10.5, np.float32))


def test_tokens_of_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        encode_actions(np.array([0.0, NAN]), 256)


class StrayPolicy(CountingPolicy):
    """States above 1 are far outside; its second chunk is, too."""

    def stray_state(self, proprio_P: np.ndarray) -> str:
        return "proprio[0] is much" if proprio_P[0] > 1 else ""

    def strays(self, choices_KA: np.ndarray) -> bool:
        return len(self.batches) == 2


def test_the_server_counts_states_far_outside_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path, StrayPolicy()) as server, server.client() as robot:
        started = start_own(robot)
        far = np.full(server.policy.proprio_dim, 57.0, np.float32)
        with caplog.at_level(logging.WARNING):
            robot.request(observe(started.episode_id, 0, proprio=far))
            with pytest.raises(WireError, match="far outside its statistics"):
                robot.request(observe(started.episode_id, 1, proprio=far))
            robot.request(observe(started.episode_id, 1))
        assert server.sample("perennial_observations_outside_total") == 2
        name = "perennial_actions_rejected_total"
        assert server.sample(name, reason="far_outside") == 1
    lines = [record.getMessage() for record in caplog.records if "bound" in record.getMessage()]
    assert len(lines) == 1
    assert "client robot" in lines[0]

"""A worker with robosuite 1.5, which LIBERO's installation excludes, against a real server."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from patience import HANG_S
from test_minimal_robot import noop_server

from agent.episode import read_episode
from agent.wire.messages import Order, Phase
from agent.wire.sockets import DealerClient
from deploy.local.settings import compose_run
from learner.link import AgentLink, Session
from learner.store import LearnerStore

ROOT = Path(__file__).parents[2]
ROBOSUITE = Path(sys.prefix) / "robosuite-1.5"  # where `make bodies` puts it
TASK, HORIZON_STEPS, EPISODES = "lift", 16, 2


@pytest.mark.slow
def test_the_suite_made_of_settings_alone_plays_its_episodes(tmp_path: Path) -> None:
    assert ROBOSUITE.is_dir(), f"{ROBOSUITE} is missing; `make bodies` installs it"
    suite = compose_run(["suite=robosuite", "model.model_dir=agent/assets/nano"]).tree["suite"]
    suite["gymnasium"]["tasks"] = {TASK: suite["gymnasium"]["tasks"][TASK]}
    settings = {"suite": "robosuite", "gymnasium": suite["gymnasium"], "envs": 1, "idle_exit_s": 5}
    with noop_server(tmp_path, TASK, f"lease_s={HANG_S}") as (endpoint, _):
        store = LearnerStore(tmp_path / "learner.db")
        session = Session(store, "test", hashlib.sha256(b"noop").hexdigest())
        operator = DealerClient(f"ipc://{tmp_path}/operator.sock", HANG_S)
        link = AgentLink(session, operator, threading.Event())
        link.post_orders([
            Order(
                order_id=f"order/{number}", suite="robosuite", task=TASK, instruction="lift",
                split="eval", init_state=7, horizon_steps=HORIZON_STEPS, slots=1,
                phase=Phase.TRAIN, version="base", temperature=1.0, run_seed=0, noise_key=TASK,
            )
            for number in range(EPISODES)
        ])  # fmt: skip
        config = tmp_path / "sim.yaml"
        config.write_text(yaml.safe_dump(settings))
        subprocess.run(
            [sys.executable, "-m", "sim_bridge", "--config", str(config), f"endpoint={endpoint}",
             f"log_path={tmp_path}/client.jsonl"],
            env={**os.environ, "PYTHONPATH": f"{ROBOSUITE}:{ROOT}"},
            check=True, timeout=HANG_S,
        )  # fmt: skip
        episodes = [read_episode(item.payload.tobytes()) for item in link.fetch(EPISODES, 1.0)]
        link.close()
        store.close()
    assert [episode.end.outcome for episode in episodes] == ["timeout"] * EPISODES
    for one, other in zip(*(episode.chunks for episode in episodes), strict=True):
        np.testing.assert_array_equal(one.proprio, other.proprio, "a state is a seed")
    first = episodes[0].chunks[0]
    assert first.proprio.shape == (8,)

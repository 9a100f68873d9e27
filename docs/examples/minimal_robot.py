"""A whole robot client: python minimal_robot.py ENDPOINT TASK CLIENT_LOG EPISODES"""

import sys
import uuid
from pathlib import Path

import numpy as np

from agent.process.clock import unix_s
from agent.wire.messages import Act, EpisodeEnd, EpisodeStart, Executed, Hello, Outcome
from agent.wire.sockets import DealerClient
from sim_bridge.log import EndLine, EndLog

ME, INSTANCE = "arm-1", uuid.uuid4().hex  # the instance is new at every start of the process
LIMIT, HORIZON_STEPS, RETRIES = 0.5, 20, 12  # every request is safe to repeat


class Arm:  # stands for your driver: joints that follow the actions
    joints_A = np.zeros(7, np.float32)

    def observe(self, images: dict[str, list[int]], proprio_dim: int) -> tuple:
        """u8[H, W, 3] RGB for each camera that the server wants, and f32[P]."""
        views = {camera: np.zeros(shape, np.uint8) for camera, shape in images.items()}
        return views, np.resize(self.joints_A, proprio_dim)

    def apply(self, action_A: np.ndarray) -> Executed:
        safe_A = np.clip(action_A, -LIMIT, LIMIT)  # your limits, on your side
        self.joints_A = self.joints_A + safe_A
        return Executed.RUN if np.array_equal(safe_A, action_A) else Executed.LIMITED


def run_episode(client: DealerClient, arm: Arm, task: str) -> EndLine:
    welcome = client.request(Hello(ME, "minimal robot", instance_id=INSTANCE), retries=RETRIES)
    start = EpisodeStart(ME, uuid.uuid4().hex, task=task, instance_id=INSTANCE)
    at = client.request(start, retries=RETRIES)
    steps, step_index, outcome = 0, 0, Outcome.TIMEOUT
    executed_K = np.zeros(0, np.uint8)  # what became of the chunk before: there is none
    while steps < HORIZON_STEPS and outcome == Outcome.TIMEOUT:
        views, proprio = arm.observe(welcome.images, welcome.proprio_dim)
        act = Act(at.episode_id, step_index, views, proprio, executed_K)
        chunk = client.request(act, retries=RETRIES)
        executed_K = np.full(welcome.chunk_steps, Executed.NOT_RUN, np.uint8)
        for k, action_A in enumerate(chunk.actions[: HORIZON_STEPS - steps]):
            executed_K[k] = arm.apply(action_A)
            steps += 1
            if arm.joints_A[0] > 1.0:  # your success predicate
                outcome = Outcome.SUCCESS
                break
        step_index += 1
    end = client.request(EpisodeEnd(at.episode_id, outcome, steps, executed_K), retries=RETRIES)
    return EndLine(at.episode_id, "", task, "", 0, "serve", at.version,
                   [at.version], end.outcome, steps, end.counted, unix_s())  # fmt: skip


if __name__ == "__main__":
    log = EndLog(Path(sys.argv[3]))
    with DealerClient(sys.argv[1], timeout_s=5.0) as client:
        for _ in range(int(sys.argv[4])):
            log.append(run_episode(client, Arm(), sys.argv[2]))
            log.sync()  # on disk before the next episode begins

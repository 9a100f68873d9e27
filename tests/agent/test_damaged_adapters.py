"""A running server is given damaged adapters: each is refused, and it serves what it had."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from adapter_fixtures import shallow_model, train_fake_adapter
from model_fixtures import INSTRUCTIONS
from process_fixtures import agent_process, wait_for_endpoints
from server_fixtures import start_own
from test_slots_corrupt import DAMAGES

from agent.adapters import AdapterStore
from agent.model.checkpoint import save_model
from agent.model.folder import hash_folder
from agent.model.lora import WEIGHTS_NAME
from agent.model.nano import build_nano_tokenizer
from agent.wire.errors import WireError
from agent.wire.messages import Act, Activate, Status
from agent.wire.sockets import DealerClient

OPERATOR_EPOCH = 0
SETTINGS = ["policy.kind=vla", "policy.adapter_rank=4", "policy.micro_batch=2"]


class Server:
    """A running agent, its adapter store, and a good adapter in `good`."""

    def __init__(self, folder: Path, endpoints: dict[str, str], base_sha256: str) -> None:
        self.folder, self.good, self.base_sha256 = folder, folder / "good", base_sha256
        self.store = AdapterStore(folder / "adapters")
        self.robot = DealerClient(endpoints["robots"], 30.0)
        self.operator = DealerClient(endpoints["operator"], 30.0)

    def publish(self, source: Path, **changes: str) -> str:
        """The folder's files as the next version."""
        number = len(self.store.versions()) + 1
        files = {path.name: path.read_bytes() for path in source.iterdir()}
        made = {"parent": "base", "task": "t", "base_sha256": self.base_sha256, "method": "grpo"}
        return self.store.publish(number, files, metrics={}, **{**made, **changes}).version

    def activate(self, version: str) -> None:
        """Raises WireError if it is refused."""
        self.operator.request(Activate(OPERATOR_EPOCH, version))

    def act(self) -> tuple[str, np.ndarray]:
        """Version and actions for a fixed observation, in an episode of its own."""
        episode = start_own(self.robot)
        image = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
        images = dict.fromkeys(("agentview", "wrist"), image)
        nothing = np.zeros(0, np.uint8)
        chunk = self.robot.request(
            Act(episode.episode_id, 0, images, np.zeros(8, np.float32), nothing)
        )
        return chunk.version, chunk.actions


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    save_model(shallow_model(), folder / "model", step=0)
    build_nano_tokenizer(INSTRUCTIONS).save(str(folder / "model" / "tokenizer.json"))
    train_fake_adapter(folder / "good", rank=2, alpha=4.0, seed=1, model=shallow_model())
    own = f"tasks={{own: {{instruction: {INSTRUCTIONS[0]}}}}}"
    overrides = [*SETTINGS, f"policy.model_dir={folder}/model", own]
    with agent_process(folder, *overrides) as process:
        endpoints = wait_for_endpoints(folder, process)
        running = Server(folder, endpoints, hash_folder(folder / "model"))
        with running.robot, running.operator:
            running.activate(running.publish(running.good))
            yield running


def assert_refused(server: Server, version: str, message: str) -> None:
    before = server.act()
    with pytest.raises(WireError, match=message) as refused:
        server.activate(version)
    assert "\n" not in str(refused.value)
    active = server.operator.request(Status()).active_version
    after = server.act()
    assert before[0] == after[0] == active != version
    assert before[1].shape == after[1].shape


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_damage_that_was_published_is_refused(name: str, server: Server, tmp_path: Path) -> None:
    damage, message = DAMAGES[name]
    shutil.copytree(server.good, tmp_path / "adapter")
    damage(tmp_path / "adapter")
    assert_refused(server, server.publish(tmp_path / "adapter"), message)


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS_NAME).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS_NAME).write_bytes(data)


def cut_short(folder: Path) -> None:
    data = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(data[:-8])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_a_byte, cut_short])
def test_damage_after_publication_is_refused(
    damage: Callable[[Path], None], server: Server
) -> None:
    version = server.publish(server.good)
    damage(server.folder / "adapters" / version)
    assert_refused(server, version, "SHA-256")


@pytest.mark.slow
def test_an_adapter_of_another_base_is_refused(server: Server) -> None:
    version = server.publish(server.good, base_sha256="1" * 64)
    assert_refused(server, version, "was trained on base 111111111111")

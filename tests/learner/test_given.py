"""An adapter of another run in place of the base: what is published, and what is refused."""

import numpy as np
import pytest
import torch
from closeness import assert_near
from learner_run import Run, make_config
from micro_fixtures import CAMERAS, micro_policy, play

from agent.adapters import AdapterCorrupt, AdapterStore
from agent.model.lora import read_adapter
from agent.model.slots import SlotBank
from agent.wire.errors import ConfigError
from agent.wire.messages import BASE_VERSION
from learner.batch import Trajectory, build_samples
from learner.given import publish_given, scaled_files

BASE = "0" * 64


@pytest.fixture
def other(tmp_path):
    """A version in the store of another run."""
    files = micro_policy(tmp_path).adapter_files()
    store = AdapterStore(tmp_path / "other")
    manifest = store.publish(
        7, files, parent=BASE_VERSION, task="a", base_sha256=BASE, method="grpo", metrics={}
    )
    return tmp_path / "other" / manifest.version


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_without_one_the_base_is_measured(tmp_path):
    assert publish_given("", 1.0, AdapterStore(tmp_path), BASE) == BASE_VERSION
    assert not list(tmp_path.iterdir())


def test_the_adapter_is_version_1_byte_for_byte_and_again_after_a_kill(other, tmp_path):
    own = AdapterStore(tmp_path / "own")
    version = publish_given(str(other), 1.0, own, BASE)
    assert publish_given(str(other), 1.0, own, BASE) == version
    assert own.versions() == [version]
    manifest, origin = own.manifest(version), AdapterStore(other.parent).manifest(other.name)
    assert (manifest.number, manifest.files) == (1, origin.files)
    assert (manifest.task, manifest.method) == ("a", "given")


def test_a_plain_folder_of_any_trainer_will_do(other, tmp_path):
    plain = write(tmp_path / "plain", scaled_files(other, 1.0))
    (plain / "README.md").write_text("made elsewhere")
    own = AdapterStore(tmp_path / "own")
    version = publish_given(str(plain), 1.0, own, BASE)
    assert "README.md" not in own.manifest(version).files


@pytest.mark.parametrize("scale", [0.0, 0.25, 2.0])
def test_the_scale_multiplies_the_update_and_0_is_the_base(other, tmp_path, scale):
    (tmp_path / "served").mkdir()
    policy = micro_policy(tmp_path / "served")
    sample = build_samples([Trajectory(0, play(policy, 0), 0.0)], CAMERAS)
    with torch.no_grad():
        for name, parameter in policy.parameters.items():
            if ".lora_B." in name:
                parameter.mul_(scale)
        expected = policy._see(sample, np.arange(3), sample.choices_BKA).logits_BKAV
        network = policy._peft.unload()
        base = policy._see(sample, np.arange(3), sample.choices_BKA).logits_BKAV
        tensors, spec = read_adapter(write(tmp_path / "scaled", scaled_files(other, scale)))
        bank = SlotBank(network, 2, spec.rank)
        bank.load(1, tensors, spec)
        bank.select([1] * 3)
        served = policy._see(sample, np.arange(3), sample.choices_BKA).logits_BKAV
    assert_near(served, expected)
    assert torch.equal(served, base) == (scale == 0.0)


def test_an_adapter_of_another_base_is_refused(other, tmp_path):
    with pytest.raises(ConfigError, match="trained on base 000000000000, model_dir is 1111"):
        publish_given(str(other), 1.0, AdapterStore(tmp_path / "own"), "1" * 64)


def test_an_altered_version_and_no_adapter_are_refused(other, tmp_path):
    with pytest.raises(ConfigError, match="must hold"):
        publish_given(str(tmp_path / "nowhere"), 1.0, AdapterStore(tmp_path / "own"), BASE)
    config = other / "adapter_config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(AdapterCorrupt):
        publish_given(str(other), 1.0, AdapterStore(tmp_path / "own"), BASE)


def test_row_0_is_measured_with_it_and_nothing_is_trained(other, tmp_path):
    (tmp_path / "run").mkdir()
    config = make_config(iterations_per_task=0)
    run = Run(tmp_path / "run", config)
    run.loop.base_version = publish_given(str(other), 1.0, run.adapters, BASE)
    run.go()
    assert {order.version for order in run.agent.orders.values()} == {run.loop.base_version}
    assert {order.task for order in run.agent.orders.values()} == {"a", "b", "h"}
    assert run.adapters.versions() == [run.loop.base_version]


def test_training_from_it_is_refused_with_a_way_out():
    config = make_config(iterations_per_task=0)
    config.start_adapter = "elsewhere"
    config.__post_init__()
    config.algorithm.iterations_per_task = 1
    with pytest.raises(ConfigError, match="model merge"):
        config.__post_init__()


def test_a_scale_without_an_adapter_is_refused():
    config = make_config(iterations_per_task=0)
    config.start_adapter_scale = 0.5
    with pytest.raises(ConfigError, match="name one with start_adapter"):
        config.__post_init__()

"""docs/adding-a-method.md: its worked example runs as printed, and what it names is there."""

import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import learner_run
import pytest
import torch
from hydra import compose, initialize_config_dir
from learner_run import Crash, Run, make_config
from omegaconf import OmegaConf
from pages import code_blocks, missing_names
from safetensors.torch import load_file
from test_ppo import same

from agent.wire.errors import ConfigError
from learner import assembly
from learner.continual import settings
from learner.continual.settings import ContinualConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text()
METHOD, SETTINGS, ASSEMBLY, CONFIG = (
    "learner/continual/l2_sp.py",
    "learner/continual/settings.py",
    "learner/assembly.py",
    "configs/continual/l2-sp.yaml",
)
# "where" of a block -> the line it goes behind (True) or before, of the file as it is.
PLACES = {
    "beside the other sections": ("@dataclass\nclass ContinualConfig:\n", False),
    "in SECTION_OF: the method's name and its section's": ("SECTION_OF = {\n", True),
    "in ContinualConfig": ('    method: str = "sequential"\n', True),
    "among the imports": ("from learner.continual.ewc import Ewc\n", True),
    "in _continual": ("    return ContinualMethod()\n", False),
}
# Two iterations a task: what a task is resumed with in its middle is in a checkpoint alone.
LEARN = {"iterations_per_task": 2, "resample_degenerate": 0}
MIDDLE = 4  # the second update of the second task


def blocks(name):
    """(where, code) of the page's blocks that go into a file."""
    return [(where, code) for file, where, code in code_blocks(PAGE) if file == name]


def add_to(module, name):
    """The source of a module with the page's blocks put where they say."""
    source = Path(module.__file__).read_text()
    for where, code in blocks(name):
        anchor, is_behind = PLACES[where]
        assert source.count(anchor) == 1, f"{name}, {where}"
        new = anchor + code if is_behind else code + "\n\n" * ("\nclass" in code) + anchor
        source = source.replace(anchor, new)
    return source


def make_module(name, source, monkeypatch):
    """A module of this source, imported under this name as long as the test lasts."""
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, name, "exec"), module.__dict__)  # as if it were a file
    return module


@pytest.fixture(scope="module")
def example():
    """The package with the page's additions: the method, its settings and a run's parts."""
    with pytest.MonkeyPatch.context() as patch:
        sections = make_module(settings.__name__, add_to(settings, SETTINGS), patch)
        ((_, code),) = blocks(METHOD)
        method = make_module("learner.continual.l2_sp", code, patch)
        parts = make_module(assembly.__name__, add_to(assembly, ASSEMBLY), patch)
        patch.setattr(learner_run, "assemble", parts.assemble)
        yield method, sections


def configured(example, weight):
    _, sections = example
    return sections.ContinualConfig("l2-sp", l2_sp=sections.L2SpConfig(weight))


def finish(folder, continual, **changes):
    folder.mkdir(exist_ok=True)
    run = Run(folder, make_config(continual, **LEARN), **changes)
    run.go()
    return run


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    """By the package as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner_run, "assemble", assembly.assemble)
        return finish(tmp_path_factory.mktemp("sequential"), ContinualConfig())


@pytest.fixture(scope="module")
def held(example, tmp_path_factory):
    return finish(tmp_path_factory.mktemp("held"), configured(example, 30.0))


def test_the_penalty_and_its_gradient_are_those_of_the_formula(example):
    method, _ = example
    moved = torch.tensor([1.0, 2.0], requires_grad=True)
    other = torch.tensor([[3.0]], requires_grad=True)
    anchor = {"a": torch.tensor([0.5, 2.5]), "b": torch.tensor([[5.0]])}
    distance = method.squared_distance({"a": moved, "b": other}, anchor)
    assert distance.item() == pytest.approx(0.5**2 + 0.5**2 + 2.0**2)
    distance.backward()
    assert moved.grad.tolist() == pytest.approx([1.0, -1.0])
    assert other.grad.tolist() == [pytest.approx([-4.0])]


def test_without_weight_it_is_sequential_fine_tuning(example, sequential, tmp_path):
    run = finish(tmp_path, configured(example, 0.0))
    assert run.adapters.versions() == sequential.adapters.versions()


def test_a_weight_keeps_the_adapter_nearer_to_where_the_task_began(held, sequential):
    moved = {}
    for name, run in {"held": held, "sequential": sequential}.items():
        version = run.store.version_after(0)
        tensors = load_file(run.adapters.verify(version) / "adapter_model.safetensors")
        squares = [(tensor - run.base[key]).square().sum() for key, tensor in tensors.items()]
        moved[name] = torch.stack(squares).sum().item()
    assert 0 < moved["held"] < 0.8 * moved["sequential"]


def test_killed_in_the_middle_of_a_task_it_ends_as_if_never_killed(example, held, tmp_path):
    config = make_config(configured(example, 30.0), **LEARN)
    killed = Run(tmp_path, config, crash_at=(MIDDLE, "before_commit"))
    with pytest.raises(Crash):
        killed.go()
    killed.restore()
    killed.store.close()
    resumed = finish(tmp_path, configured(example, 30.0), agent=killed.agent)
    assert resumed.adapters.versions() == held.adapters.versions()
    assert same(resumed.continual.state(), held.continual.state())


def test_a_wrong_weight_or_a_section_without_its_method_is_refused(example):
    _, sections = example
    with pytest.raises(ConfigError, match=r"continual\.l2_sp\.weight"):
        sections.L2SpConfig(-1.0)
    with pytest.raises(ConfigError, match="continual=sequential"):
        sections.ContinualConfig("sequential", l2_sp=sections.L2SpConfig())


def test_its_settings_file_gives_the_defaults(example, tmp_path):
    _, sections = example
    ((_, code),) = blocks(CONFIG)
    text = (ROOT / "configs" / "continual" / "sequential.yaml").read_text()
    (tmp_path / "sequential.yaml").write_text(text + "l2_sp: null\n")
    (tmp_path / "l2-sp.yaml").write_text(code)
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        composed = compose("l2-sp")
    merged = OmegaConf.to_object(OmegaConf.merge(sections.ContinualConfig, composed))
    assert merged == sections.ContinualConfig("l2-sp", l2_sp=sections.L2SpConfig())
    assert set(composed) == set(sections.ContinualConfig.__dataclass_fields__)


def test_every_block_that_is_code_was_used():
    files = {file for file, _, _ in code_blocks(PAGE)}
    assert files == {METHOD, SETTINGS, ASSEMBLY, CONFIG, "quoted"}


def test_what_is_quoted_is_in_the_source():
    quotes = [(where, code) for file, where, code in code_blocks(PAGE) if file == "quoted"]
    for where, code in quotes:
        assert code in (ROOT / where.removeprefix("from ")).read_text()
    assert quotes


def test_what_the_page_names_is_there():
    theirs = "\n".join(code for file, _, code in code_blocks(PAGE) if file != "quoted")
    is_of_the_example = partial(re.search, string=theirs)
    missing = {n for n in missing_names(PAGE) if not is_of_the_example(rf"\b{re.escape(n)}\b")}
    assert not missing

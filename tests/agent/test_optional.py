"""A package that is missing or broken takes down nothing that does not need it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import transformers
from patience import HANG_S

from agent.model.images import ImagePipeline
from agent.model.libraries import OPTIONAL
from agent.process.optional import PackageError, describe_failed_import, needing

ROOT = Path(__file__).parents[2]
# Packages that we need ourselves, or that the two libraries require.
NEEDED = {
    *("accelerate", "google", "huggingface_hub", "jinja2", "numpy", "peft", "pip", "psutil"),
    *("pygments", "pytest", "pytest_order", "rich", "safetensors", "tokenizers", "torch"),
    *("tqdm", "transformers", "import_timer", "pyximport", "pynvml"),
}


def break_packages(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('{name}::nms is gone')\n")
        info = folder / f"{name}-9.9.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n"
        (info / "METADATA").write_text(text)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package that is broken here."""
    break_packages(tmp_path, ["broken_package"])
    monkeypatch.syspath_prepend(str(tmp_path))
    return "broken_package"


def test_what_is_broken_is_named_with_the_way_out(broken: str) -> None:
    wanted = r"^the package broken_package is broken \(RuntimeError: broken_package::nms is gone\)"
    with pytest.raises(PackageError, match=wanted), needing("demos"):
        importlib.import_module(broken)


def test_what_is_missing_is_named_with_the_way_out() -> None:
    wanted = r"^the package not_there is missing: pip install 'perennial-vla\[demos\]'$"
    with pytest.raises(PackageError, match=wanted), needing("demos"):
        importlib.import_module("not_there.part")


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), needing("demos"):
        _ = 1 / 0
    assert describe_failed_import(ModuleNotFoundError("no", name="learner.gone")) == ""


def test_a_pipeline_says_at_once_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert ImagePipeline(32, "bicubic")
    with pytest.raises(PackageError, match=r"simplejpeg is missing: .*\[server\]"):
        ImagePipeline(32, "jpeg-lanczos-crop")


def test_what_the_libraries_look_for_is_known() -> None:
    """A newer release may look for more: then it belongs on the list of what is hidden."""
    asked = re.compile(r"(?:_is_package_available|find_spec)\(\s*[\"'](\w+)")
    found: set[str] = set()
    for library in (transformers, peft):
        folder = Path(str(library.__file__)).parent
        for file in (*folder.glob("utils/*.py"), *folder.glob("*.py")):
            found |= set(asked.findall(file.read_text("utf-8")))
    assert len(found) > 50
    assert sorted(found - OPTIONAL - NEEDED) == []


@pytest.mark.slow
def test_a_policy_loads_and_answers_beside_broken_packages(tmp_path: Path) -> None:
    ours = {"h5py", "pyarrow", "simplejpeg", "PIL", "mujoco", "gymnasium", "lerobot", "zenoh"}
    break_packages(tmp_path, sorted(OPTIONAL | ours))
    code = """
import numpy as np
from agent.model.lora import attach_lora
from agent.model.policy_model import load_policy_model
from agent.model.verification import answer_greedily, draw_images
import learner.loop, learner.process
model = load_policy_model("", {}, ("agentview", "wrist"), "tabletop")
attach_lora(model.network, 4, 8.0)
_, actions = answer_greedily(model, draw_images(2), "put the red cube in the tray")
assert np.isfinite(actions).all()
"""
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        done = [sys.executable, *words]
        return subprocess.run(
            done, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S, check=False
        )

    assert run("-c", code).stderr == ""
    needs = {
        "h5py": ("learner.demos_import", "--from=libero-hdf5", "--out=o", "x.hdf5"),
        "pyarrow": ("learner.demos_export", "--to=lerobot-v3", "--out=o", "."),
    }
    for name, words in needs.items():
        done = run("-m", *words)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert f"the package {name} is broken" in line
        assert "pip install" in line

"""A protocol changed by hand is not called by its published name alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.settings import compose_run

pytestmark = pytest.mark.checks


def stated(folder: Path, *overrides: str) -> tuple[str, str]:
    """What the learner says of its rates, and what the simulators are told to do."""
    (folder / "config.json").write_text("{}")
    run = compose_run([f"model.model_dir={folder}", *overrides])
    return run.processes["learner"]["suite"]["protocol"], run.processes["sim-0"]["protocol"]


SEEN = "256 px, jpeg-lanczos-crop, MuJoCo 3.3.2, exact renderer"


@pytest.mark.parametrize("suite", ["libero_10", "libero_90", "libero_goal_swap"])
def test_a_protocol_as_published_has_its_own_name(tmp_path: Path, suite: str) -> None:
    published = ("suite/protocol=openvla", "budget=eval", "model=openvla-7b")
    assert stated(tmp_path, f"suite={suite}", *published) == (f"openvla ({SEEN})", "openvla")


def test_another_kind_of_suite_has_a_plain_name(tmp_path: Path) -> None:
    assert stated(tmp_path, "suite=toy") == ("disjoint", "disjoint")


def test_a_protocol_of_nobody_else_says_so(tmp_path: Path) -> None:
    told, done = stated(tmp_path, "suite=libero_10", "model=openvla-oft-7b")
    assert (told, done) == (f"disjoint (no reference: {SEEN})", "disjoint")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("suite.horizon_steps=100", "horizon_steps=100"),
        ("suite.eval_init_states=5", "eval_init_states=5"),
        ("learner.suite.eval_init_states=5", "eval_init_states=5"),
        ("suite.temperature=1.0", "temperature=1.0"),
        ("learner.temperature=1.0", "temperature=1.0"),
        ("suite.stop_at_success=false", "stop_at_success=false"),
        ("suite.image_size=224", "image_size=224"),
        ("sim.image_size=224", "image_size=224"),
        ("suite.renderer=fast", "renderer=fast"),
        ("suite.mujoco=3.3.7", "mujoco=3.3.7"),
        ("suite.perturb=[camera]", "perturb=camera"),
        ("model.architecture.image_pipeline=bicubic", "pictures=bicubic"),
        ("model.architecture.center_crop=false", "pictures=jpeg-lanczos-without-crop"),
        ("model.architecture.rotate_180=true", "pictures=jpeg-lanczos-crop-upside-down"),
        ("model=openvla-oft-rlinf-7b", "pictures=bicubic"),
        ("task_order=[0,4]", "tasks=2-of-10"),
    ],
)
def test_what_was_changed_is_named(tmp_path: Path, change: str, told: str) -> None:
    given = ("suite=libero_spatial", "suite/protocol=openvla", "budget=eval")
    model = () if change.startswith("model=") else ("model=openvla-7b",)
    name, done = stated(tmp_path, *given, *model, change)
    assert name.startswith(f"openvla but {told} (no reference: ")
    assert done == "openvla"


def test_what_the_models_folder_says_of_pictures_counts(tmp_path: Path) -> None:
    given = ("suite=libero_spatial", "suite/protocol=openvla", "budget=eval")
    (tmp_path / "config.json").write_text('{"image_pipeline": "jpeg-lanczos-crop"}')
    run = compose_run([*given, f"model.model_dir={tmp_path}"])
    told = run.processes["learner"]["suite"]["protocol"]
    assert told.startswith("openvla but pictures=jpeg-lanczos-without-crop (no reference: ")


@pytest.mark.parametrize("suite", ["spatial", "object", "long"])
def test_a_papers_preset_is_as_its_code_does_it(tmp_path: Path, suite: str) -> None:
    told, done = stated(tmp_path, f"preset=vlacrl-{suite}")
    assert told == "vlacrl (256 px, bicubic, MuJoCo 3.3.2, exact renderer)"
    assert done == "vlacrl"

"""The name of a protocol beside every rate: what the rate is of, and what differs from a reference.

`openvla (256 px, jpeg-lanczos-crop, MuJoCo 3.3.2, exact renderer)` is as its reference does it.
`openvla but renderer=fast (no reference: ...)` is not, nor is a protocol that no reference uses:
such rates compare with nobody's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.process.json_files import DamagedFile, read_json
from deploy.local.processes import PACKAGE_ROOT

PROTOCOLS = PACKAGE_ROOT / "configs" / "suite" / "protocol"
# Of agent/model/config.py, which is not read here; a test keeps them alike.
PICTURE_DEFAULTS = {"image_pipeline": "bicubic", "center_crop": False, "rotate_180": False}
_CROPPED = "jpeg-lanczos-crop"


def stated_protocol(tree: Mapping[str, Any], model_dir: Path) -> str:
    """The protocol's name, what of it was changed, and how pictures are made.

    tree: the composed run. A suite without horizons of a protocol has the plain name.
    """
    name = tree["suite"]["protocol"]
    path = PROTOCOLS / f"{name}.yaml"
    if not tree["suite"].get("horizons") or not path.is_file():
        return name
    from omegaconf import OmegaConf

    loaded = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(loaded, dict)
    published = {str(key): value for key, value in loaded.items()}
    pictures = picture_path(tree["agent"]["policy"]["architecture"], model_dir)
    changes = list(_changes(tree, published, pictures))
    sim = tree["sim"]
    made = (
        f"{sim['image_size']} px, {pictures}, MuJoCo {sim['mujoco'] or 'of any version'}, "
        f"{sim['renderer']} renderer"
    )
    is_reference = published["reference"] and not changes
    told = f"{name} but {' '.join(changes)}" if changes else name
    return f"{told} ({made})" if is_reference else f"{told} (no reference: {made})"


def picture_path(architecture: Mapping[str, Any], model_dir: Path) -> str:
    """How pictures come to the model's size: as stated, else as its config.json says."""
    try:
        shown = read_json(model_dir / "config.json", dict, "fetch the model again")
    except DamagedFile:
        shown = {}  # whoever loads the model says what is wrong
    stated = {key: value for key, value in architecture.items() if value is not None}
    known = {**PICTURE_DEFAULTS, **shown, **stated}
    path = str(known["image_pipeline"])
    if path == _CROPPED and not known["center_crop"]:
        path = "jpeg-lanczos without crop"
    return f"{path} upside down" if known["rotate_180"] else path


def _changes(tree: Mapping[str, Any], published: Mapping[str, Any], pictures: str) -> Iterator[str]:
    """What differs from the protocol's file, each as `name=value`."""
    suite, learner = tree["suite"], tree["learner"]
    done = {**suite, **learner["suite"], **tree["sim"], "temperature": learner["temperature"]}
    keys = ("stop_at_success", "temperature", "train_init_states", "eval_init_states")
    for key in (*keys, "image_size", "renderer", "mujoco"):
        if done[key] != published[key]:
            yield f"{key}={_told(done[key])}"
    wanted = next(n for key, n in published["horizons"].items() if suite["name"].startswith(key))
    steps = sorted({task["horizon_steps"] for task in learner["suite"]["tasks"]})
    if steps != [wanted]:
        yield f"horizon_steps={','.join(map(str, steps))}"
    if pictures != published.get("pictures", pictures):
        yield f"pictures={pictures.replace(' ', '-')}"
    measured = {*suite["train_tasks"], *suite["held_out_tasks"]}
    if "train_tasks" in published and len(measured) != len(suite["tasks"]):
        yield f"tasks={len(measured)}-of-{len(suite['tasks'])}"
    if suite["perturb"]:
        yield f"perturb={','.join(sorted(suite['perturb']))}"


def _told(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

"""Hydra's composition of a run's settings, and one line for what Hydra says in many."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from deploy.local.placement import BadSetting, perturbed_name
from deploy.local.processes import PACKAGE_ROOT
from deploy.local.ranks import served_rank

CONFIGS = PACKAGE_ROOT / "configs"


def compose_tree(overrides: Sequence[str]) -> dict[str, Any]:
    """The whole composition, resolved. Raises BadSetting with the nearest name that exists."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        tree = OmegaConf.to_container(_compose(overrides), resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise BadSetting(_explain(str(error), _inner_keys(compose_unresolved([])))) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def compose_unresolved(overrides: Sequence[str]) -> Any:
    """The same with its interpolations as they are written: shows what a choice itself sets."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(_compose(overrides))


def _compose(overrides: Sequence[str]) -> Any:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("perturbed", perturbed_name, replace=True)
    OmegaConf.register_new_resolver("served_rank", served_rank, replace=True)
    OmegaConf.register_new_resolver("reversed", _reversed_order, replace=True)
    settings = [_in_full(override) for override in overrides]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("run", settings)


def _reversed_order(tasks: Sequence[str]) -> list[int]:
    """The `task_order` of `tasks` from the last to the first."""
    return list(reversed(range(len(tasks))))


def _in_full(override: str) -> str:
    """The learner's own groups are chosen as the run's other groups are."""
    for group in ("algorithm", "continual"):
        if override.startswith(f"{group}="):
            return f"{group}@learner.{override}"
    return override


def _inner_keys(node: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a tree of dicts, inner nodes too."""
    if not isinstance(node, dict):
        return []
    keys = [f"{prefix}{key}" for key in node]
    return keys + [k for key, value in node.items() for k in _inner_keys(value, f"{prefix}{key}.")]


def _explain(text: str, known: list[str]) -> str:
    """One line for what Hydra says in many."""
    if match := re.search(r"Could not override '([^']+)'", text):
        return _with_nearest(f"unknown setting '{match[1]}'", match[1], known)
    if match := re.search(r"Could not find '([^'/]+)/([^']+)'", text):
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        line = _with_nearest(f"unknown {match[1]} '{match[2]}'", match[2], options)
        return f"{line}; there are: {', '.join(options)}"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        key = re.search(r"full_key: (\S+)", text)
        name = key[1] if key else match[1]
        return f"{name} has no default; give it as {name}=VALUE"
    line = " ".join(text.split("\n", 1)[0].split())
    return f"{line}; settings look like key=value or key=[1,2]"


def _with_nearest(line: str, word: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(word, known, 1, 0.5)
    return f"{line}; did you mean '{nearest[0]}'?" if nearest else line

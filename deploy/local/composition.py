"""Composes a run's settings: first what is chosen, by Hydra, then single values above it."""

from __future__ import annotations

import copy
import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent.process.errors import ConfigError
from agent.process.shown import printable, shown
from agent.process.tree import Kind, explain, set_word
from agent.process.words import Word, parse_word
from deploy.local.placement import BadSetting, perturbed_name
from deploy.local.processes import PACKAGE_ROOT
from deploy.local.ranks import served_rank

CONFIGS = PACKAGE_ROOT / "configs"
# Sections that take entries which the files do not name, and how those are read: the tables in the
# schemas of the processes.
TABLES = {
    "agent.tasks": Kind.TEXT,
    "agent.policy.architecture": Kind.ANY,
    "learner.architecture": Kind.ANY,
    "model.architecture": Kind.ANY,
    "sim.gymnasium": Kind.ANY,
    "suite.gymnasium": Kind.ANY,
}
_CHOICE = re.compile(r"[a-z]+(/[a-z]+)?")
_NONE = "null"  # chooses nothing, as preset=null does


def compose_tree(overrides: Sequence[str]) -> dict[str, Any]:
    """The whole composition, resolved. Raises BadSetting with the nearest name that exists."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    node = _compose(overrides)
    try:
        tree = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise BadSetting(explain(error, node)) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def compose_unresolved(overrides: Sequence[str]) -> Any:
    """The same with its interpolations as they are written: shows what a choice itself sets."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(_compose(overrides))


def is_choice(word: Word) -> bool:
    """Whether the word chooses one of the files of a folder in configs/, and sets no value."""
    return _CHOICE.fullmatch(word.key) is not None and (CONFIGS / word.key).is_dir()


def _compose(overrides: Sequence[str]) -> Any:
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_new_resolver("perturbed", perturbed_name, replace=True)
    OmegaConf.register_new_resolver("served_rank", served_rank, replace=True)
    OmegaConf.register_new_resolver("reversed", _reversed_order, replace=True)
    OmegaConf.register_new_resolver("slugs", _slugs, replace=True)
    OmegaConf.register_new_resolver("first", _first, replace=True)
    try:
        words = [parse_word(override) for override in overrides]
        choices = [_choose(word) for word in words if is_choice(word)]
        tree = copy.deepcopy(_compose_choices(tuple(choices)))
        for word in words:
            if not is_choice(word):
                set_word(tree, word, TABLES)
    except ConfigError as error:
        raise BadSetting(str(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise BadSetting(_explain(str(error))) from error
    return tree


@functools.cache  # a benchmark composes hundreds of cells of few choices, a third of a second each
def _compose_choices(choices: tuple[str, ...]) -> Any:
    """What Hydra makes of the choices alone; it is to be copied before it is changed."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("run", list(choices))


def _reversed_order(tasks: Sequence[str]) -> list[int]:
    """The `task_order` of `tasks` from the last to the first."""
    return list(reversed(range(len(tasks))))


def _slugs(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of a suite's tasks."""
    return [task["slug"] for task in tasks]


def _first(tasks: Sequence[str]) -> str:
    """The first of `tasks`; "" where there is none."""
    return tasks[0] if tasks else ""


def _choose(word: Word) -> str:
    """The choice in Hydra's words. Raises BadSetting for an option that does not exist."""
    options = sorted(path.stem for path in (CONFIGS / word.key).glob("*.yaml"))
    option = (word.value or "").strip().strip("'\"")
    if word.mark != "~" and option not in (*options, _NONE):
        nearest = difflib.get_close_matches(option, options, 1, 0.5)
        hint = f"did you mean '{nearest[0]}'? " if nearest else ""
        raise BadSetting(
            f"unknown {word.key} {shown(option)}; {hint}there are: {', '.join(options)}"
        )
    if option == _NONE and word.mark == "":
        return f"~{word.key}"
    package = word.package
    if package is None and word.key in ("algorithm", "continual"):
        package = f"learner.{word.key}"  # the learner's own are chosen as the run's others are
    where = "" if package is None else f"@{package}"
    value = "" if word.value is None else f"={option}"
    return f"{word.mark}{word.key}{where}{value}"


def _explain(text: str) -> str:
    """One line for what Hydra says of a choice."""
    if match := re.search(r"(?:Could not override|Could not delete) '?([\w/@.]+)'?", text):
        return f"{match[1]}: there is no such choice with the others; compare configs/"
    return f"{printable(text)}; settings look like key=value or key=[1,2]"

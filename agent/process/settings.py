"""Reads a process's settings: a dataclass, a YAML file, and `key=value` words above it.

`agent.process.words` says how a word is read. In a YAML file, too, a text setting takes its scalar
as it stands: `client_id: 0012`, `task: off`. So does a name: `on: {instruction: ...}`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.process.errors import ConfigError
from agent.process.nodes import member, members
from agent.process.paths import expand_home, is_path
from agent.process.tree import explain, require_kind, set_word
from agent.process.truth import settle_references, with_truths
from agent.process.words import literal, parse_word
from agent.process.yaml_file import read_yaml

if TYPE_CHECKING:
    from omegaconf import DictConfig

Config = TypeVar("Config")


def load_config(schema: type[Config], path: Path | None, overrides: Sequence[str]) -> Config:
    """Fill `schema` with the values of the YAML file, then of `overrides`.

    Paths that begin with ~ are expanded.

    Raises:
        ConfigError: it names the file or key that is wrong, and the nearest that exists.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    node = OmegaConf.structured(schema)
    if path is not None:
        _merge_file(node, path)
    for text in overrides:
        set_word(node, parse_word(text))
    try:
        settle_references(node)
        _expand_paths(node)
        _require_finite("", OmegaConf.to_container(node))
        loaded = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        where = f"{path}: " if path and not overrides else ""
        raise ConfigError(f"{where}{explain(error, node)}") from error
    assert isinstance(loaded, schema)
    return loaded


def _require_finite(name: str, value: Any) -> None:
    """NaN passes every comparison of a check unseen, and no setting means infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}: expected a finite number, got {value}")
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, each in items:
        _require_finite(f"{name}.{key}" if name else str(key), each)


class Reference(str):
    """Text in which `${...}` refers to another setting or the environment of who reads the file."""


def settings_text(values: Mapping[str, Any]) -> str:
    """The YAML file from which `load_config` reads exactly these values, whatever texts they hold.

    Only a Reference is resolved by the reader.
    """
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(_literal(values)))


def _literal(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _literal(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(each) for each in value]
    if isinstance(value, Reference):
        return str(value)
    return literal(value) if isinstance(value, str) else value


def _merge_file(node: DictConfig, path: Path) -> None:
    """Set what the YAML file says. Raises ConfigError naming the file."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values, raw = read_yaml(path)
    try:
        plain = OmegaConf.create(values)
        _keep_scalars(node, plain, raw)
        node.merge_with(plain)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path}: {explain(error, node)}") from error


def _keep_scalars(node: Any, plain: Any, raw: Any, name: str = "") -> None:
    """Give the texts and numbers of `plain` the scalars of `raw`, not what YAML makes of them.

    To YAML `off` is a truth value, 010 is 8 and 1:30 is 90; on a command line they are not.

    Args:
        node: the settings that `plain` will be merged into; their dotted key is `name`.
        raw: the same file as `plain`, every scalar a string.

    Raises:
        ConfigError: a table stands where none can, or none where one has to.
    """
    from omegaconf import (
        BooleanNode,
        DictConfig,
        FloatNode,
        IntegerNode,
        OmegaConf,
        StringNode,
    )

    for key, below in members(plain):
        if isinstance(plain, DictConfig):
            known = raw.get(str(key)) if isinstance(raw, dict) else None
        else:
            known = raw[key] if isinstance(raw, list) and key < len(raw) else None
        place = member(node, key)
        if OmegaConf.is_interpolation(plain, key):
            continue
        inner = f"{name}.{key}" if name else str(key)
        require_kind(place, below, inner)
        is_number = isinstance(place, IntegerNode | FloatNode) and plain[key] is not None
        if isinstance(place, BooleanNode):
            plain[key] = with_truths(place, plain[key] if known is None else known, inner)
        elif isinstance(known, str) and (is_number or isinstance(place, StringNode)):
            plain[key] = known
        elif place is not None:
            _keep_scalars(place, below, known, inner)


def _expand_paths(node: Any, key: str = "") -> None:
    """Expand ~ in every path below `node`, whose dotted key is `key`."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    for name, child in members(node):
        is_section = isinstance(node, DictConfig)
        below = (f"{key}.{name}" if key else str(name)) if is_section else key
        if isinstance(child, DictConfig | ListConfig):
            _expand_paths(child, below)
        elif is_path(below) and not OmegaConf.is_missing(node, name):
            text = node[name]
            if isinstance(text, str) and (expanded := expand_home(below, text)) != text:
                node[name] = literal(expanded)

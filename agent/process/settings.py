"""Reads a process's settings: a dataclass, a YAML file, and `key=value` words above it.

`agent.process.words` says how a word is read. In a YAML file, too, a text setting takes its scalar
as it stands: `client_id: 0012`, `task: off`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.process.errors import ConfigError
from agent.process.paths import expand_home, is_path
from agent.process.tree import explain, member, members, set_word
from agent.process.words import literal, parse_word

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
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not path.is_file():
        raise ConfigError(f"--config: no such file: {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        plain = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
        if not isinstance(plain, DictConfig):
            raise ConfigError(f"{path}: expected settings, one `key: value` a line")
        _keep_texts(node, plain, yaml.load(text, yaml.BaseLoader))
        node.merge_with(plain)
    except OSError as error:
        raise ConfigError(f"--config: {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not written in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{where}: this is no YAML; put quotes around a text with special characters"
        ) from error
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path}: {explain(error, node)}") from error


def _keep_texts(node: Any, plain: Any, raw: Any) -> None:
    """Give the text settings of `plain` the scalars of `raw`, not what YAML makes of them.

    node: the settings that `plain` will be merged into. raw: the same file as `plain`, every scalar
    a string.
    """
    from omegaconf import DictConfig, OmegaConf, StringNode

    for key, below in members(plain):
        if isinstance(plain, DictConfig):
            known = raw.get(str(key)) if isinstance(raw, dict) else None
        else:
            known = raw[key] if isinstance(raw, list) and key < len(raw) else None
        place = member(node, key)
        if OmegaConf.is_interpolation(plain, key):
            continue
        if isinstance(place, StringNode) and isinstance(known, str):
            plain[key] = known
        elif place is not None:
            _keep_texts(place, below, known)


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

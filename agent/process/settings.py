"""Reads a process's settings: a dataclass, a YAML file, and `key=value` words above it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.process.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

Config = TypeVar("Config")


def load_config(schema: type[Config], path: Path | None, overrides: list[str]) -> Config:
    """Fill `schema` with the values of the YAML file, then of `overrides` in Hydra's syntax.

    Raises ConfigError naming the file or key that is wrong.
    """
    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if path is not None and not path.is_file():
        raise ConfigError(f"--config: no such file: {path}")
    try:
        node = OmegaConf.structured(schema)
        if path is not None:
            node = OmegaConf.merge(node, OmegaConf.load(path))
        _open_tables(node)
        ConfigStore.instance().store("process", node)
        with initialize(config_path=None, version_base="1.3"):
            loaded = OmegaConf.to_object(compose("process", overrides))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{path or 'config'}: {_explain(error, schema)}") from error
    assert isinstance(loaded, schema)
    return loaded


def _open_tables(node: DictConfig) -> None:
    """Lets an override put any key into fields of type dict; all else stays closed to typos."""
    from omegaconf import DictConfig, OmegaConf

    for name in node:
        value = node._get_node(name)
        if isinstance(value, DictConfig):
            if OmegaConf.get_type(value) is dict:
                OmegaConf.set_struct(value, False)
            else:
                _open_tables(value)


def _explain(error: Exception, schema: type[Any]) -> str:
    """One line for what Hydra and OmegaConf say in many."""
    reason = error.__cause__ or error
    lines = [str(e).strip().partition("\n")[0] for e in (error, reason)]
    text = ": ".join(dict.fromkeys(lines))
    if "not in" in str(reason) or "Could not override" in text:
        text += f" (settings: {', '.join(schema.__dataclass_fields__)})"
    return text

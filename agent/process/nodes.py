"""What is where in a tree of OmegaConf's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any, cast


def holds(container: Any, key: Any) -> bool:
    """Whether a container has an entry of its own at `key`."""
    return any(str(key) == str(name) for name, _ in members(container))


def members(container: Any) -> list[tuple[Any, Any]]:
    """Key and node of every entry; none of what is no container or refers to another."""
    from omegaconf import DictConfig, ListConfig

    if not isinstance(container, DictConfig | ListConfig) or container._is_none():
        return []
    if container._is_missing() or container._is_interpolation():
        return []
    names: Iterable[Any] = range(len(container))
    if isinstance(container, DictConfig):
        names = cast("dict[Any, Any]", container._content)  # iterating itself skips missing ones
    return [(name, container._get_node(name)) for name in names]


def member(container: Any, key: Any) -> Any:
    """The node at `key`; for an entry that a typed table may get, a fresh one; else None."""
    from omegaconf import DictConfig, ListConfig, OmegaConf, StringNode

    for name, node in members(container):
        if str(name) == str(key):
            return node
    if isinstance(container, DictConfig | ListConfig):
        kind = container._metadata.element_type
        if is_dataclass(kind) and not is_dataclass(OmegaConf.get_type(container)):
            return OmegaConf.structured(kind)
        if kind is str:
            return StringNode()
    return None

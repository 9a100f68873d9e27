"""A setting that is true or false takes these two words, however it is given.

OmegaConf counts `2`, `on` and `yes` as true as well. A switch such as `insecure` shall be on only
where somebody said so.
"""

from __future__ import annotations

from typing import Any

from agent.process.errors import ConfigError
from agent.process.nodes import member, members
from agent.process.shown import shown

_WORDS = {"true": True, "false": False}


def with_truths(node: Any, value: Any, key: str) -> Any:
    """`value` as the node of the dotted key `key` is to be given it; all below it, too.

    Raises:
        ConfigError: a truth value would be set to anything else.
    """
    from omegaconf import BooleanNode

    if isinstance(node, BooleanNode):
        is_reference = isinstance(value, str) and "${" in value
        return value if is_reference else _truth_of(value, key)
    if isinstance(value, dict):
        items = value.items()
        return {name: with_truths(member(node, name), v, f"{key}.{name}") for name, v in items}
    if isinstance(value, list):
        return [with_truths(member(node, i), v, f"{key}.{i}") for i, v in enumerate(value)]
    return value


def settle_references(node: Any, name: str = "") -> None:
    """Replace each truth value below `node` that refers to something by what that says.

    name: the dotted key of `node`.

    Raises:
        ConfigError: it says neither true nor false.
    """
    from omegaconf import AnyNode, BooleanNode

    for key, below in members(node):
        inner = f"{name}.{key}" if name else str(key)
        if not isinstance(below, BooleanNode):
            settle_references(below, inner)
        elif below._is_interpolation():
            # A node without a type, in the same place: this one would take `2` for true.
            plain = AnyNode(below._value(), key=key, parent=node)
            node[key] = _truth_of(plain._dereference_node()._value(), inner)


def _truth_of(value: Any, key: str) -> bool:
    if isinstance(value, bool):
        return value
    text = "null" if value is None else str(value)
    if text.lower() not in _WORDS:
        raise ConfigError(f"{key}: expected true or false, got {shown(text)}")
    return _WORDS[text.lower()]

"""Which settings a command line touches, in any of Hydra's spellings, and which it may not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.process.words import Word, parse_word, read_value
from deploy.local.composition import compose_unresolved, is_choice
from deploy.local.placement import WAYS_OUT, BadSetting, Placement, Process

DROP = "drop it"
_ABSENT = object()


@dataclass(frozen=True)
class Override:
    """One override as it was typed, and the dotted keys that it sets or removes.

    A key may be that of a whole section, as in ~agent.
    """

    text: str
    keys: tuple[str, ...]

    def touches(self, key: str) -> bool:
        """Whether it concerns the setting `key`, the section it is in, or a part of it."""
        return any(_is_within(key, own) or _is_within(own, key) for own in self.keys)


def parse_overrides(texts: Sequence[str]) -> list[Override]:
    """What each override touches. `texts` were composed before, so they are well-formed."""
    return [Override(text, tuple(_touched_keys(parse_word(text)))) for text in texts]


def refuse_overrides(
    texts: Sequence[str], tree: dict[str, Any], placement: Placement, processes: Iterable[Process]
) -> None:
    """Raises BadSetting for the first override whose value would be replaced or have no effect.

    tree: the composition with the overrides, before anything was chosen.
    """
    given = parse_overrides(texts)
    ways_out = {**WAYS_OUT, **placement.ways_out}
    for key in placement.unused:
        for override in given:
            if override.touches(key):
                way = _way_out(key, ways_out)
                raise BadSetting(f"{override.text}: {key} has no effect here; {way}")
    for key, value in _chosen(placement, processes):
        touching = [override.text for override in given if override.touches(key)]
        if touching and find_value(tree, key) != value:
            raise BadSetting(
                f"{touching[-1]}: this command chooses {key} itself ({json.dumps(value)}); "
                f"{_way_out(key, ways_out)}"
            )


def find_value(tree: Any, key: str) -> Any:
    """The value at a dotted key; a value of its own, equal to no other, if there is none."""
    for name in key.split("."):
        if not isinstance(tree, dict) or name not in tree:
            return _ABSENT
        tree = tree[name]
    return tree


def has_value(tree: Any, key: str) -> bool:
    """Whether there is anything at a dotted key."""
    return find_value(tree, key) is not _ABSENT


def _chosen(placement: Placement, processes: Iterable[Process]) -> Iterator[tuple[str, Any]]:
    """Key and value of every setting that is chosen; a key repeats with other values."""
    yield from placement.run.items()
    for process in processes:
        yield from _flatten(process.chosen, process.section).items()


def _touched_keys(word: Word) -> Iterable[str]:
    if not is_choice(word):
        value = word.value or ""
        is_table = word.mark != "~" and value.startswith("{")
        return _flatten(read_value(word.key, value), word.key) if is_table else [word.key]
    if word.package is None:
        return []  # a choice of ours, which sets only what may be set
    # A group put somewhere else: what does it change there?
    before = _flatten(compose_unresolved([]))
    after = _flatten(compose_unresolved([word.text]))
    return [key for key, value in after.items() if before.get(key, _ABSENT) != value]


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value for a tree of dicts; lists are values, an empty dict is nothing."""
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _is_within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _way_out(key: str, ways_out: Mapping[str, str]) -> str:
    for name, way in ways_out.items():
        if _is_within(key, name) or key.endswith(f".{name}"):
            return f"{DROP}; {way}"
    return DROP

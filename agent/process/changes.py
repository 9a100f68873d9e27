"""What differs between the settings a run was begun with and those it would be resumed with.

The rule: a setting that the record lacks came with a newer release and counts as recorded with its
default, which does what the older release did. A setting that only the record has went with a
release: that is logged and accepted. Any other difference is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """One setting; `recorded` of a "new" one is its default, `present` of a "gone" one is None."""

    key: str  # dotted; a dict in a list by its number
    kind: str  # changed | new: only the present has it | gone: only the record has it
    recorded: Any
    present: Any


def find_differences(
    recorded: Any, present: Any, defaults: Any, key: str = "", kind: str = "changed"
) -> Iterator[Difference]:
    """What differs between two trees of dicts, lists and plain values.

    defaults: a tree like `present`. Where it names nothing (tables that take any key), the default
    is None, "not stated".
    """
    dot = f"{key}." if key else ""
    if isinstance(recorded, dict) and isinstance(present, dict):
        known = defaults if isinstance(defaults, dict) else {}
        for name, now in present.items():
            default, below = known.get(name), f"{dot}{name}"
            if name in recorded:
                yield from find_differences(recorded[name], now, default, below, kind)
            else:
                yield from find_differences(default, now, default, below, "new")
        for name in recorded.keys() - present.keys():
            gone = "new" if kind == "new" else "gone"  # taken out of a default, not of the record
            yield Difference(f"{dot}{name}", gone, recorded[name], None)
    elif _are_tables(recorded, present):
        alike = defaults if _are_tables(defaults, present) else [None] * len(present)
        for index, (before, now) in enumerate(zip(recorded, present, strict=True)):
            yield from find_differences(before, now, alike[index], f"{dot}{index}", kind)
    elif recorded != present:
        yield Difference(key, kind, recorded, present)


def _are_tables(one: Any, other: Any) -> bool:
    """Whether both are lists of equally many dicts, whose keys can be compared one by one."""
    if not (isinstance(one, list) and isinstance(other, list) and len(one) == len(other)):
        return False
    return all(isinstance(element, dict) for element in [*one, *other])


def schema_defaults(present: Any, recorded: Any) -> dict[str, Any]:
    """The defaults of the dataclass `present`, as a tree for `find_differences`.

    A section that `recorded` has, too, gets the defaults of its own class: the field's may be None.
    """
    defaults: dict[str, Any] = {}
    held = recorded if isinstance(recorded, dict) else {}
    for field in fields(present):
        now, before = getattr(present, field.name), held.get(field.name)
        if is_dataclass(now) and isinstance(before, dict):
            defaults[field.name] = schema_defaults(now, before)
        elif isinstance(now, list) and isinstance(before, list) and all(map(is_dataclass, now)):
            pairs = zip(now, before, strict=False)  # of lists of another length nothing is asked
            defaults[field.name] = [schema_defaults(one, other) for one, other in pairs]
        elif field.default_factory is not MISSING:
            default = field.default_factory()
            is_section = is_dataclass(default) and not isinstance(default, type)
            defaults[field.name] = asdict(default) if is_section else default
        elif field.default is not MISSING:
            defaults[field.name] = field.default
    return defaults


def explain(differences: list[Difference]) -> str:
    """The first of them in full, the other keys by name; not empty."""
    first, *others = differences
    text = f"begun with {first.key}={json.dumps(first.recorded)}, not {json.dumps(first.present)}"
    if first.kind == "new":
        text = text.replace("begun with", f"begun without {first.key}, which is as", 1)
    return text + (f" (also: {', '.join(d.key for d in others)})" if others else "")

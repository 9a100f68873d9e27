"""A tree of settings while it is filled: what is where, how its value is read, what may be added.

The tree is OmegaConf's: of a dataclass, whose fields have types, or composed of YAML files, where a
setting is a text if a text is what it has so far.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

from agent.process.errors import ConfigError
from agent.process.nodes import holds, member, members
from agent.process.paths import is_path
from agent.process.shown import printable, shown
from agent.process.truth import with_truths
from agent.process.words import Word, read_text, read_texts, read_value

_MISSING = "???"  # OmegaConf's mark of a setting that has to be given


class Kind(Enum):
    """How a setting's value is read."""

    TEXT = "a text"
    TEXTS = "a list of texts"
    VALUE = "a value"
    ANY = "an entry of an open table: a text where it is no value"


def set_word(tree: Any, word: Word, tables: Mapping[str, Kind] | None = None) -> None:
    """Do to `tree` what one word says.

    tables: dotted key -> how the entries are read of a section that takes any; None for the tree of
    a dataclass, whose dicts are such and have types.

    Raises:
        ConfigError: an unknown key, with the nearest; a value that its setting cannot have.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if word.package is not None:
        raise ConfigError(f"{shown(word.text)}: only a choice of settings has an '@'")
    if tables is not None:
        OmegaConf.set_struct(tree, False)  # what may be added is decided here
    try:
        place = _Place(tree, word, tables)
        if word.mark == "~":
            place.remove()
        else:
            place.put(place.read())
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(explain(error, tree, word)) from error


def explain(error: Exception, tree: Any, word: Word | None = None) -> str:
    """One line for what OmegaConf says in many: the setting's name, what is wrong, the way out."""
    from omegaconf.errors import (
        ConfigAttributeError,
        ConfigKeyError,
        GrammarParseError,
        InterpolationKeyError,
        InterpolationResolutionError,
        UnsupportedInterpolationType,
        ValidationError,
    )

    text = str(error).strip()
    first = printable(text.partition("\n")[0])
    full_key = re.sub(r"\[\d+\]", "", str(getattr(error, "full_key", "") or ""))
    key = full_key or (word.key if word else "")
    where = f"{key}: " if key else ""
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        name = full_key or match[1]
        return f"{name} has no default; give it as {name}=VALUE"
    if match := re.search(r"Environment variable '([^']+)' not found", text):
        return f"{where}the environment has no variable {shown(match[1])}"
    if isinstance(error, GrammarParseError):
        return f"{where}a '${{' that stands for itself is written \\${{"
    if isinstance(error, InterpolationKeyError):
        name = re.search(r"'([^']+)'", first)
        refers = f"{where}{shown(name[1])} does not exist" if name else f"{where}{first}"
        return f"{refers}; a '${{' that stands for itself is written \\${{"
    if isinstance(error, UnsupportedInterpolationType | InterpolationResolutionError):
        return _explain_reference(where, first)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return unknown_setting(key, tree)
    if isinstance(error, ValidationError):
        given = re.search(r"[Vv]alue '(.*?)' (?:of type|for|could|is)", first)  # of a file
        value = word.value if word else given and given[1]
        got = f", got {shown(value)}" if value is not None else ""
        return f"{where}expected {_expected(tree, key)}{got}"
    return f"{where}{first}"


def _explain_reference(where: str, first: str) -> str:
    """Say why a `${...}` stands for no value; first: the line that OmegaConf says."""
    # OmegaConf's own resolvers raise its own errors; these are of ours, and say what to do.
    if match := re.match(
        r"(?:ValueError|ConfigError) raised while resolving interpolation: ", first
    ):
        return first[match.end() :]
    if match := re.search(r"Unsupported interpolation type (\S+)", first):
        what = f"nothing can be referred to with ${{{match[1]}:...}}"
    elif "Recursive" in first:
        what = "the text refers to itself"
    elif match := re.search(r"interpolation '(\$\{[^']*\})'", first):
        what = f"what {shown(match[1])} refers to is of another kind"
    else:
        what = "a '${...}' in it stands for no value"
    return f"{where}{what}; a '${{' that stands for itself is written \\${{"


def require_kind(place: Any, given: Any, key: str) -> None:
    """Raise ConfigError where a file has a table or list at `key` and `place` takes none.

    Also where `place` takes one, and the file has something else.
    """
    from omegaconf import AnyNode, DictConfig, ListConfig

    if place is None or isinstance(place, AnyNode) or (given._is_none() and place._is_optional()):
        return
    kinds = {DictConfig: "a table", ListConfig: "a list"}
    wanted = next((kind for kind in kinds if isinstance(place, kind)), None)
    found = next((kind for kind in kinds if isinstance(given, kind)), None)
    if wanted is found:
        return
    got = kinds[found] if found else shown(given._value())
    expected = f"{kinds[wanted]} below it" if wanted else "a single value"
    raise ConfigError(f"{key}: expected {expected}, got {got}")


def unknown_setting(key: str, tree: Any) -> str:
    """The line for a key that does not exist, with the nearest that does."""
    known = [name for name in _inner_keys(tree) if name != key]
    line = f"unknown setting {shown(key)}"
    if nearest := difflib.get_close_matches(key, known, 1, 0.5):
        return f"{line}; did you mean '{nearest[0]}'?"
    return f"{line}; there are: {', '.join(name for name in known if '.' not in name)}"


class _Place:
    """Where in the tree a word belongs."""

    def __init__(self, tree: Any, word: Word, tables: Mapping[str, Kind] | None) -> None:
        """Walk to the section, making entries of open tables that are not there yet."""
        self._tree, self._word, self._tables = tree, word, tables
        *sections, self._key = word.key.split(".")
        self._section, self._name = tree, ""
        for key in sections:
            self._section = self._enter(self._section, self._name, key)
            self._name = _below(self._name, key)

    def read(self) -> Any:
        """The word's value, as OmegaConf is to be given it."""
        kind, key, value = self._kind(), self._word.key, self._word.value or ""
        if value == _MISSING:
            raise ConfigError(f"{key}: '{_MISSING}' stands for no value; give another")
        if kind is Kind.TEXT:
            return read_text(value)
        if kind is Kind.TEXTS and not value.startswith("${"):
            return read_texts(key, value)
        if kind is Kind.ANY and value.lstrip()[:1] not in tuple("[{'\""):
            try:
                return read_text(value) if "${" in value else read_value(key, value)
            except ConfigError:
                return read_text(value)
        return read_value(key, value)

    def put(self, value: Any) -> None:
        """Set `value`; a table entry by entry, so that the others stay."""
        value = with_truths(member(self._section, self._key), value, self._word.key)
        self._assign(self._section, self._name, self._key, value)

    def remove(self) -> None:
        """Remove the entry, which must be there."""
        if self._tables is None and self._is_closed(self._section, self._name):
            text = shown(self._word.text)
            raise ConfigError(f"{text}: a setting cannot be removed; give it another value")
        if not holds(self._section, self._key):
            raise ConfigError(unknown_setting(self._word.key, self._tree))
        del self._section[self._key]

    def _kind(self) -> Kind:
        from omegaconf import AnyNode, ListConfig, OmegaConf, StringNode

        node = member(self._section, self._key)
        if isinstance(node, StringNode):
            return Kind.TEXT
        if isinstance(node, ListConfig) and node._metadata.element_type is str:
            return Kind.TEXTS
        if node is not None and not isinstance(node, AnyNode | ListConfig):
            return Kind.VALUE
        entry = Kind.ANY if self._tables is None else self._entry_kind(self._name)
        if entry is not None:
            if isinstance(node, ListConfig):
                return Kind.VALUE
            return Kind.TEXT if self._key.endswith(("_dir", "_path")) else entry
        try:
            known = OmegaConf.select(self._tree, self._word.key, default=None)
        except Exception:  # a resolver's, in a tree that is not complete yet
            known = None
        return _kind_of(known, is_path(self._key))

    def _enter(self, section: Any, name: str, key: str) -> Any:
        """The section `key` of `section`, whose own dotted key is `name`."""
        from omegaconf import Container, OmegaConf

        node = member(section, key)
        if holds(section, key) and node._is_interpolation():
            referred = OmegaConf.select(section, key)
            if isinstance(referred, Container | dict):  # from now on one of its own, as that is
                section[key] = copy.deepcopy(referred)
                return section._get_node(key)
        is_container = isinstance(node, Container)
        if not holds(section, key):
            if self._is_closed(section, name):
                raise ConfigError(unknown_setting(self._word.key, self._tree))
            section[key] = node if is_container else {}
        elif node._is_none() and not self._is_closed(section, name):
            section[key] = {}
        elif not is_container or node._is_none() or node._is_missing():
            raise ConfigError(unknown_setting(self._word.key, self._tree))
        return section._get_node(key if not key.isdecimal() or key in section else int(key))

    def _assign(self, section: Any, name: str, key: str, value: Any) -> None:
        from omegaconf import DictConfig, ListConfig

        if not holds(section, key) and self._is_closed(section, name):
            raise ConfigError(unknown_setting(_below(name, key), self._tree))
        node = member(section, key)
        if isinstance(node, DictConfig) and isinstance(value, dict):
            section = self._enter(section, name, key)
            for inner, entry in value.items():
                self._assign(section, _below(name, key), str(inner), entry)
        elif isinstance(section, ListConfig):
            section[int(key)] = value
        elif isinstance(node, ListConfig) and isinstance(value, list) and self._tables is None:
            section.merge_with({key: value})  # makes dataclasses of tables, as assigning does not
        else:
            section[key] = value

    def _is_closed(self, section: Any, name: str) -> bool:
        """Whether the section takes no entry that it does not have."""
        from omegaconf import DictConfig, OmegaConf

        if not isinstance(section, DictConfig):
            return True
        if self._tables is None:
            return is_dataclass(OmegaConf.get_type(section))
        may_add = self._word.mark in ("+", "++") and name != ""
        return not may_add and self._entry_kind(name) is None

    def _entry_kind(self, name: str) -> Kind | None:
        """How entries of the section of this dotted key are read, if it takes any."""
        tables = (self._tables or {}).items()
        return next((kind for key, kind in tables if f"{name}.".startswith(f"{key}.")), None)


def _kind_of(known: Any, is_path: bool) -> Kind:
    """How the value of a setting is read that has the value `known` so far."""
    from omegaconf import DictConfig, ListConfig

    if isinstance(known, ListConfig):
        is_texts = all(isinstance(each, str) for each in known)
        return Kind.TEXTS if is_texts and (is_path or len(known)) else Kind.VALUE
    if isinstance(known, str) or (known is None and is_path):
        return Kind.TEXT
    return Kind.VALUE if isinstance(known, DictConfig | bool | int | float) else Kind.ANY


def _expected(tree: Any, key: str) -> str:
    """What the setting at a dotted key takes, in words."""
    from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, ListConfig, StringNode

    node = tree
    for part in key.split("."):
        node = member(node, part)
    words: dict[type, str] = {
        BooleanNode: "true or false",
        IntegerNode: "a whole number",
        FloatNode: "a number",
        StringNode: "a text",
        ListConfig: "a list in brackets, e.g. [1,2]",
        DictConfig: "a table in braces, e.g. {name: value}",
    }
    found = next((text for kind, text in words.items() if isinstance(node, kind)), "another value")
    if isinstance(node, ListConfig) and node._metadata.element_type is float:
        return "a list of numbers, e.g. [1,2]"
    return found


def _inner_keys(node: Any, name: str = "") -> list[str]:
    """Every dotted key below a node, those of sections too."""
    from omegaconf import DictConfig

    keys: list[str] = []
    for key, below in members(node) if isinstance(node, DictConfig) else ():
        keys += [_below(name, str(key)), *_inner_keys(below, _below(name, str(key)))]
    return keys


def _below(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key

"""Reads one `key=value` of a command line: the same rule for every command.

A setting whose value is text (a path, an instruction, a name) takes all that follows the first `=`
as it stands, whatever it looks like: `=`, `#`, commas, brackets, quotes, digits, `null`, `${`. Only
a value that is quoted as a whole is read as a quoted string, in which `${...}` refers to another
setting. Any other setting takes Hydra's values: numbers, true, false, null, lists in brackets,
tables in braces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agent.process.errors import ConfigError
from agent.process.shown import shown

_WORD = re.compile(r"(?P<mark>\+\+|\+|~|)(?P<key>[^=@]+)(?P<package>@[^=]*)?(?P<value>=.*)?", re.S)


@dataclass(frozen=True)
class Word:
    """One word of a command line.

    mark: "" sets, "+" adds, "++" does either, "~" removes. package: where a chosen group goes, None
    unless it is said. value: what follows the first `=`; None where there is none.
    """

    text: str
    mark: str
    key: str
    package: str | None
    value: str | None


def parse_word(text: str) -> Word:
    """Split `text`. Raises ConfigError for what is no setting."""
    match = _WORD.fullmatch(text)
    mark, key, package, value = match.groups() if match else ("", "", None, None)
    if not key.strip() or (value is None and mark != "~"):
        raise ConfigError(f"{shown(text)} is no setting; settings look like key=value or key=[1,2]")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{shown(text)} is not written in UTF-8; rename the file or folder"
        ) from None
    return Word(
        text, mark, key.strip(), None if package is None else package[1:],
        None if value is None else value[1:],
    )  # fmt: skip


def setting_of(key: str, text: str) -> str:
    """The word that gives the text setting `key` the value `text`, whatever is in it."""
    return f"{key}={text if _unquote(text) is None else _quote(text)}"


def list_setting_of(key: str, texts: Iterable[str]) -> str:
    """The word that gives a setting a list of texts, whatever is in them."""
    return f"{key}=[{','.join(map(_quote, texts))}]"


def literal(text: str) -> str:
    """`text` as OmegaConf has to be given it so that nothing in it is an interpolation."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def unquoted(value: str) -> str:
    """The text that `value` stands for, where nothing can be referred to."""
    inner = _unquote(value)
    return value if inner is None else inner


def read_text(value: str) -> str:
    """The text that `value` stands for, for OmegaConf: interpolations only where it is quoted."""
    quoted = _unquote(value)
    return literal(value) if quoted is None else quoted


def read_texts(key: str, value: str) -> list[str]:
    """The texts of a list in brackets; each is read as `read_text` does, up to the next comma.

    Raises ConfigError.
    """
    inner = value.strip()
    if not (inner.startswith("[") and inner.endswith("]") and len(inner) > 1):
        raise ConfigError(
            f"{key}: expected a list in brackets, e.g. {key}=[a,b], got {shown(value)}"
        )
    inner = inner[1:-1].strip()
    texts: list[str] = []
    while inner:
        item, inner = _first_item(inner)
        texts.append(read_text(item))
    return texts


def read_value(key: str, value: str) -> Any:
    """A number, true, false, null, a list or a table, as Hydra writes them. Raises ConfigError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(f"key={value}")
    except (HydraException, RecursionError):
        parsed = None
    if parsed is None or "\n" in value:
        raise ConfigError(f"{key}: cannot read {shown(value)}{_way_out(key, value)}")
    if parsed.is_sweep_override():
        raise ConfigError(f"{key}: expected one value, got several: {shown(value)}")
    return parsed.value()


def _way_out(key: str, value: str) -> str:
    start = value.lstrip()[:1]
    if start == "{":
        return (
            "; put quotes around texts in a table, or set each by itself, whatever it holds: "
            f"{key}.NAME=TEXT"
        )
    if start == "[":
        return f"; put quotes around texts in a list, e.g. {key}=['a, b','c']"
    return "; expected a number, true, false, null, a list in brackets or a text in quotes"


def _first_item(inner: str) -> tuple[str, str]:
    """The first of the items between brackets, and the rest behind its comma."""
    quote = inner[0]
    if quote in "'\"":
        pattern = rf"({quote}(?:\\.|[^\\{quote}])*{quote})\s*(?:,|$)"
        if match := re.match(pattern, inner, re.S):
            return match[1], inner[match.end() :].strip()
    item, _, rest = inner.partition(",")
    return item.strip(), rest.strip()


def _quote(text: str) -> str:
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), literal(text))
    return f"'{escaped}'"


def _unquote(value: str) -> str | None:
    """The inside of a value that is one quoted string; None for any other.

    A quote inside is written with a backslash before it; backslashes before that are doubled.
    """
    text = value.strip()
    if len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0]:
        return None
    quote, inner = text[0], text[1:-1]
    for run in re.findall(rf"(\\*){quote}", inner):
        if len(run) % 2 == 0:
            return None  # that quote would end the string
    if (len(inner) - len(inner.rstrip("\\"))) % 2:
        return None
    return re.sub(rf"(\\+)({quote}|$)", lambda match: "\\" * (len(match[1]) // 2) + match[2], inner)

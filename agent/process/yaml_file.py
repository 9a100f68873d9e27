"""Reads a YAML file of settings: names are texts, and nothing in it grows beyond what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.process.errors import ConfigError
from agent.process.shown import shown

BYTES_MAX = 16 << 20
NODES_MAX = 100_000  # with every alias counted as what it stands for
DEPTH_MAX = 64
# What YAML's own words begin with, and what they mean.
_PROBLEMS = {
    "found character '\\t'": "a tab stands there; indent with spaces",
    "but found another document": "a second document begins; one file holds one table of settings",
    "could not determine a constructor": "a text that begins with '!' needs quotes around it",
    "found undefined alias": "a text that begins with '*' needs quotes around it",
    "special characters are not allowed": "a control character stands there; remove it",
}


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table in a file as YAML reads it, and the same with every scalar as it stands.

    Raises:
        ConfigError: naming the file, the line where there is one, and the way out.
    """
    import yaml

    text = _read_text(path)
    try:
        values, raw = _read_table(path, text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        words = str(error)
        what = next((ours for theirs, ours in _PROBLEMS.items() if theirs in words), None)
        what = what or "this is no YAML; put quotes around a text with special characters"
        raise ConfigError(f"{path}{where}: {what}") from error
    except RecursionError as error:
        raise _too_much(path) from error
    except ValueError as error:  # Python reads no number of more than 4300 digits
        raise ConfigError(
            f"{path}: a number has too many digits; put quotes around a text"
        ) from error
    return values, raw


def _read_text(path: Path) -> str:
    if not path.exists():
        raise ConfigError(f"--config: no such file: {path}")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no plain file"
        raise ConfigError(f"--config: {path} is {what}; name a file of settings")
    try:
        if path.stat().st_size > BYTES_MAX:
            raise ConfigError(f"--config: {path} has more than {BYTES_MAX >> 20} MiB")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--config: {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not written in UTF-8") from error


def _read_table(path: Path, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    import yaml
    from omegaconf._utils import get_yaml_loader

    loader = get_yaml_loader()(text)
    root = loader.get_single_node()
    if root is None or root.tag == "tag:yaml.org,2002:null":
        return {}, {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: expected settings, one `key: value` a line")
    _check_nodes(path, root)
    return loader.construct_document(root), yaml.load(text, yaml.BaseLoader)


def _check_nodes(path: Path, root: Any) -> None:
    """Make every name a text, and refuse names that come twice, and what is too much."""
    import yaml

    left, count = [(root, 1)], 0
    while left:
        node, depth = left.pop()
        count += 1
        if depth > DEPTH_MAX or count > NODES_MAX:
            raise _too_much(path)
        if isinstance(node, yaml.MappingNode):
            _check_names(path, node)
            left += [(value, depth + 1) for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            left += [(value, depth + 1) for value in node.value]


def _check_names(path: Path, table: Any) -> None:
    import yaml

    names: set[str] = set()
    for key, _ in table.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{where}: the name of a setting is a text, not a table or a list")
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        key.tag = "tag:yaml.org,2002:str"
        if key.value in names:
            raise ConfigError(f"{where}: {shown(key.value)} is there a second time; remove one")
        names.add(key.value)


def _too_much(path: Path) -> ConfigError:
    return ConfigError(
        f"{path}: no settings: more than {DEPTH_MAX} tables in each other, or than {NODES_MAX} "
        "values, aliases counted as what they stand for"
    )

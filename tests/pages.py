"""What pages of docs/ say, taken apart so that tests can compare it with what is there."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

from deploy.local.cli import COMMANDS
from learner.config import LearnerConfig

ROOT = Path(__file__).parents[1]
CODE = ("agent", "learner", "sim_bridge", "deploy", "benchmarks")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
_HEAD = re.compile(r"# (\S+?\.(?:py|yaml)|quoted)(?:,? (.+))?\n")
_FILE = re.compile(r"[\w.-]+\.(?:py|yaml|md|jsonl?)")


def code_blocks(page: str) -> list[tuple[str, str, str]]:
    """(file, where in it, code) of each block whose first line says where it goes.

    Blocks of shell commands and formulas have no such line.
    """
    found = []
    for language, body in _FENCE.findall(page):
        if language not in ("sh", "text"):
            head = _HEAD.match(body)
            assert head, f"a block that does not say where it goes: {body[:60]!r}"
            found.append((head[1], head[2] or "", body[head.end() :]))
    return found


def shell_lines(page: str) -> list[str]:
    """The lines of all blocks of shell commands, without comments."""
    blocks = [body for language, body in _FENCE.findall(page) if language == "sh"]
    lines = [line.partition("#")[0].strip() for body in blocks for line in body.splitlines()]
    return [line for line in lines if line]


def run_commands() -> list[list[str]]:
    """The settings of every run, evaluation or trial that README, docs or a shipped file tells of.

    Lines that go on are joined, options are left out, placeholders are as they stand.
    """
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
    found = []
    for page in sorted(pages):
        text = page.read_text().replace("\\\n", " ").replace("`", "\n")
        for line in re.findall(r"^(?:# )?perennial (.+)$", text, re.M):
            command, *words = shlex.split(line, comments=True)
            settings = [word for word in words if re.match(r"[\w./]+=", word)]
            if command in ("run", "eval", "dry-run") and settings:
                found.append([*(["budget=eval"] if command == "eval" else []), *settings])
    return [list(each) for each in dict.fromkeys(map(tuple, found))]


def missing_names(page: str) -> set[str]:
    """What stands in backticks and names a file, a setting or code that is not there."""
    spans = re.findall(r"`([^`\n]+)`", _FENCE.sub("", page))
    return {span for span in spans if not is_there(span)}


def missing_links(page: str, folder: Path) -> set[str]:
    """Links of a page in `folder`, to files or to headings of its own, that lead nowhere."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page), re.M)
    anchors = {"#" + re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page) if "://" not in link]
    return {x for x in links if x not in anchors and not (folder / x.partition("#")[0]).is_file()}


def is_there(span: str) -> bool:
    """Whether a file, a command, a setting (`learner.seed=3`), or a name of the code exists."""
    first, *others = span.split()
    if first == "perennial":
        return others[0] in COMMANDS
    if others:
        return True  # a command of the system, an example in words
    key, equals, value = span.partition("=")
    if equals and (ROOT / "configs" / key).is_dir():
        return value.isupper() or (ROOT / "configs" / key / f"{value}.yaml").exists()
    if equals:
        return _is_setting(key)
    if "/" in span:
        return (ROOT / span).exists()
    if _FILE.fullmatch(span):
        return span in _file_names() or span in _names()
    called = span.partition("(")[0]
    return all(part in _names() for part in called.split(".")) or _is_setting(called)


def _is_setting(key: str) -> bool:
    """Of the learner, with or without `learner.`."""
    section: type | None = LearnerConfig
    for part in key.removeprefix("learner.").split("."):
        hints = get_type_hints(section) if section else {}
        if part not in hints:
            return False
        kinds = (hints[part], *get_args(hints[part]))  # a section may be None
        section = next((kind for kind in kinds if is_dataclass(kind)), None)
    return True


@cache
def _file_names() -> set[str]:
    return {path.name for folder in (*CODE, "configs", "docs") for path in _files(folder, "*")}


@cache
def _names() -> set[str]:
    """Whatever the code defines, and the strings that it uses as names, file names for one."""
    return {name for folder in (*CODE, "tests") for name in _defined(folder)}


def _defined(folder: str) -> Iterator[str]:
    for path in _files(folder, "*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.arg(arg=name):
                    yield name
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                    yield name
                case ast.Constant(value=str(text)) if folder != "tests":
                    yield text


def _files(folder: str, pattern: str) -> Iterator[Path]:
    return (path for path in (ROOT / folder).rglob(pattern) if path.is_file())

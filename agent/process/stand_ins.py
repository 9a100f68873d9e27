"""Files that stand in place of the file that was meant, as a clone or a download leaves them."""

from __future__ import annotations

from pathlib import Path

from agent.process.shown import shown

# The three that Git LFS has written over the years; the first is the one of today.
_LFS_STARTS = (
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
    b"# git-media",
)
_ANNEX_START = b"/annex/objects/"  # an unlocked file's pointer
_HTML_STARTS = (b"<!doctype html", b"<html")
_LOOKED_AT_BYTES = 512


def describe_stand_in(path: Path) -> str:
    """Return what stands in place of a file's content, with the way to it; "" for anything else.

    The text follows the file's name: "... is a Git LFS pointer, not the file: ...".
    """
    if path.is_symlink() and not path.exists():
        target = path.readlink().as_posix()
        if "annex/objects/" in target:
            return "is a git-annex pointer, not the file: fetch the file with `git annex get`"
        return f"is a link to {shown(target)}, which is not there: fetch the file"
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT_BYTES)
    except OSError:
        return ""  # whoever reads the file says why it cannot
    if start.startswith(_LFS_STARTS):
        return "is a Git LFS pointer, not the file: fetch the file with `git lfs pull`"
    if start.startswith(_ANNEX_START):
        return "is a git-annex pointer, not the file: fetch the file with `git annex get`"
    if start.lstrip().lower().startswith(_HTML_STARTS):
        return (
            "is a web page, not the file: fetch the file itself (of a model hub, the address "
            "with /resolve/ in it)"
        )
    return ""

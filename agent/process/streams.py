"""Standard input, output and error as a program needs them, whatever it was started with."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agent.process.shown import complain

_MODES = {"stdin": (0, "r"), "stdout": (1, "w"), "stderr": (2, "w")}
_FAILED = 1  # exit status
_READER_GONE = 128 + signal.SIGPIPE  # the same, as a shell reports a program that SIGPIPE killed


class OutputFailed(SystemExit):
    """Standard output cannot be written, so that nobody gets what the program was asked for.

    It ends the program as a signal does: whoever handles errors of files does not take it for one
    of its own.
    """

    def __init__(self, trouble: OSError) -> None:
        super().__init__(_FAILED)
        self.trouble = trouble


@contextmanager
def printing(program: str) -> Iterator[None]:
    """Within, output that cannot be written ends the program with one line on standard error.

    What is still in a buffer is written at the end. A reader that goes away, as `head` does, ends
    the program without a word. Prepare the streams first.
    """
    try:
        try:
            yield
        except OutputFailed:
            raise
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except OutputFailed as failed:
        _abandon_output()
        if failed.trouble.errno == errno.EPIPE:
            raise SystemExit(_READER_GONE) from None
        complain(
            program,
            f"standard output: cannot be written ({failed.trouble.strerror}): free space where it "
            "goes or send it elsewhere, then give the same command again",
        )
        raise SystemExit(_FAILED) from None


def prepare_streams() -> None:
    """Open those that are closed to nowhere, and let no letter be one that cannot be printed.

    Where `>&-` closed descriptor 1, the next file that the program opens would get its number,
    and what is printed would be written into that.
    """
    opened = os.open(os.devnull, os.O_RDWR)
    while opened <= max(number for number, _ in _MODES.values()):
        os.set_inheritable(opened, True)
        opened = os.open(os.devnull, os.O_RDWR)
    os.close(opened)
    for name, (number, mode) in _MODES.items():
        stream = getattr(sys, name)
        if stream is None:
            nowhere = open(number, mode, errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, nowhere)
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = _through(_Output, sys.stdout)
    sys.stderr = _through(_Complaints, sys.stderr)


class _Output(io.FileIO):
    """Standard output: whole or not at all, and an error of its own kind."""

    def write(self, data: Any, /) -> int:
        """Writes all of it: unbuffered, Python would drop what did not fit at once."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            try:
                done += self._write_some(view[done:])
            except OSError as error:
                raise OutputFailed(error) from error
        return len(view)

    def _write_some(self, view: memoryview) -> int:
        written = super().write(view)
        if written is None:  # somebody set the descriptor, which programs share, to not block
            raise BlockingIOError(errno.EAGAIN, "its reader does not keep up")
        return written


class _Complaints(io.FileIO):
    """Standard error: what cannot be said there can be said nowhere, and ends no work."""

    def write(self, data: Any, /) -> int:
        """Writes what can be written."""
        with contextlib.suppress(OSError):  # its disk is full, or its reader has gone
            super().write(data)
        return memoryview(data).nbytes


def _through(kind: type[io.FileIO], stream: Any) -> Any:
    """The interpreter's own `stream` on a descriptor of that kind; any other, as it is."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)  # a buffer, unless it is unbuffered
    if type(raw) is not io.FileIO or raw.fileno() not in (1, 2):
        return stream
    stream.flush()
    through = kind(raw.fileno(), "w", closefd=False)
    is_buffered = stream.buffer is not raw
    return io.TextIOWrapper(
        io.BufferedWriter(through) if is_buffered else through,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _abandon_output() -> None:
    """Send nowhere what is still to be written: it would fail again as the interpreter leaves."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)

"""`python -m deploy.containers.health URL`: whether a process says that it is ready.

For a container's HEALTHCHECK: exit status 0 for HTTP 200, else 1 and the reason in one line.
"""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.request

from agent.process.shown import LINE_MAX_CHARS, printable

LIMIT_S = 4.0


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="deploy.containers.health", description=__doc__)
    parser.add_argument("url", metavar="URL", help="of a /readyz or /healthz page")
    url = parser.parse_args(argv).url
    try:
        with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
            print(printable(answer.read(1000).strip(), LINE_MAX_CHARS))
            return 0
    except urllib.error.HTTPError as error:
        print(printable(error.read(1000).strip(), LINE_MAX_CHARS) or f"{url}: {error}")
    except OSError as error:
        print(f"{url}: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())

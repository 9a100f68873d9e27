"""The simulator's program with the toy suite, whose pictures are larger than usual."""

from __future__ import annotations

import sys

from sim_bridge import toy
from sim_bridge.__main__ import main

if __name__ == "__main__":
    toy.IMAGE_SIZE = 256  # pixels a side
    sys.exit(main())

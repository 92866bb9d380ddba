"""The command `resgen` as a script, for the processes that tests start."""

from __future__ import annotations

import sys

from resgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

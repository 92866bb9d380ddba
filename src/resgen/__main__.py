"""`python -m resgen`: the command line."""

import sys

from resgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

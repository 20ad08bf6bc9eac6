"""`python -m rconv` is the command line."""

import sys

from rconv.cli import main

if __name__ == "__main__":
    sys.exit(main())

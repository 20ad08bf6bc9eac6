"""`python -m rconv` is the command line."""

import sys

from rconv.cli import main

sys.exit(main())

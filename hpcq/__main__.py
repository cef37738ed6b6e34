"""`python -m hpcq` is the console script `hpcq`."""

import sys

from hpcq.cli import main

sys.exit(main())

"""`python -m holdfast`."""

import sys

from holdfast.server.cli import main

sys.exit(main())

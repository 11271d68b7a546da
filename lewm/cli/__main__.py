"""`python -m lewm.cli`, where no `lewm` is on the path."""

import sys

from lewm.cli.main import main

sys.exit(main())

"""`python -m e2e_perception.cli`."""

import sys

from e2e_perception.cli.main import main

sys.exit(main())

"""`python -m e2e_perception.cli`."""

import sys

from e2e_perception.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

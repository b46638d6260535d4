"""`python -m live`, with tests/benchmarks on the path."""

import sys

from live.main import main

if __name__ == "__main__":
    sys.exit(main())

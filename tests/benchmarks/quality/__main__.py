"""`python -m quality`, with tests/benchmarks on the path."""

import sys

from quality.main import main

if __name__ == "__main__":
    sys.exit(main())

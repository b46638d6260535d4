"""Benchmarks are packages of this folder: `inrecon bench` puts it on the path, and so do their tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

"""Coverage-guided fuzzing of what reads bytes of strangers: nothing but the project's own errors may come out.

    pip install atheris
    python tests/fuzz/fuzz.py parser|header|configuration CORPUS [-max_total_time=600 ...]

CORPUS is a folder that new inputs are added to; tests/fuzz/corpus holds a few of different sizes, which the tests run.
Further options are libFuzzer's.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["inrecon", "inrecon_server"]):
    from fuzz_targets import TARGETS


def main() -> None:
    """Fuzz until the time is over or something else than an error of the project's comes out."""
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

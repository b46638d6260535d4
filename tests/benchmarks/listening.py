"""Seconds from the start of the server's process until it listens, and until its worker is warm.

python tests/benchmarks/listening.py [starts]
"""

import subprocess
import sys
import time
from statistics import median

ENTRY = """
import logging, sys
from inrecon_server.server import serve
from inrecon_server.settings import ServerSettings
logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
serve(ServerSettings(port=0, http_port=0))
"""


def start() -> tuple[float, float]:
    """Seconds until "listening on" and until "ready" are logged by a new server."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", ENTRY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seconds: dict[str, float] = {}
        for line in process.stdout:
            seconds[line.split()[0]] = time.perf_counter() - began
            if line.startswith("ready"):
                break
        process.terminate()
    return seconds["listening"], seconds["ready:"]


if __name__ == "__main__":
    listening, ready = zip(*(start() for _ in range(int(sys.argv[1]) if sys.argv[1:] else 5)), strict=True)
    sys.stdout.write(f"listening after {median(listening):.2f} s, ready after {median(ready):.2f} s (medians)\n")

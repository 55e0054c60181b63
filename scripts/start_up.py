"""How long the command takes to start: seconds, median of several runs. Reported, and never asserted.

python scripts/start_up.py [RUNS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import longformer": ["-c", "import longformer"],
    "longformer --help": ["-m", "longformer", "--help"],
    "longformer answer": ["-m", "longformer", "answer", "Who fell?", "--text", "Dan fell. Ann did not."],
}


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):  # in turns, so that what else the machine does falls on all
        for name, words in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            taken[name].append(time.perf_counter() - start)
    torch = statistics.median(taken["import torch"])
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        sys.stdout.write(f"{name:20} {median:6.2f} s   {median / torch:4.1f} × import torch\n")


if __name__ == "__main__":
    main()

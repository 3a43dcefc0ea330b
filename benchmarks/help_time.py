"""Start-up of the command line against a bare import of LightningCLI, in paired runs.

Processor time is compared, not the clock: it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from table import write_section

ROOT = Path(__file__).resolve().parent.parent
CASES = {
    "python -c 'import lightning.pytorch.cli'": ["-c", "import lightning.pytorch.cli"],
    "python cli.py --help": ["cli.py", "--help"],
    "python cli.py fit --help": ["cli.py", "fit", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """Processor time of one Python process, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="Rounds; each runs every case once.")
    pairs = parser.parse_args().pairs
    for arguments in CASES.values():  # bytecode and file cache
        seconds(arguments)
    times = [{name: seconds(arguments) for name, arguments in CASES.items()} for _ in range(pairs)]
    base = next(iter(CASES))
    rows = []
    for name in CASES:
        ratios = [entry[name] / entry[base] for entry in times]
        rows.append(
            {
                "command": name,
                "CPU seconds (median)": f"{statistics.median(entry[name] for entry in times):.2f}",
                "ratio (median of pairs)": f"{statistics.median(ratios):.2f}",
                "range": f"{min(ratios):.2f} to {max(ratios):.2f}",
                "pairs": str(pairs),
            }
        )
    write_section("Start-up of the command line", "python benchmarks/help_time.py", rows)


if __name__ == "__main__":
    main()

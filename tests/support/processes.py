"""Runs a script on several processes, the way several machines would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(script: str, processes: int, *arguments: object) -> None:
    """Run ``script`` with ``arguments``, the number of processes last; fails with the errors of one that failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments), str(processes)]
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, **settings, **({"LOCAL_RANK": str(rank)} if processes > 1 else {})},
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        for rank in range(processes)
    ]
    for process in running:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()[-2000:]

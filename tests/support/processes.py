"""Runs a script on several processes, the way several machines would start them.

The processes are forked from a server which has imported PyTorch and Lightning but run nothing: each is as fresh as a
new interpreter, and starts at once instead of after ten seconds of imports. The server belongs to the process that runs
the tests: it starts with the first script and ends with the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT = 240  # seconds, on a machine that does other things as well
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["cli", "lightning_modules", "datamodules", "callbacks", "open_clip", "sklearn.metrics"])


def launch(script: str, processes: int, *arguments: object) -> None:
    """Run ``script`` with ``arguments``, the number of processes last; fails with the words of one that failed.

    When one fails the others are killed, as they would wait for it; so are all after ``TIMEOUT``.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    ranks = [{"LOCAL_RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
    end = time.monotonic() + TIMEOUT
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(rank) for rank in range(processes)]
        with ended_at_last(
            [
                start(script, [*arguments, processes], log, ROOT, settings | rank)
                for log, rank in zip(logs, ranks, strict=True)
            ]
        ) as running:
            while any(process.exitcode is None for process in running):
                wait([process.sentinel for process in running if process.exitcode is None], end - time.monotonic())
                codes = [process.exitcode for process in running]
                failed = [rank for rank, code in enumerate(codes) if code]
                words = [log.read_text(errors="replace")[-2000:] for log in logs]
                assert not failed, (
                    f"process {failed[0]} of {processes}, exit code {codes[failed[0]]}: {words[failed[0]]}"
                )
                assert time.monotonic() < end or None not in codes, f"not ended after {TIMEOUT} s: {words}"


def start(
    script: str, arguments: list[object], log: Path, folder: Path, environment: dict[str, str] | None = None
) -> BaseProcess:
    """Start ``script`` in a process of its own.

    Args:
        script: Python code, which finds ``arguments`` as words in ``sys.argv``.
        arguments: What follows the name of the script.
        log: File for what the process prints and for its errors.
        folder: Working directory.
        environment: Variables beside those of this process.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    process = SERVER.Process(target=run, args=(script, [str(word) for word in arguments], log, folder, variables))
    process.start()
    return process


@contextmanager
def ended_at_last(processes: list[BaseProcess]) -> Iterator[list[BaseProcess]]:
    """Leaves none of the processes running."""
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def run(script: str, arguments: list[str], log: Path, folder: Path, variables: dict[str, str]) -> None:
    """What a started process does."""
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = ["script.py", *arguments]
    exec(compile(script, "script.py", "exec"), {"__name__": "__main__"})

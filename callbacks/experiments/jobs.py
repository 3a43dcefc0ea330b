"""One job: a command line, mostly a training with its test, in a process and a folder of its own.

Only the standard library is imported here, as a Ray worker gets this file by value.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

LOG, RECORD, RESULTS = "log.txt", "job.json", "results.json"
children: set[subprocess.Popen[bytes]] = set()  # of this process, for the thread that receives Ctrl-C


class Job(NamedTuple):
    """One command line to run.

    Attributes:
        name: What the printed lines call it, as ``fold 3``.
        folder: Folder of the run, absolute, as a worker of a cluster may stand elsewhere; gets ``log.txt`` and
            ``job.json``.
        command: Program and arguments.
        cwd: Folder in which relative paths of the command count.
        environment: Variables beside those of this process.
    """

    name: str
    folder: str
    command: list[str]
    cwd: str
    environment: dict[str, str] = {}  # noqa: RUF012 - never changed


class Outcome(NamedTuple):
    """How a job ended.

    Attributes:
        code: Exit code; negative = the number of the signal that killed it.
        seconds: How long it took.
        error: Last words of a job that failed, else empty.
    """

    code: int
    seconds: float
    error: str


def run_job(job: Job) -> Outcome:
    """Run a job to its end; the same function for every launcher.

    Args:
        job: The job.

    Returns:
        Its outcome, which is written to ``job.json`` too.
    """
    folder, start = Path(job.folder), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    with (folder / LOG).open("wb") as log:
        code = exit_code(job, log)
    seconds = round(time.monotonic() - start, 2)
    outcome = Outcome(code, seconds, "" if code == 0 else last_words(folder / LOG, code))
    (folder / RECORD).write_text(json.dumps({"command": job.command, **outcome._asdict()}, indent=2) + "\n")
    return outcome


def exit_code(job: Job, log: BinaryIO) -> int:
    """Run a job's command to its end, with its output in ``log``; negative = the signal that killed it."""
    child = subprocess.Popen(
        job.command,
        cwd=job.cwd,
        env={**os.environ, **job.environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that a signal reaches the processes that the job starts too
    )
    children.add(child)
    try:
        while (code := child.poll()) is None:
            time.sleep(0.05)  # not child.wait(): Ray's interruption is seen only between two calls
        return code
    except BaseException:  # Ctrl-C, or Ray taking the task back
        with uninterrupted():
            stop(child)
        raise
    finally:
        children.discard(child)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C in the main thread: Ray interrupts a task until it has ended, and stopping must come to its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def last_words(log: Path, code: int) -> str:
    """Why a job failed: the signal that killed it, its ``error:`` line, or else the last line of its log.

    Args:
        log: The log.
        code: Its exit code.

    Returns:
        One line.
    """
    if code < 0:
        known = {number.value: number.name for number in signal.Signals}
        name = known.get(-code, f"signal {-code}")
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return f"exit code {code}: {(errors or lines or ['no output'])[-1][:300]}"


def plain_run(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    """``run_job`` with plain values, the only ones that both sides of a cluster surely know."""
    return tuple(run_job(Job(*fields)))


def stop(child: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End a child and the processes that it started: first asked, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue

"""Runs jobs side by side: as processes of this machine, or over the machines of a cluster with Ray."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from callbacks.experiments.grid import counted
from callbacks.experiments.interrupts import terminate_as_interrupt
from callbacks.experiments.jobs import LOG, Job, Outcome, children, plain_run, run_job, stop


def run_jobs(
    jobs: Sequence[Job], launcher: str, workers: int, gpus: int, report: Callable[[Job, Outcome], tuple[str, str]]
) -> None:
    """Run jobs side by side, with a printed line as each starts and ends; those that run are never stopped by others.

    Args:
        jobs: The jobs.
        launcher: ``local`` (processes of this machine) or ``ray`` (of a cluster).
        workers: Jobs at a time, at least 1; for ``ray`` each asks for that share of the cluster's cores.
        gpus: GPUs to set aside for each job, as ``gpus_a_run`` says.
        report: Called when a job has ended; returns what to print of it, and why no more jobs are to be started, which
            is empty when nothing speaks against it.

    Raises:
        ValueError: ``report`` told to start no more while some were left or none had ended well, the jobs need more
            GPUs than there are, or Ray is not installed.
        KeyboardInterrupt: After the children were stopped.
    """
    launch = _run_with_ray if launcher == "ray" else _run_local
    seconds: list[float] = []
    well = 0
    halt, cause = threading.Event(), ""
    with ExitStack() as stack:
        stack.enter_context(terminate_as_interrupt())
        ended = stack.enter_context(closing(launch(jobs, workers, gpus, halt)))
        for job, outcome in ended:
            seconds.append(outcome.seconds)
            well += outcome.code == 0
            text, against = report(job, outcome)
            cause = cause or against
            left = len(jobs) - len(seconds)
            rest = sum(seconds) / len(seconds) * left / min(workers, left or 1)
            until = f" ({left} to go, about {duration(rest)})" if left and not cause else ""
            say(f"{job.name}, {duration(outcome.seconds)}: {text}{until}")
            if cause:
                halt.set()
    left = len(jobs) - len(seconds)
    if cause and left:
        others = "The other one was" if left == 1 else f"The other {left} were"
        raise ValueError(f"{cause} {others} not started: mend this first.")
    if cause and not well:
        raise ValueError(cause)


def say(line: str) -> None:
    """Print a line in one piece, as several threads do."""
    print(f"{line}\n", end="", flush=True)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(8.21), duration(75), duration(7260)
    ('8.2 s', '1 min 15 s', '2 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _run_local(jobs: Sequence[Job], workers: int, gpus: int, halt: threading.Event) -> Iterator[tuple[Job, Outcome]]:
    from concurrent.futures import Future, ThreadPoolExecutor, as_completed

    slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for environment in worker_environments(workers, gpus):
        slots.put(environment)
    stopped = threading.Event()

    def run(job: Job) -> Outcome:
        environment = slots.get()
        try:
            if stopped.is_set():
                return Outcome(-signal.SIGINT, 0.0, "not started")
            say(f"{job.name} started; its log: {Path(job.folder) / LOG}")
            return run_job(job._replace(environment={**job.environment, **environment}))
        finally:
            slots.put(environment)

    left, started = list(reversed(jobs)), dict[Future[Outcome], Job]()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:  # a job is handed over only when there is room for it, as halt may come with any that ends
                while left and len(started) < workers and not halt.is_set():
                    job = left.pop()
                    started[pool.submit(run, job)] = job
                if not started:
                    return
                done = next(as_completed(started))
                yield started.pop(done), done.result()
        except BaseException:
            stopped.set()
            while not all(job.done() for job in started):  # again, for a child that a worker was just starting
                for child in tuple(children):
                    stop(child)
                time.sleep(0.05)
            raise


def gpus_a_run(trainer: Mapping[str, Any]) -> int:
    """How many GPUs are set aside for each run of an experiment; -1 = all.

    ``devices: auto`` takes one, so that a run is the same whatever the number of workers. A list names GPUs of the
    machine by their places, so a run that has one needs all of them in sight.

    Args:
        trainer: Its settings ``accelerator`` and ``devices``.

    >>> [gpus_a_run({"devices": devices}) for devices in ("auto", 2, "-1", [1, 3])], gpus_a_run({"accelerator": "cpu"})
    ([1, 2, -1, -1], 0)
    """
    devices = str(trainer.get("devices", "auto"))
    if trainer.get("accelerator") == "cpu":
        return 0
    return 1 if devices == "auto" else int(devices) if devices.isdigit() else -1


def worker_environments(workers: int, gpus: int) -> list[dict[str, str]]:
    """The variables of each worker: its GPUs, and its share of the processor's cores.

    Args:
        workers: Number of workers; with one GPU a job, workers beyond the number of GPUs share them.
        gpus: GPUs of each job, see ``gpus_a_run``.

    Returns:
        One mapping for each worker.

    Raises:
        ValueError: The workers together need more GPUs than there are.
    """
    import torch

    environments: list[dict[str, str]] = [{} for _ in range(workers)]
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environments = [{"OMP_NUM_THREADS": str(max(1, cores // workers))} for _ in range(workers)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    each = len(there) if gpus < 0 else gpus
    if there and each > 1 and workers * each > len(there):
        raise ValueError(
            f"--workers {workers} with {each} GPUs each need {workers * each}, and there are {len(there)}. Give fewer "
            "--workers, or --trainer.devices a smaller number of GPUs for each."
        )
    for place, environment in enumerate(environments if there and each else ()):
        group = there[place * each :][:each] if each > 1 else [there[place % len(there)]]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(group)
    return environments


def _run_with_ray(jobs: Sequence[Job], workers: int, gpus: int, halt: threading.Event) -> Iterator[tuple[Job, Outcome]]:
    try:
        import ray
    except ImportError as error:
        raise ValueError("--launcher ray needs Ray, which is not installed: pip install clip-suite[ray]") from error
    started_here = not ray.is_initialized()
    if started_here:  # joins the cluster of RAY_ADDRESS, else starts an instance on this machine
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in the place
    # by value: the workers of a cluster need no import path to this file
    ray.cloudpickle.register_pickle_by_value(sys.modules[run_job.__module__])
    total = ray.cluster_resources()
    largest = max(node["Resources"].get("CPU", 1) for node in ray.nodes())  # no job can ask for more than one has
    cores = max(1, min(int(total.get("CPU", 1)) // workers, int(largest)))
    most = int(max(node["Resources"].get("GPU", 0) for node in ray.nodes()))
    gpus = most if gpus < 0 else gpus if most else 0
    remote = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=0)(plain_run)
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(cores)}
    share = f"{cores} of {counted(int(total.get('CPU', 0)), 'core')} and {counted(gpus, 'GPU')}"
    say(f"Ray: {counted(len(jobs), 'job')}, each on {share}")
    left, waiting = list(reversed(jobs)), {}
    try:
        while True:
            while left and len(waiting) < workers and not halt.is_set():
                job = left.pop()
                waiting[remote.remote(tuple(job._replace(environment={**threads, **job.environment})))] = job
                say(f"{job.name} handed to Ray; its log: {Path(job.folder) / LOG}")
            if not waiting:
                return
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(done)
            try:
                outcome = Outcome(*ray.get(done))
            except ray.exceptions.RayError as error:  # the worker or its machine died
                outcome = Outcome(1, 0.0, f"Ray: {str(error).strip().splitlines()[-1][:300]}")
            yield job, outcome
    finally:
        running, end = list(waiting), time.monotonic() + 30
        while running and time.monotonic() < end:
            for task in running:
                ray.cancel(task)  # raises KeyboardInterrupt in run_job, which stops the child
            # and again: a busy worker was seen to miss one, and Ray's own end would leave the child's processes behind
            _, running = ray.wait(running, num_returns=len(running), timeout=2)
        if started_here:
            ray.shutdown()

"""Runs jobs side by side: as processes of this machine, or over the machines of a cluster with Ray."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from callbacks.experiments.grid import counted
from callbacks.experiments.interrupts import terminate_as_interrupt
from callbacks.experiments.jobs import LOG, Job, Outcome, children, plain_run, run_job, stop


def run_jobs(
    jobs: Sequence[Job], launcher: str, workers: int, devices: Any, report: Callable[[Job, Outcome], tuple[str, str]]
) -> None:
    """Run jobs side by side, with a printed line as each starts and ends; those that run are never stopped by others.

    Args:
        jobs: The jobs.
        launcher: ``local`` (processes of this machine) or ``ray`` (of a cluster).
        workers: Jobs at a time, at least 1; for ``ray`` each asks for that share of the cluster's cores.
        devices: The ``trainer.devices`` of the jobs, which says whether a GPU is set aside for each.
        report: Called when a job has ended; returns what to print of it, and why no more jobs are to be started, which
            is empty when nothing speaks against it.

    Raises:
        ValueError: ``report`` told to start no more while some were left or none had ended well, or Ray is not
            installed.
        KeyboardInterrupt: After the children were stopped.
    """
    launch = _run_with_ray if launcher == "ray" else _run_local
    seconds: list[float] = []
    well = 0
    halt, cause = threading.Event(), ""
    with ExitStack() as stack:
        stack.enter_context(terminate_as_interrupt())
        ended = stack.enter_context(closing(launch(jobs, workers, devices, halt)))
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


def _run_local(jobs: Sequence[Job], workers: int, devices: Any, halt: threading.Event) -> Iterator[tuple[Job, Outcome]]:
    from concurrent.futures import Future, ThreadPoolExecutor, as_completed

    slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for environment in worker_environments(workers, devices):
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


def worker_environments(workers: int, devices: Any) -> list[dict[str, str]]:
    """The variables of each worker: its GPU, and its share of the processor's cores.

    Args:
        workers: Number of workers.
        devices: The ``trainer.devices`` of the jobs. A job on one GPU gets a GPU of its own; several workers that
            would each take all of them (``auto``) get one each.

    Returns:
        One mapping for each worker.
    """
    import torch

    environments: list[dict[str, str]] = [{} for _ in range(workers)]
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environments = [{"OMP_NUM_THREADS": str(max(1, cores // workers))} for _ in range(workers)]
    if str(devices) == "1" or (workers > 1 and str(devices) in ("auto", "-1")):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        for place, environment in enumerate(environments):
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return environments


def _run_with_ray(
    jobs: Sequence[Job], workers: int, devices: Any, halt: threading.Event
) -> Iterator[tuple[Job, Outcome]]:
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
    gpus = (int(devices) if str(devices).isdigit() else 1) if total.get("GPU") else 0
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

"""Jobs as processes: what they leave behind, how they die, and that none outlives an interruption."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from callbacks.experiments.jobs import Job, Outcome, run_job
from callbacks.experiments.launchers import gpus_a_run, run_jobs, worker_environments


def job(folder: Path, code: str, name: str = "fold 0") -> Job:
    return Job(name, str(folder), [sys.executable, "-c", code], str(folder.parent))


def run_all(jobs: list[Job], launcher: str = "local", workers: int = 1) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}

    def report(job: Job, outcome: Outcome) -> tuple[str, str]:
        found[job.name] = outcome
        return "ended", ""

    run_jobs(jobs, launcher, workers, 1, report)
    return found


def test_a_job_leaves_its_output_and_a_record(tmp_path) -> None:
    code = "import os, sys; print(os.getcwd()); print(os.environ['WORD'], file=sys.stderr)"
    outcome = run_job(job(tmp_path / "run", code)._replace(environment={"WORD": "hello"}))
    assert (outcome.code, outcome.error) == (0, "")
    assert (tmp_path / "run/log.txt").read_text().splitlines() == [str(tmp_path), "hello"]
    record = json.loads((tmp_path / "run/job.json").read_text())
    assert record["code"] == 0
    assert record["command"][:2] == [sys.executable, "-c"]


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("raise SystemExit('error: no such file')", "exit code 1: error: no such file"),
        ("print('a'); print(); raise SystemExit(3)", "exit code 3: a"),
        ("raise SystemExit(3)", "exit code 3: no output"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL (out of memory?)"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
    ],
)
def test_why_a_job_failed(code: str, wanted: str, tmp_path) -> None:
    assert run_job(job(tmp_path / "run", code)).error == wanted


def test_a_failing_job_does_not_stop_the_others(tmp_path, capsys) -> None:
    jobs = [job(tmp_path / str(n), f"raise SystemExit({n % 2})", f"fold {n}") for n in range(4)]
    found = run_all(jobs, workers=2)
    assert {name: outcome.code for name, outcome in found.items()} == {f"fold {n}": n % 2 for n in range(4)}
    lines = capsys.readouterr().out.splitlines()
    assert sum("started; its log" in line for line in lines) == 4
    assert sum("to go, about" in line for line in lines) == 3


def test_workers_run_side_by_side(tmp_path) -> None:
    code = (  # each waits for the file of the other
        "import pathlib, sys, time; me, other = sys.argv[1:]; pathlib.Path(me).touch()\n"
        "end = time.time() + 20\n"
        "while not pathlib.Path(other).exists():\n"
        "    assert time.time() < end\n"
        "    time.sleep(0.01)"
    )
    jobs = [job(tmp_path / n, code, n) for n in "ab"]
    jobs = [one._replace(command=[*one.command, *names]) for one, names in zip(jobs, ("ab", "ba"), strict=True)]
    assert [outcome.error for outcome in run_all(jobs, workers=2).values()] == ["", ""]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("local", signal.SIGTERM),
        ("local", signal.SIGHUP),  # of a closed terminal
        pytest.param("ray", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_an_interruption_stops_the_children_and_theirs(launcher: str, number: int, tmp_path) -> None:
    if launcher == "ray":
        pytest.importorskip("ray")
    code = (
        "import os, pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path('pids.part').write_text(f'{os.getpid()} {child.pid}')\n"
        "os.rename('pids.part', 'pids')\n"
        "time.sleep(60)"
    )

    def interrupt() -> None:
        end = time.monotonic() + 90  # Ray starts slowly on a busy machine
        while not (tmp_path / "pids").exists() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), number)
        if launcher == "local":
            time.sleep(0.01)
            os.kill(os.getpid(), number)  # a second one does not cut the stopping short

    thread = threading.Thread(target=interrupt)
    before = signal.getsignal(number)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_all([job(tmp_path / "run", code), job(tmp_path / "next", "pass", "fold 1")], launcher)
    thread.join()
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    end = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not [pid for pid in pids if alive(pid)]
    assert not (tmp_path / "next/log.txt").exists()  # what had not begun is not begun
    assert signal.getsignal(number) == before


def test_a_second_interruption_does_not_cut_the_stopping_short(tmp_path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_): time.sleep(0.5); pathlib.Path('ended').touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)"
    )

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        for _ in range(3):  # as Ray does until the task has ended
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    thread = threading.Thread(target=interrupt)
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_job(job(tmp_path / "run", code))
    thread.join()
    assert (tmp_path / "ended").exists()
    assert signal.getsignal(signal.SIGINT) == before


def test_a_worker_that_misses_an_interruption_is_interrupted_again(tmp_path, monkeypatch) -> None:
    cancelled: list[str] = []

    def wait(tasks: list[str], num_returns: int, timeout: float | None = None) -> tuple[list[str], list[str]]:
        if timeout is None:  # while the jobs run
            raise KeyboardInterrupt
        return (tasks, []) if len(cancelled) == 3 else ([], tasks)

    ray = SimpleNamespace(
        is_initialized=lambda: True,
        cloudpickle=SimpleNamespace(register_pickle_by_value=lambda module: None),
        cluster_resources=lambda: {"CPU": 2},
        nodes=lambda: [{"Resources": {"CPU": 2}}],
        remote=lambda **_: lambda function: SimpleNamespace(remote=lambda fields: fields[0]),
        wait=wait,
        cancel=cancelled.append,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(KeyboardInterrupt):
        run_all([job(tmp_path / "run", "pass")], "ray")
    assert cancelled == ["fold 0"] * 3


def test_below_nohup_a_closed_terminal_stops_nothing(tmp_path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        code = "import os, signal; os.kill(os.getppid(), signal.SIGHUP)"
        assert run_all([job(tmp_path / "run", code)])["fold 0"].code == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_each_worker_has_its_gpu_and_its_cores(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    three = worker_environments(3, 1)  # which share the two
    assert [entry["CUDA_VISIBLE_DEVICES"] for entry in three] == ["4", "7", "4"]
    assert {entry["OMP_NUM_THREADS"] for entry in three} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    auto = gpus_a_run({"accelerator": "gpu", "devices": "auto"})
    for workers, wanted in ((2, ["4", "7"]), (1, ["4"])):  # a run is the same whatever the number of workers
        assert worker_environments(workers, auto) == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in wanted]
    assert worker_environments(2, 0) == [{}, {}]
    assert worker_environments(1, -1) == [{"CUDA_VISIBLE_DEVICES": "4,7"}]
    for gpus in (2, -1):
        with pytest.raises(ValueError, match=r"--workers 2 with 2 GPUs each need 4, and there are 2\."):
            worker_environments(2, gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert [entry["CUDA_VISIBLE_DEVICES"] for entry in worker_environments(2, 2)] == ["0,1", "2,3"]


def test_what_speaks_against_more_jobs_starts_no_more(tmp_path) -> None:
    jobs = [job(tmp_path / str(n), "raise SystemExit(2)", f"fold {n}") for n in range(3)]
    with pytest.raises(ValueError, match=r"no such key\. The other 2 were not started: mend this first\."):
        run_jobs(jobs, "local", 1, 1, lambda job, outcome: ("FAILED", "no such key."))
    assert [(tmp_path / str(n)).exists() for n in range(3)] == [True, False, False]


def test_a_mistake_of_the_only_or_last_job_is_raised_unless_one_ended_well(tmp_path) -> None:
    def told(job: Job, outcome: Outcome) -> tuple[str, str]:
        return ("FAILED", "no such key.") if outcome.code == 2 else ("", "")

    def exits(*codes: int) -> list[Job]:
        return [job(tmp_path / f"{n}", f"raise SystemExit({code})", f"fold {n}") for n, code in enumerate(codes)]

    for codes in ((2,), (1, 2)):
        with pytest.raises(ValueError, match=r"^no such key\.$"):
            run_jobs(exits(*codes), "local", 1, 1, told)
    run_jobs(exits(0, 2), "local", 1, 1, told)


def test_a_missing_ray_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install clip-suite\[ray\]"):
        run_all([job(tmp_path / "a", "pass")], launcher="ray")


@pytest.mark.slow
def test_the_same_jobs_on_a_local_ray_with_two_workers(tmp_path, capsys) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        codes = ["import os; print('threads', os.environ['OMP_NUM_THREADS'])", "raise SystemExit('error: no')"]
        codes.append("import os; os.kill(os.getpid(), 9)")
        jobs = [job(tmp_path / str(n), code, f"fold {n}") for n, code in enumerate(codes)]
        found = run_all(jobs, launcher="ray", workers=2)
    finally:
        ray.shutdown()
    assert {name: outcome.error for name, outcome in found.items()} == {
        "fold 0": "",
        "fold 1": "exit code 1: error: no",
        "fold 2": "killed by SIGKILL (out of memory?)",
    }
    assert (tmp_path / "0/log.txt").read_text().startswith("threads ")
    assert "each on 1 of 2 cores" in capsys.readouterr().out

"""Where a run writes its curves: a CSV file that survives a resume, and W&B that falls back to offline."""

from __future__ import annotations

import csv
import netrc
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class CurveWriter(ExperimentWriter):
    """Writes ``metrics.csv`` without deleting what an earlier process wrote there.

    Args:
        log_dir: Folder of the run.
        earlier: ``keep`` the rows of earlier processes; ``rewind`` them to the first step that this process logs, as a
            resumed training repeats the steps after its checkpoint; ``restart`` moves them to ``metrics.previous.csv``.
    """

    def __init__(self, log_dir: str, earlier: Literal["keep", "rewind", "restart"] = "keep") -> None:
        super().__init__(log_dir)
        self.earlier = earlier
        file = Path(self.metrics_file_path)
        if file.is_file() and earlier != "restart":
            with file.open(newline="", encoding="utf-8") as lines:
                self.metrics_keys = list(csv.DictReader(lines).fieldnames or [])

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Record one row; the first one decides on the earlier rows, as a fit that is refused must leave them."""
        file = Path(self.metrics_file_path)
        if self.earlier == "restart" and file.is_file():
            file.replace(file.with_name("metrics.previous.csv"))
        if self.earlier == "rewind" and step is not None:
            self._drop_rows_from(step)
        if self.earlier == "restart" or step is not None:
            self.earlier = "keep"
        super().log_metrics(metrics_dict, step)

    def _drop_rows_from(self, step: int) -> None:
        file = Path(self.metrics_file_path)
        if not file.is_file():
            return
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if int(row["step"] or 0) < step]
        with file.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)

    def _check_log_dir_exists(self) -> None:
        """Accept a folder with files in it: a run resumes and is tested in the folder where it was trained."""


class RunCSVLogger(CSVLogger):
    """A CSVLogger that writes ``metrics.csv`` straight into the folder of the run, and keeps earlier rows.

    Args:
        save_dir: Folder of the run.
        earlier: What becomes of the rows that stand there: ``keep``, ``rewind`` (resumed training), ``restart``.
    """

    def __init__(self, save_dir: str, earlier: Literal["keep", "rewind", "restart"] = "keep") -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=1)
        self.earlier = earlier

    @property
    def root_dir(self) -> str:
        """Folder of the run."""
        return self.save_dir

    @property
    def log_dir(self) -> str:
        """Folder of the run."""
        return self.save_dir

    @property
    def experiment(self) -> ExperimentWriter:
        """The writer, made at first use, on the first process alone."""
        if self._experiment is None and rank_zero_only.rank == 0:
            self._experiment = CurveWriter(self.log_dir, self.earlier)
        return self._experiment if self._experiment is not None else super().experiment


def wandb_problem(timeout: float = 5.0) -> str | None:
    """Why a W&B run cannot be sent while it runs.

    Args:
        timeout: Seconds to wait for the server.

    Returns:
        The reason, or None when there is a key and the server answers.
    """
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _key_in_netrc(url)):
        return "no W&B key was found (WANDB_API_KEY, or `wandb login`)"
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError:
        return None  # the server answered
    except (OSError, ValueError) as error:
        return f"{url} cannot be reached ({getattr(error, 'reason', error)})"
    return None


def fall_back_to_offline() -> str | None:
    """Switch W&B to offline when it could not send the run. Must be called before W&B is used in the process.

    Returns:
        The reason, or None when nothing was switched, because W&B works or ``WANDB_MODE`` was chosen already.
    """
    if os.environ.get("WANDB_MODE"):
        return None
    reason = wandb_problem()
    if reason is not None:
        os.environ["WANDB_MODE"] = "offline"
    return reason


def end_wandb_run(logger: object, failed: bool) -> Path | None:
    """End the W&B run of a logger, so that the next command of this process starts its own instead of joining it.

    Args:
        logger: Any logger.
        failed: Whether the run is to be marked as failed.

    Returns:
        The folder to hand to ``wandb sync``; None for other loggers and for runs that were sent.
    """
    run: Any = getattr(logger, "_experiment", None)  # not .experiment, which would start a run; a dummy on other ranks
    if type(run).__module__.split(".")[0] != "wandb":
        return None
    settings = getattr(run, "settings", None)
    folder = Path(str(getattr(run, "dir", ""))).parent
    run.finish(exit_code=int(failed))
    offline = getattr(settings, "mode", "") in ("offline", "dryrun") or folder.name.startswith("offline-run-")
    return folder if offline and folder.is_dir() else None


def _key_in_netrc(url: str) -> bool:
    """Whether ``~/.netrc`` (or the file in NETRC) holds a key for the host of ``url``."""
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    host = urllib.parse.urlsplit(url).hostname or ""
    for name in names:
        try:
            if netrc.netrc(os.path.expanduser(name)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False

"""Report of mined hard negatives: counts, rates, and the files to look at."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_modules.detection.records import HardNegatives
from lightning_modules.metrics.tide import TYPES

Report = dict[str, dict[str, Any]]


def make_report(counts: Mapping[str, int], hard: HardNegatives) -> Report:
    """Sum up what was mined; ``HardNegativeMiner.generate_report`` says what it holds.

    Args:
        counts: ``total_predictions``, ``true_positives``, ``false_positives``, ``false_negatives``,
            ``below_threshold``, ``ignored`` and the number of errors of each of ``TYPES``.
        hard: The hard negatives.

    Returns:
        ``statistics`` and ``metrics``.
    """
    total, hits, false, lost = (
        counts[name] for name in ("total_predictions", "true_positives", "false_positives", "false_negatives")
    )
    statistics = {
        "total_predictions": total,
        "hard_negatives": len(hard),
        "false_positives": false,
        "false_negatives": lost,
        "true_positives": hits,
        "below_threshold": counts["below_threshold"],
        "ignored": counts["ignored"],
        "suspected_label_errors": int(hard.suspected_label_error.sum()),
        "types": {name: counts[name] for name in TYPES},
    }
    metrics = {
        "precision": _share(hits, hits + false),
        "recall": _share(hits, hits + lost),
        "f1_score": _share(2 * hits, 2 * hits + false + lost),
        "hard_negative_rate": _share(len(hard), total),
    }
    return {"statistics": statistics, "metrics": metrics}


def save_report(report: Report, hard: HardNegatives, folder: Path) -> None:
    """Write ``report.json``, ``hard_negatives.jsonl`` and copies of the images whose names are files.

    Args:
        report: Of ``make_report``.
        hard: The hard negatives.
        folder: Made when needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "hard_negatives.jsonl").write_text("".join(json.dumps(record._asdict()) + "\n" for record in hard))
    for index, name in set(zip(hard.image_index.tolist(), hard.image_id.tolist(), strict=True)):
        if name is not None and Path(name).is_file():
            shutil.copyfile(name, folder / f"{index:06d}_{Path(name).name}")


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan

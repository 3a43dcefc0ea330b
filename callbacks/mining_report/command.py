"""What the command line calls for ``mine``: hard negatives of a file of predictions, without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from callbacks.experiments.tables import NOTHING
from callbacks.mining_report.mined import MiningRound, to_csv
from callbacks.mining_report.write import write_mining_report
from callbacks.run_files import replace_file
from lightning_modules.metrics.detection_matching import flatten_detections


def mine(
    read: Callable[..., Any],
    miner: Callable[..., Any],
    *,
    predictions: str,
    annotations: str,
    images: str | None = None,
    out: str = "runs/mine",
    strategy: str = "confidence_based",
    confidence_threshold: float | list[float] = 0.5,
    iou_threshold: float = 0.5,
    hard_negative_ratio: float = 0.3,
    crops: int = 48,
) -> None:
    """Mine hard negatives from a file of predictions, and write tables, crops of the hardest and a report.

    Args:
        read: ``read_coco_results``.
        miner: ``HardNegativeMiner``.
        predictions: COCO's list of results: image_id, category_id, bbox, score; `predict` writes results.json.
        annotations: COCO file with the true boxes.
        images: Folder of the pictures, for crops; null makes none.
        out: Folder to write to.
        strategy: confidence_based, iou_based or tide.
        confidence_threshold: Confidence from which on a prediction counts; one, or a list with one for each class.
        iou_threshold: IoU from which on a prediction finds an object.
        hard_negative_ratio: Share of hard images that weights.csv aims at.
        crops: Most errors to show as pictures.

    Raises:
        FileNotFoundError: A file or a picture is missing.
        ValueError: Wrong settings or a damaged file.
    """
    if strategy == "loss_based":
        raise ValueError(
            "strategy is loss_based, which needs the loss of each image; a file of predictions has none. Take "
            "confidence_based, iou_based or tide, or mine while training."
        )
    if crops < 0:
        raise ValueError(f"crops is {crops}; it must be at least 0.")
    mining = miner(confidence_threshold, iou_threshold, hard_negative_ratio, strategy=strategy)
    data = read(Path(predictions), Path(annotations), None if images is None else Path(images))
    classes = len(data.class_names)
    if isinstance(confidence_threshold, list) and len(confidence_threshold) != classes:
        raise ValueError(
            f"confidence_threshold lists {len(confidence_threshold)} values and {annotations} {classes} categories; "
            "give one for each, in the order of that file."
        )
    records = mining.find_hard_negatives(data.predictions, data.truths, [str(key) for key in data.image_ids])
    settings = {
        "strategy": strategy,
        "confidence_threshold": confidence_threshold,
        "iou_threshold": iou_threshold,
        "hard_negative_ratio": hard_negative_ratio,
        "predictions": predictions,
        "annotations": annotations,
        "images": images,
    }
    mined = MiningRound(
        mining.generate_report(),
        records,
        flatten_detections(data.predictions, data.truths),
        data.class_names,
        data.file_names,
        None if images is None else data.picture,
        f"Hard negatives of {Path(predictions).name} on {Path(annotations).name}",
        settings,
    )
    folder, number = Path(out), len(data.file_names)
    hardness, weights = mining.image_hardness(number).tolist(), mining.weights(number).tolist()
    columns = {"index": range(number), "image_id": data.image_ids, "file_name": data.file_names}
    columns |= {"hardness": hardness, "weight": weights}
    summary = write_mining_report(folder, mined, crops)
    replace_file(folder / "weights.csv", lambda file: file.write(to_csv(columns)))
    print_summary(mined, summary, folder)
    lifted = sum(weight > min(weights) for weight in weights)
    print(f"{sum(value > 0 for value in hardness)} of {number} images have hard negatives; weights.csv lifts {lifted}")


def print_summary(mined: MiningRound, summary: Mapping[str, float], folder: Path) -> None:
    """Print counts and rates, the types of error with what they cost, and where all of it stands.

    Args:
        mined: The round.
        summary: Of ``write_mining_report``.
        folder: Where it was written.
    """
    from rich.console import Console

    statistics, metrics = mined.report["statistics"], mined.report["metrics"]
    counts = {name: f"{value}" for name, value in statistics.items() if name != "types"}
    rates = {name: NOTHING if math.isnan(value) else f"{value:.4f}" for name, value in metrics.items()}
    costs = [
        [name, str(kinds), f"{summary[f'num_{name}']:.0f}", f"{100 * summary[f'dap_{name}']:.2f}"]
        for name, kinds in statistics["types"].items()
    ]
    console = Console()
    console.print(mined.title, style="bold", markup=False)
    console.print(_table(["", ""], [*counts.items(), *rates.items()]))
    console.print(_table(["type", "confident errors", "errors, all predictions", "dAP (points)"], costs))
    lines = [
        f"AP at IoU 0.50: {summary['ap_50']:.4f} [{summary['ap_50_low']:.4f}, {summary['ap_50_high']:.4f}], "
        f"with shuffled confidences {summary['ap_50_shuffled']:.4f}",
        f"n: {mined.data.num_images} images, {int((~mined.data.truth_ignored).sum())} true boxes",
        f"written to {folder} (report.html, report.json, hard_negatives.csv and .parquet, label_errors.csv, "
        "weights.csv)",
    ]
    if 0 < statistics["total_predictions"] == statistics["below_threshold"]:
        highest = f"{mined.data.scores.max():.3g}"
        lines.insert(
            0, f"No prediction reaches its confidence_threshold. Set it below the highest confidence, {highest}."
        )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table

    table = Table(show_header=any(head))
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    return table

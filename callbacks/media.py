"""Pictures of a retrieval test, in the folder of the run and in W&B."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.charts import Curve, curves_of, precision_recall_figure
from callbacks.code_rows import ROLES, Rows, gather_rows, has_codes, rows_of_batch, unpacked
from callbacks.panels import Answer, Example, Found, images_figure, texts_figure
from callbacks.run_files import replace_file, run_folder
from lightning_modules.metrics.hamming_index import HammingIndex

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RetrievalPanel(Callback):
    """Draws, after ``test``, what some queries found: texts with their nearest images, images with their captions.

    Hits (an item that shares a label with the query) are framed green, misses red. ``pictures/`` in the folder of the
    run receives ``text_to_image.png``, ``image_to_text.png`` and ``precision_recall.png``; a WandbLogger receives the
    same pictures, the precision-recall curves by Hamming radius as a chart and as a table, and a table of the figures
    by protocol and direction. The queries stand at even distances among those that have a label: none is picked.

    It reaches module and data through a small protocol:

    - ``test_step`` returns a dict with ``index`` (B,), ``image_codes`` and ``text_codes`` (B, bits), where bit =
      ``value > 0``; the batch holds ``labels`` (B, C); loader 0 is the query, loader 1 the database.
    - ``module.results``, if there: for each protocol and direction the dict of figures of ``HammingRetrieval``.
    - ``datamodule.examples(split, rows)``, if there: for each row a picture (or None) and a text.

    Args:
        num_queries: Queries in each picture, at least 1.
        top_k: Items shown for each, at least 1.

    Raises:
        ValueError: ``num_queries`` or ``top_k`` below 1.
    """

    def __init__(self, num_queries: int = 6, top_k: int = 10) -> None:
        if num_queries < 1 or top_k < 1:
            raise ValueError(f"num_queries is {num_queries} and top_k is {top_k}; both must be at least 1.")
        self.num_queries = num_queries
        self.top_k = top_k
        self.pictures: dict[str, Path] = {}
        self._parts: dict[str, list[Rows]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self.pictures, self._parts = {}, {role: [] for role in ROLES}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the codes."""
        if has_codes(outputs) and dataloader_idx < len(ROLES):
            self._parts[ROLES[dataloader_idx]].append(rows_of_batch(outputs, batch["labels"]))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, on the first process."""
        folder, rows = run_folder(trainer) / "pictures", gather_rows(self._parts)
        self._parts = {}
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        figures: dict[str, Figure] = {}
        if all(role in rows for role in ROLES):
            examples = getattr(getattr(trainer, "datamodule", None), "examples", None)
            to_images = answers(rows, "text", "image", self.num_queries, self.top_k, examples)
            to_texts = answers(rows, "image", "text", self.num_queries, self.top_k, examples)
            figures["text_to_image"] = images_figure(to_images, "Text queries and their nearest images")
            figures["image_to_text"] = texts_figure(to_texts, "Image queries and their nearest captions")
        else:
            rank_zero_warn(
                f"RetrievalPanel: no pictures of what was retrieved, because test_step of {type(pl_module).__name__} "
                "returned no 'index', 'image_codes' and 'text_codes' for both a query and a database loader."
            )
        results = getattr(pl_module, "results", {})
        curves = curves_of(results)
        if curves:
            figures["precision_recall"] = precision_recall_figure(curves)
        for name, figure in figures.items():
            self.pictures[name] = folder / f"{name}.png"
            replace_file(self.pictures[name], lambda file, figure=figure: figure.savefig(file, format="png"))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                log_to_wandb(logger, self.pictures, curves, results, trainer.global_step)


def spread_queries(labels: np.ndarray, number: int) -> np.ndarray:
    """Rows at even distances among those that have a label.

    Args:
        labels: (Q, C) bool.
        number: How many; fewer when there are fewer.

    >>> spread_queries(np.array([[1], [0], [1], [1], [1], [1]]) > 0, 3).tolist()
    [0, 3, 5]
    """
    labelled = np.flatnonzero(labels.any(axis=1)) if labels.any() else np.arange(len(labels))
    return labelled[np.linspace(0, len(labelled) - 1, min(number, len(labelled))).round().astype(int)]


def nearest(rows: dict[str, Rows], chosen: np.ndarray, source: str, target: str, k: int) -> tuple[np.ndarray, ...]:
    """The nearest database items of some queries.

    Args:
        rows: Query and database, with labels.
        chosen: (q,) rows of the query.
        source: Modality of the query's codes.
        target: Modality of the database's codes.
        k: Items a query; fewer when the database is smaller.

    Returns:
        Three (q, k): database rows, Hamming distances, whether the item shares a label with the query.
    """
    query, database = rows["query"], rows["database"]
    index = HammingIndex(int(query["bits"][0]))
    index.add(unpacked(database, target), [str(row) for row in range(len(database["index"]))])
    ids, distances = index.search(unpacked(query, source)[chosen], min(k, len(index)))
    places = np.array(ids, dtype=np.int64)
    hits = (database["labels"][places] & query["labels"][chosen][:, None]).any(axis=-1)
    return places, distances, hits


def answers(
    rows: dict[str, Rows], source: str, target: str, num_queries: int, top_k: int, examples: Any | None
) -> list[Answer]:
    """Some queries with what they find, as people see it.

    Args:
        rows: Query and database, with labels.
        source: Modality of the queries.
        target: Modality of the database.
        num_queries: How many queries.
        top_k: Items a query.
        examples: ``(split, rows) -> [(picture or None, text)]``; None = items are shown by their position.
    """
    chosen = spread_queries(rows["query"]["labels"], num_queries)
    places, distances, hits = nearest(rows, chosen, source, target, top_k)

    def shown(role: str, which: np.ndarray) -> dict[int, Example]:
        positions = [int(i) for i in rows[role]["index"][which]]
        found = [(None, f"{role} item {i}") for i in positions] if examples is None else examples(role, positions)
        return {int(row): Example(*example) for row, example in zip(which, found, strict=True)}

    queries, items = shown("query", chosen), shown("database", np.unique(places))
    return [
        (
            queries[int(query)],
            [
                Found(items[int(row)], int(distance), bool(hit))
                for row, distance, hit in zip(places[i], distances[i], hits[i], strict=True)
            ],
        )
        for i, query in enumerate(chosen)
    ]


def log_to_wandb(
    logger: WandbLogger,
    pictures: dict[str, Path],
    curves: dict[str, Curve],
    results: dict[str, dict[str, Tensor]],
    step: int,
) -> None:
    """Send pictures, precision-recall curves and figures to a W&B run.

    Args:
        logger: The logger.
        pictures: Files by name.
        curves: By protocol and direction.
        results: Figures by protocol and direction.
        step: Step of the run.
    """
    import wandb

    for name, file in pictures.items():
        logger.log_image(f"test/{name}", [str(file)], step=step)
    if not curves:
        return
    names = list(curves)
    recalls, precisions = ([getattr(c, part).tolist() for c in curves.values()] for part in ("recall", "precision"))
    chart = wandb.plot.line_series(recalls, precisions, names, "Precision over recall by Hamming radius", "recall")
    logger.log_metrics({"test/precision_recall_curve": chart}, step=step)
    points = [[name, *point] for name, c in curves.items() for point in np.stack(c[:4], axis=1).tolist()]
    columns = ["protocol and direction", "radius", "precision", "recall", "answered"]
    logger.log_table("test/precision_recall_by_radius", columns, points, step=step)
    figures = [name for name, value in next(iter(results.values())).items() if value.ndim == 0]
    rows = [[name, *(float(values[figure]) for figure in figures)] for name, values in results.items()]
    logger.log_table("test/figures", ["protocol and direction", *figures], rows, step=step)

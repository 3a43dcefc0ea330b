"""CorrCLIP: open-vocabulary segmentation without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_modules.backbones.encoder import FrozenEncoder
from lightning_modules.backbones.guide import ClipGuide, Guide
from lightning_modules.backbones.prompts import class_embeddings, prompt_templates
from lightning_modules.backbones.vit import vision_transformer
from lightning_modules.base import BaseModule
from lightning_modules.corrclip.correlation import Unsegmented
from lightning_modules.corrclip.features import Similarity
from lightning_modules.corrclip.segmenter import Segmenter
from lightning_modules.metrics.segmentation import SegmentationScores
from lightning_modules.metrics.segmentation_controls import majority_class
from lightning_modules.metrics.segmentation_intervals import bootstrap_mean_iou

Batch = dict[str, Any]
HEADLINE = ("miou", "pixel_accuracy", "boundary_iou")


class CorrClipSegmentation(BaseModule):
    """Label maps from CLIP's patches, whose correlations a guide and regions reconstruct; nothing is trained.

    The defaults are those of the reference code; the rows of the published ablation are its settings
    (``features.corrclip_features``).

    Args:
        encoder: The image-text model; its image tower must be a ViT.
        guide: Guide of the correlations; None = the queries and keys of the image tower itself.
        class_lines: Classes in place of the data's, ways to name one separated by ``"; "``.
        templates: Prompt templates: a name of ``backbones.prompts``, or a list.
        short: Shorter side of the resized picture in pixels; the reference takes 448 for ADE20K and Cityscapes.
        crop: Side of a window; 224 for Cityscapes.
        stride: Pixels from one window to the next.
        window_batch: Windows that go through the networks at once.
        alpha: Weight of the spatial branch.
        beta: Weight of the semantic branch.
        tau: Temperature of the guide's similarities.
        eps: Distance up to which regions are merged; None = none are.
        similarity: Whose similarities weigh the patches.
        scope: Let patches look at their region only.
        unsegmented: Rule of the part in no region: ``union`` (reference code) or ``outer`` (the paper).
        scale: Factor of the cosine similarities before the softmax.
        threshold: Probability below which a pixel becomes class 0; None = the data's.
        correction: Give each region the class of most of its pixels.

    Reference:
        Zhang et al., CorrCLIP: Reconstructing Patch Correlations in CLIP for Open-Vocabulary Semantic Segmentation,
        ICCV 2025.
    """

    ignored_hparams: ClassVar[Sequence[str]] = ("encoder", "guide")

    def __init__(
        self,
        encoder: FrozenEncoder,
        guide: Guide | None = None,
        class_lines: list[str] | None = None,
        templates: str | list[str] = "imagenet",
        short: int = 336,
        crop: int = 336,
        stride: int = 112,
        window_batch: int = 8,
        alpha: float = 1.0,
        beta: float = 0.5,
        tau: float = 0.25,
        eps: float | None = 0.2,
        similarity: Similarity = "guide",
        scope: bool = True,
        unsegmented: Unsegmented = "union",
        scale: float = 40.0,
        threshold: float | None = None,
        correction: bool = True,
    ) -> None:
        if min(short, crop, stride, window_batch) < 1 or scale <= 0 or tau <= 0:
            raise ValueError(
                f"short is {short}, crop {crop}, stride {stride}, window_batch {window_batch}, scale {scale} and tau "
                f"{tau}; all must be positive."
            )
        super().__init__()
        self.encoder, self.given_guide = encoder, guide

    def configure_model(self) -> None:
        """Load the networks and encode the classes, once they are known."""
        if hasattr(self, "segmenter"):
            return
        p, data = self.hparams, getattr(self._trainer, "datamodule", None)
        lines = list(p["class_lines"] or getattr(data, "class_lines", ()))
        queries, class_of = split_lines(lines)
        self.names = list(getattr(data, "class_names", ())) if p["class_lines"] is None else first_names(lines)
        text = class_embeddings(self.encoder, queries, prompt_templates(p["templates"]))
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("class_of", torch.tensor(class_of), persistent=False)
        towers = self.encoder.towers
        visual = vision_transformer(towers.visual, positions="bicubic")
        self.segmenter = Segmenter(
            visual,
            self.given_guide or ClipGuide(visual, towers.mean, towers.std),
            towers.mean,
            towers.std,
            p["short"],
            p["crop"],
            p["stride"],
            p["window_batch"],
            {name: p[name] for name in ("alpha", "beta", "tau", "eps", "similarity", "scope", "unsegmented")},
            p["scale"],
            p["threshold"] if p["threshold"] is not None else getattr(data, "probability_threshold", 0.0),
            p["correction"],
        )
        self.scores = SegmentationScores(len(lines), getattr(data, "ignore_index", 255))

    def _place_networks(self) -> None:
        """Encoder and guide are no part of the module; they follow it to its device."""
        self.encoder.towers.model.to(self.device)
        if self.given_guide is not None:
            self.given_guide.model.to(self.device)

    on_validation_start = on_test_start = on_predict_start = _place_networks

    def segment(self, batch: Batch) -> list[Tensor]:
        """Label maps (H, W) int64 of the pictures of a batch, by its ``image`` and ``instance_mask``."""
        pairs = zip(batch["image"], batch["instance_mask"], strict=True)
        return [self.segmenter(image, ids, self.text, self.class_of, len(self.names)) for image, ids in pairs]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Score a batch; what pictures of it need: label maps ``found`` and class ``names``."""
        found = self.segment(batch)
        self.scores.update(found, batch["target"], batch["index"])
        return {"found": found, "names": self.names}

    test_step = validation_step

    def _log_scores(self, part: str) -> None:
        values = self.scores.compute()
        self.num_scored = int(values["num_images"])
        values["boundary_iou"] = values.pop("boundary_miou")  # named apart: the floor of miou is none of it
        self.log_dict({f"{part}/{name}": value for name, value in values.items()}, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("val")
        self.scores.reset()

    def on_test_epoch_end(self) -> None:
        """Log the scores with interval and floor, and make the table by class."""
        self._log_scores("test")
        counts, _ = self.scores.collected()
        _, low, high = bootstrap_mean_iou(counts)
        floor = majority_class(counts)
        values = {"miou_low": low, "miou_high": high, "random_miou": floor["miou"]}
        values["random_pixel_accuracy"] = floor["pixel_accuracy"]
        self.log_dict({f"test/{name}": value for name, value in values.items()}, sync_dist=True)
        columns = self.scores.per_class()
        rows = [[name, *(float(v[k]) for v in columns.values())] for k, name in enumerate(self.names)]
        self.tables = {"classes.csv": (["class", *columns], rows)}
        self.scores.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """The label map ``labels`` of each picture, with its ``id``, ``index`` and the ``names`` of the classes."""
        rows = zip(self.segment(batch), batch["id"], batch["index"].tolist(), strict=True)
        return [{"labels": found.cpu(), "id": name, "index": index, "names": self.names} for found, name, index in rows]

    def result_notes(self) -> dict[str, Any]:
        """What the figures mean."""
        return {
            "n_images": getattr(self, "num_scored", 0),
            "convention": f"{self.scores.convention}; floor: every pixel of the class with most pixels",
            "headline": list(HEADLINE),
        }

    def refuse_to_train(self, *_: Any) -> Any:
        """What Lightning calls to train; it looks for both names first."""
        raise ValueError("CorrCLIP needs no training: run test, or predict on a folder of pictures.")

    training_step = configure_optimizers = refuse_to_train


def split_lines(lines: Sequence[str]) -> tuple[list[str], list[int]]:
    """Queries and the class of each.

    Args:
        lines: C class lines, ways to name a class separated by ``"; "``.

    Returns:
        Q queries, and Q classes, ascending.

    Raises:
        ValueError: No class, or a class without a name or with the name of another.

    >>> split_lines(["sky; wall", "cat"])
    (['sky', 'wall', 'cat'], [0, 0, 1])
    """
    if not lines:
        raise ValueError("There is no class. Use segmentation data, or set model.init_args.class_lines, as [cat, dog].")
    queries = [(name.strip(), number) for number, line in enumerate(lines) for name in line.split("; ")]
    firsts = first_names(lines)
    if len(set(firsts)) < len(firsts) or not all(name for name, _ in queries):
        double = next((name for name in firsts if firsts.count(name) > 1), "")
        raise ValueError(f"Class '{double}' occurs twice or has no name. Name each class once.")
    return [name for name, _ in queries], [number for _, number in queries]


def first_names(lines: Sequence[str]) -> list[str]:
    """The first way to name each class."""
    return [line.split("; ")[0].strip() for line in lines]

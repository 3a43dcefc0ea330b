"""CorrCLIP: open-vocabulary segmentation without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_modules.backbones.encoder import FrozenEncoder
from lightning_modules.backbones.guide import ClipGuide, Guide
from lightning_modules.backbones.vit import vision_transformer
from lightning_modules.base import BaseModule
from lightning_modules.corrclip.correlation import Unsegmented
from lightning_modules.corrclip.evaluation import CONTROLS, FLOOR, Evaluation, benchmark_rows, random_text
from lightning_modules.corrclip.features import Similarity, check_settings
from lightning_modules.corrclip.prompts import Classes, first_names, prompt_classes, read_lines, split_lines
from lightning_modules.corrclip.segmenter import Segmenter

Batch = dict[str, Any]
HEADLINE = ("miou", "pixel_accuracy", "boundary_iou", "miou_random_text", "miou_oracle")
SIZES = {"short": 336, "crop": 336, "stride": 112}  # of the reference, where the data says nothing


class CorrClipSegmentation(BaseModule):
    """Label maps from CLIP's patches, whose correlations a guide and regions reconstruct; nothing is trained.

    The defaults are those of the reference code; the rows of the published ablation are its settings
    (``features.corrclip_features``). Data that holds several ``sets`` is scored set by set.

    Args:
        encoder: The image-text model; its image tower must be a ViT. Its own ``precision`` is that of the class names;
            the pictures' is ``trainer.precision``.
        guide: Guide of the correlations, brought to the trainer's device; None = the queries and keys of the image
            tower itself.
        class_lines: Classes in place of the data's, ways to name one separated by ``"; "``: a list, or a text file with
            one class a line (a long list takes the command line minutes to read).
        templates: Prompt templates: a name of ``backbones.prompts``, or a list.
        text_cache: Folder where the embeddings of the classes are kept; None = nowhere.
        short: Shorter side of the resized picture in pixels; None = the reference's for the data (336, or 448).
        crop: Side of a window; None likewise (336, or 224).
        stride: Pixels from one window to the next; None likewise (112).
        window_batch: Windows that go through the networks at once.
        guide_once: The guide sees each picture once as a whole, in place of each window: faster, other figures.
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

    Raises:
        ValueError: A size, the scale or tau is not positive, the threshold is no probability, or settings do not fit
            together.

    Reference:
        Zhang et al., CorrCLIP: Reconstructing Patch Correlations in CLIP for Open-Vocabulary Semantic Segmentation,
        ICCV 2025.
    """

    ignored_hparams: ClassVar[Sequence[str]] = ("encoder", "guide")

    def __init__(
        self,
        encoder: FrozenEncoder,
        guide: Guide | None = None,
        class_lines: list[str] | str | None = None,
        templates: str | list[str] = "imagenet",
        text_cache: str | None = "cache/text",
        short: int | None = None,
        crop: int | None = None,
        stride: int | None = None,
        window_batch: int = 8,
        guide_once: bool = False,
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
        if any(value is not None and value <= 0 for value in (short, crop, stride, window_batch, scale, tau)):
            raise ValueError(
                f"short is {short}, crop {crop}, stride {stride}, window_batch {window_batch}, scale {scale} and tau "
                f"{tau}; all must be positive."
            )
        if not 0 <= (threshold or 0.0) <= 1:
            raise ValueError(f"threshold is {threshold}; a probability lies between 0 and 1.")
        check_settings(similarity, scope, alpha, beta, eps)  # before masks are made and networks loaded
        super().__init__()
        self.encoder, self.given_guide = encoder, guide

    def configure_model(self) -> None:
        """Load the networks, and encode the classes of the data before anything is made of its images.

        Without a trainer, ``segmenter`` takes any picture, with what ``prompt`` makes of class lines.
        """
        data = self.data
        sets = [] if self._trainer is None else getattr(data, "sets", None) or [data]
        asked = [self._asked(each) for each in sets]  # before networks are loaded: a mistake costs no download
        if not hasattr(self, "segmenter"):
            self.segmenter = self._load()
        if self._trainer is None:
            return
        self.classes = [replace(self.prompt(lines), names=tuple(names)) for lines, names in asked]
        self.segmenters = [self._segmenter(each) for each in sets]
        self.evaluations = nn.ModuleList(
            Evaluation(getattr(each, "benchmark", ""), len(classes.names), getattr(each, "ignore_index", 255))
            for each, classes in zip(sets, self.classes, strict=True)
            if not self.trainer.predicting
        )

    def _load(self) -> Segmenter:
        p, towers = self.hparams, self.encoder.towers
        visual = vision_transformer(towers.visual, positions="bicubic")
        return Segmenter(
            visual,
            self.given_guide or ClipGuide(visual, towers.mean, towers.std),
            towers.mean,
            towers.std,
            **{name: p[name] or SIZES[name] for name in SIZES},
            batch=p["window_batch"],
            features={name: p[name] for name in ("alpha", "beta", "tau", "eps", "similarity", "scope", "unsegmented")},
            scale=p["scale"],
            threshold=p["threshold"] or 0.0,
            correction=p["correction"],
            guide_once=p["guide_once"],
        )

    def prompt(self, lines: Sequence[str]) -> Classes:
        """Class lines, ways to name a class separated by ``"; "``, as what ``segmenter`` looks for."""
        return prompt_classes(self.encoder, lines, self.hparams["templates"], self.hparams["text_cache"])

    def place(self, device: torch.device) -> None:
        """Bring encoder and guide, which are no part of the module, to a device."""
        self.encoder.towers.model.to(device)
        if self.given_guide is not None:
            self.given_guide.model.to(device)

    def _follow(self) -> None:
        """Networks and texts follow the module to its device."""
        self.place(self.device)
        self.classes = [each.to(self.device) for each in self.classes]

    on_validation_start = on_test_start = on_predict_start = _follow

    def _asked(self, data: Any) -> tuple[list[str], list[str]]:
        """Class lines and names: those asked for, else those of a set, under its own names."""
        given, known = self.hparams["class_lines"], list(getattr(data, "class_lines", ()))
        if given is None:
            split_lines(known)
            return known, list(data.class_names)
        lines = read_lines(given) if isinstance(given, str) else given
        split_lines(lines)
        if known and len(lines) != len(known) and not self.trainer.predicting:
            raise ValueError(
                f"class_lines has {len(lines)} classes, but the label maps have {len(known)}, from '{known[0]}' to "
                f"'{known[-1]}'. Give one line a class in their order, or predict."
            )
        return lines, first_names(lines)

    def _segmenter(self, data: Any) -> Segmenter:
        """With the sizes and the threshold of a set where the user gave none; classes asked for have no background."""
        p, known = self.hparams, getattr(data, "window_sizes", {})
        sizes = {name: p[name] or known.get(name, SIZES[name]) for name in SIZES}
        own = p["class_lines"] is not None and self.trainer.predicting
        of_data = 0.0 if own else getattr(data, "probability_threshold", 0.0)
        return replace(self.segmenter, threshold=of_data if p["threshold"] is None else p["threshold"], **sizes)

    def segment(self, batch: Batch, number: int, text: Tensor) -> list[list[Tensor]]:
        """Label maps of the pictures of a batch, by its ``image`` and ``instance_mask``.

        Args:
            batch: Of B pictures.
            number: Of the set.
            text: (n * Q, D): what is looked for, n times in place of one another.

        Returns:
            n lists of B label maps (H, W) int64.
        """
        segmenter, classes, masks = self.segmenters[number], self.classes[number], batch["instance_mask"]
        logits = segmenter.logits(batch["image"], masks, text)
        parts = [[each._replace(grids=grids) for grids in each.grids.split(len(classes.text))] for each in logits]
        return [
            [segmenter.decide(each, ids, classes) for each, ids in zip(some, masks, strict=True)]
            for some in zip(*parts, strict=True)
        ]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Score a batch; what pictures of it need: label maps ``found`` and class ``names``."""
        classes = self.classes[dataloader_idx]
        (found,) = self.segment(batch, dataloader_idx, classes.text)
        self.evaluations[dataloader_idx].scores.update(found, batch["target"], batch["index"])
        return {"found": found, "names": classes.names}

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Score a batch with its controls; what pictures of it need, as in validation."""
        classes, evaluation = self.classes[dataloader_idx], self.evaluations[dataloader_idx]
        text = torch.cat([classes.text, random_text(classes.text)])
        found, control = self.segment(batch, dataloader_idx, text)
        evaluation.scores.update(found, batch["target"], batch["index"])
        evaluation.update_controls(control, batch["instance_mask"], batch["target"], batch["index"])
        return {"found": found, "names": classes.names}

    def _log_scores(self, part: str, controls: bool) -> None:
        """Log the scores of each set, under its name where there are several, and make the tables."""
        several = hasattr(self.data, "sets")
        found = {each.name: each.values(controls) for each in self.evaluations}
        self.num_scored = {name if several else "images": int(values["num_images"]) for name, values in found.items()}
        for name, values in found.items():
            start = f"{part}/{name}/" if several else f"{part}/"
            self.log_dict({f"{start}{key}": value for key, value in values.items()}, sync_dist=True)
        self.tables = {}
        for evaluation, classes in zip(self.evaluations, self.classes, strict=True):
            file = f"classes_{evaluation.name}.csv" if several else "classes.csv"
            self.tables[file] = evaluation.class_rows(classes.names)
            evaluation.reset()
        if several and controls:
            self.tables["benchmarks.csv"] = benchmark_rows(found)
            for key in ("miou", "random_miou"):
                mean = sum(values[key] for values in found.values()) / len(found)
                self.log(f"{part}/{key.replace('miou', 'mean_miou')}", mean, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("val", controls=False)

    def on_test_epoch_end(self) -> None:
        """Log the scores with interval, floor and controls, and make the tables."""
        self._log_scores("test", controls=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """The label map ``labels`` of each picture, with its ``id``, ``index`` and the ``names`` of the classes."""
        (found,), names = self.segment(batch, 0, self.classes[0].text), self.classes[0].names
        rows = zip(found, batch["id"], batch["index"].tolist(), strict=True)
        return [{"labels": labels.cpu(), "id": name, "index": index, "names": names} for labels, name, index in rows]

    def result_notes(self) -> dict[str, Any]:
        """What the figures mean."""
        notes = [self.evaluations[0].scores.convention, FLOOR, *([CONTROLS] if self.trainer.testing else [])]
        counts = {f"n_{name}": count for name, count in getattr(self, "num_scored", {}).items()}
        return {
            **counts,
            "convention": "; ".join(notes),
            "headline": list(HEADLINE),
        }

    def refuse_to_train(self, *_: Any) -> Any:
        """What Lightning calls to train; it looks for both names first."""
        raise ValueError("CorrCLIP needs no training: run test, or predict on a folder of pictures.")

    training_step = configure_optimizers = refuse_to_train

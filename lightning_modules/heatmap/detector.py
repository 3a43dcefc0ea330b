"""From an image's similarity maps to its boxes: one rule for the heatmap and for the controls beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.heatmap.boxes import boxes_from_maps, upsample
from lightning_modules.heatmap.controls import centre_boxes, permuted_classes, random_maps, whole_image_boxes
from lightning_modules.heatmap.thresholds import map_thresholds

Detections = dict[str, Tensor]  # boxes (n, 4) xyxy pixels, scores (n,), labels (n,)
CONTROLS = ("whole_image", "centre_box", "noise_map", "permuted_names")


@dataclass(frozen=True)
class BoxRule:
    """How maps become boxes.

    Args:
        threshold: Rule of ``thresholds.map_thresholds``, or ``fitted``: one similarity for each class.
        value: Its percent, k or factor.
        label_on: Enlarge a map to the ``picture`` and label its components there, or label on the patch ``grid``.
        score: What a box scores, of the raw similarity: see ``boxes.boxes_from_maps``.
        min_area: Smallest component, in pixels of the picture.
        max_detections: Most boxes an image.
        nms_iou: IoU from which on the weaker of two boxes of a class goes; None = all stay.

    Raises:
        ValueError: A value that the rule does not allow.
    """

    threshold: str
    value: float
    label_on: Literal["picture", "grid"]
    score: str
    min_area: float
    max_detections: int
    nms_iou: float | None

    def __post_init__(self) -> None:
        if self.threshold in ("quantile", "relative") and not 0 <= self.value <= 100:
            raise ValueError(f"value is {self.value}; for threshold {self.threshold} it is a percentage, 0 to 100.")
        if self.max_detections < 1 or self.min_area < 0:
            raise ValueError(
                f"max_detections is {self.max_detections} and min_area {self.min_area}; at least 1 and at least 0 "
                "make sense."
            )

    def __call__(
        self, maps: Tensor, classes: Sequence[int], size: Sequence[int], presence: Tensor, fitted: Tensor | None
    ) -> Detections:
        """The boxes of some classes of an image.

        Args:
            maps: Raw similarities on the patch grid, ``(K, rows, columns)``, of all classes.
            classes: Those to look for.
            size: Height and width of the picture.
            presence: How likely each class is in the picture, ``(K,)``, for scores that use it.
            fitted: Thresholds of all classes ``(K,)``, for ``fitted``.
        """
        chosen = torch.as_tensor(list(classes), dtype=torch.long)
        picked = maps[chosen]
        height, width = int(size[0]), int(size[1])
        if self.label_on == "picture" and len(chosen):
            picked = upsample(picked[None], (height, width))[0]
        per_class = None if fitted is None else fitted[chosen]
        rule = "fixed" if self.threshold == "fitted" else self.threshold
        thresholds = map_thresholds(picked, rule, self.value, per_class)
        found = boxes_from_maps(
            picked,
            thresholds,
            (height, width),
            score=self.score,
            presence=presence[chosen],
            min_area=self.min_area,
            max_detections=self.max_detections,
            nms_iou=self.nms_iou,
        )
        return {**found, "labels": chosen[found["labels"]]}


def control_detections(
    rule: BoxRule, maps: Tensor, classes: Sequence[int], size: Sequence[int], presence: Tensor, fitted: Tensor | None,
    index: int,
) -> dict[str, Detections]:  # fmt: skip
    """What trivial detectors find in the same image, asked for the same classes.

    Args:
        rule: Makes boxes of the maps of the last two.
        maps: As in :class:`BoxRule`.
        classes: As there.
        size: As there.
        presence: As there; ranks the boxes of ``whole_image`` and ``centre_box``.
        fitted: As there.
        index: The image's number, which seeds the random map.

    Returns:
        For each of :data:`CONTROLS` its boxes: the whole image; a box of half its sides in the middle; the maps
        replaced by noise; the maps of other classes, with their thresholds.
    """
    chosen = torch.as_tensor(list(classes), dtype=torch.long)
    height_width = (int(size[0]), int(size[1]))
    noise = random_maps((len(maps), maps.shape[1], maps.shape[2]), seed=0, index=index)
    shifted = None if fitted is None else torch.quantile(noise.flatten(1), 0.75, dim=1)
    others, theirs = noise, shifted
    if len(maps) > 1:
        order = permuted_classes(len(maps), seed=0)
        others, theirs = maps[order], None if fitted is None else fitted[order]
    return {
        "whole_image": whole_image_boxes(chosen, height_width, presence[chosen]),
        "centre_box": centre_boxes(chosen, height_width, presence[chosen]),
        "noise_map": rule(noise, classes, size, presence, shifted),
        "permuted_names": rule(others, classes, size, presence, theirs),
    }


def classes_to_find(
    source: Literal["all", "present", "top_k"], presence: Tensor, labels: Tensor | None, top_k: int
) -> list[int]:
    """Which classes an image is searched for.

    Args:
        source: ``all``; ``present``, as its annotation says (an oracle); ``top_k``, the most likely ones.
        presence: How likely each class is, ``(K,)``.
        labels: Classes of the image's boxes that count, ``(n,)``; None without annotation.
        top_k: Their number.

    Raises:
        ValueError: ``present`` without annotation.
    """
    if source == "all":
        return list(range(len(presence)))
    if source == "top_k":
        return sorted(presence.topk(min(top_k, len(presence))).indices.tolist())
    if labels is None:
        raise ValueError("class_source present needs annotations. Set class_source: top_k or all to predict.")
    return [int(label) for label in labels.unique()]


def detect_batch(
    rule: BoxRule, batch: Mapping[str, Any], maps: Tensor, presence: Tensor, fitted: Tensor | None,
    source: Literal["all", "present", "top_k"], top_k: int, controls: bool,
) -> dict[str, list[Detections]]:  # fmt: skip
    """Boxes in each image of a batch, by detector.

    Args:
        rule: Makes boxes of maps.
        batch: With ``size``, ``index`` and, for the classes that are present, ``box_labels`` and ``ignore``.
        maps: Signed maps ``(B, K, rows, columns)``.
        presence: Probability of each class, ``(B, K)``.
        fitted: Thresholds of all classes ``(K,)``, for ``fitted``.
        source: Which classes an image is searched for, see :func:`classes_to_find`.
        top_k: As there.
        controls: Whether the controls are asked too.

    Returns:
        For ``heatmap``, and each of :data:`CONTROLS` that is asked, its boxes in the B images.
    """
    found: dict[str, list[Detections]] = {name: [] for name in ("heatmap", *CONTROLS[: len(CONTROLS) * controls])}
    for row, index in enumerate(batch["index"].tolist()):
        labels = batch["box_labels"][row][~batch["ignore"][row]].cpu() if "box_labels" in batch else None
        classes = classes_to_find(source, presence[row], labels, top_k)
        asked = (maps[row], classes, batch["size"][row].tolist(), presence[row], fitted)
        found["heatmap"].append(rule(*asked))
        if controls:
            for name, boxes in control_detections(rule, *asked, index).items():
                found[name].append(boxes)
    return found

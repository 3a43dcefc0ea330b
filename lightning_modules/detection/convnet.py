"""A compact convolutional detector: anchor-free, with focal loss and a loss of its own for each image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss

from lightning_modules.detection.assignment import assign_cells, cell_centres, covered_cells

Detections = dict[str, Tensor]  # boxes (n, 4) xyxy pixels of the picture, scores (n,), labels (n,)
Target = Mapping[str, Tensor]  # boxes (n, 4) xyxy as fractions of the picture, labels (n,), ignore (n,)
STRIDES = (8, 16, 32)
PRIOR = 0.01  # probability of an object in a cell before training, as focal loss wants it
BOX_WEIGHT = 2.0
CANDIDATES = 1000  # best boxes of an image before non-maximum suppression


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution with group norm, which knows no batch, so an image's loss is its own."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.SiLU(inplace=True)
    )


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, H, W) -> the same shape."""
        return x + self.body(x)


class ConvDetector(nn.Module):
    """Boxes from three grids of cells with strides 8, 16 and 32, trained from scratch in minutes on small pictures.

    Each cell gives the logits of the classes and the distances from its centre to the four sides of the box. The
    class loss is focal over all cells, the box loss generalised IoU over the cells that own an object
    (``assign_cells``); both are sums over an image divided by its number of such cells.

    Args:
        num_classes: Number of classes C.
        width: Channels, a multiple of 8.
        max_detections: Most boxes an image.
        score_threshold: Least score of a box.
        nms_iou: IoU above which the weaker of two boxes of a class goes.

    Raises:
        ValueError: An argument outside its range.

    Reference:
        Tian et al., FCOS: A Simple and Strong Anchor-Free Object Detector, TPAMI 2020; Lin et al., Focal Loss for Dense
        Object Detection, ICCV 2017; Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.

    >>> network = ConvDetector(num_classes=2, width=8)
    >>> images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    >>> empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "ignore": torch.zeros(0).bool()}
    >>> network.image_losses(images, [empty] * 3).shape
    torch.Size([3])
    """

    def __init__(
        self,
        num_classes: int,
        width: int = 32,
        max_detections: int = 100,
        score_threshold: float = 0.01,
        nms_iou: float = 0.6,
    ) -> None:
        super().__init__()
        if num_classes < 1 or width < 8 or width % 8 or max_detections < 1:
            raise ValueError(
                f"num_classes is {num_classes}, width {width} and max_detections {max_detections}; there must be a "
                "class, a width that is a multiple of 8, and a detection."
            )
        if not 0 <= score_threshold < 1 or not 0 < nms_iou <= 1:
            raise ValueError(f"score_threshold is {score_threshold} and nms_iou {nms_iou}; both lie between 0 and 1.")
        self.num_classes, self.max_detections = num_classes, max_detections
        self.score_threshold, self.nms_iou = score_threshold, nms_iou
        self.stem = nn.Sequential(convolution(3, width, stride=2), convolution(width, width, stride=2))
        self.stages = nn.ModuleList(nn.Sequential(convolution(width, width, 2), Residual(width)) for _ in STRIDES)
        self.merge = nn.ModuleList(convolution(width, width) for _ in STRIDES)
        self.class_head = nn.Sequential(convolution(width, width), nn.Conv2d(width, num_classes, 3, padding=1))
        self.box_head = nn.Sequential(convolution(width, width), nn.Conv2d(width, 4, 3, padding=1))
        weight, bias = self.class_head[-1].parameters()
        nn.init.normal_(weight, std=0.01)
        nn.init.constant_(bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, list[tuple[int, int]]]:
        """Class logits and boxes of all cells.

        Args:
            images: uint8 (B, 3, H, W), more than 32 pixels wide or high.

        Returns:
            Logits (B, P, C); boxes (B, P, 4), xyxy in pixels of ``images``; centres (P, 3) and the sizes of the grids
            as in ``cell_centres``. All float32.

        Raises:
            ValueError: The images are too small.
        """
        if max(images.shape[-2:]) <= STRIDES[-1]:  # norms of a single cell would wipe it out
            raise ValueError(
                f"Pictures of {tuple(images.shape[-2:])} pixels are too small for cells of {STRIDES[-1]}. Set "
                "data.init_args.image_size to at least 64."
            )
        x = self.stem(images.float() / 127.5 - 1)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        for level in range(len(features) - 2, -1, -1):  # coarse to fine
            above = functional.interpolate(features[level + 1], features[level].shape[-2:])
            features[level] = features[level] + above
        features = [merge(feature) for merge, feature in zip(self.merge, features, strict=True)]
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        logits = torch.cat([self.class_head(feature).flatten(2) for feature in features], dim=2)  # (B, C, P)
        raw = torch.cat([self.box_head(feature).flatten(2) for feature in features], dim=2)  # (B, 4, P)
        centres = cell_centres(sizes, STRIDES, images.device)
        sides = functional.softplus(raw.float().transpose(1, 2)) * centres[:, 2:]  # left, top, right, bottom
        boxes = torch.cat([centres[:, :2] - sides[..., :2], centres[:, :2] + sides[..., 2:]], dim=-1)
        return logits.float().transpose(1, 2).contiguous(), boxes, centres, sizes

    def image_losses(self, images: Tensor, targets: Sequence[Target]) -> Tensor:
        """The loss of each image by itself.

        Args:
            images: uint8 (B, 3, H, W).
            targets: B mappings: ``boxes`` (n, 4) xyxy as fractions of the picture, ``labels`` (n,), ``ignore`` (n,).
                Cells inside ignored objects that no other object owns teach nothing.

        Returns:
            (B,) float32.
        """
        return self.losses_of(self(images), images, targets)

    def losses_of(
        self, output: tuple[Tensor, Tensor, Tensor, list[tuple[int, int]]], images: Tensor, targets: Sequence[Target]
    ) -> Tensor:
        """``image_losses`` from what ``forward`` gave."""
        logits, found, centres, sizes = output
        scale = torch.tensor([images.shape[-1], images.shape[-2]] * 2, device=images.device)
        kept = [~target["ignore"] for target in targets]
        boxes = torch.cat([t["boxes"][keep] for t, keep in zip(targets, kept, strict=True)]) * scale
        labels = torch.cat([t["labels"][keep] for t, keep in zip(targets, kept, strict=True)])
        number = torch.stack([keep.sum() for keep in kept])
        image = torch.repeat_interleave(torch.arange(len(targets), device=images.device), number)
        cells, owners = assign_cells(boxes, image, len(targets), sizes, STRIDES)

        wanted = torch.zeros_like(logits)
        wanted.flatten(0, 1)[cells, labels[owners]] = 1
        by_cell = sigmoid_focal_loss(logits, wanted).sum(dim=-1)  # (B, P)
        silent = torch.zeros_like(by_cell, dtype=torch.bool)
        for row, target in enumerate(targets):
            if bool(target["ignore"].any()):
                silent[row] = covered_cells(target["boxes"][target["ignore"]] * scale, centres)
        silent.view(-1)[cells] = False
        of_boxes = generalized_box_iou_loss(found.flatten(0, 1)[cells], boxes[owners])  # (K,)
        summed = by_cell.masked_fill(silent, 0).sum(dim=1)
        summed = summed + BOX_WEIGHT * torch.zeros_like(summed).index_add(0, image[owners], of_boxes)
        positive = torch.zeros_like(summed).index_add(0, image[owners], torch.ones_like(of_boxes))
        return summed / positive.clamp(min=1)

    def loss(self, images: Tensor, targets: Sequence[Target]) -> Tensor:
        """The mean of ``image_losses``."""
        return self.image_losses(images, targets).mean()

    def detect(self, images: Tensor, sizes: Tensor) -> list[Detections]:
        """Boxes in each image, the best first.

        Args:
            images: uint8 (B, 3, H, W).
            sizes: (B, 2) height and width of the pictures before they were squashed.

        Returns:
            B mappings ``boxes`` (n, 4) xyxy in pixels of the picture, ``scores`` and ``labels`` (n,).
        """
        logits, boxes, _, _ = self(images)
        own = torch.tensor([images.shape[-1], images.shape[-2]] * 2, device=images.device)
        found = []
        for of_image, corners, size in zip(logits.sigmoid(), boxes, sizes.to(images.device), strict=True):
            scores, flat = of_image.flatten().topk(min(CANDIDATES, of_image.numel()))
            flat, scores = flat[scores >= self.score_threshold], scores[scores >= self.score_threshold]
            labels = flat % self.num_classes
            picked = corners[flat // self.num_classes].clamp(min=0).minimum(own)
            kept = batched_nms(picked, scores, labels, self.nms_iou)[: self.max_detections]
            scaled = picked[kept] / own * size.flip(0).repeat(2)
            found.append({"boxes": scaled, "scores": scores[kept], "labels": labels[kept]})
        return found

"""Detectors of transformers: the DETR family and YOLOS, from the hub or a local folder, trained with their own loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from lightning_modules.backbones.detector_files import load_detector, pixel_rule, random_detector, read_config
from lightning_modules.backbones.weights import quick_hub

Detections = dict[str, Tensor]  # boxes (n, 4) xyxy pixels of the original picture, scores (n,), labels (n,); best first


def loss_labels(targets: Sequence[Mapping[str, Tensor]], num_classes: int) -> list[dict[str, Tensor]]:
    """Targets of the suite in the form that transformers' detectors take.

    Args:
        targets: One mapping an image: ``boxes`` (n, 4) xyxy as fractions of the picture, ``labels`` (n,) int64,
            ``ignore`` (n,) bool. Ignored objects are left out: these losses know no such thing, so what the network
            finds there counts as background.
        num_classes: Number of classes.

    Returns:
        One mapping an image: ``class_labels`` (m,) and ``boxes`` (m, 4) as fractions: centre, width, height.

    Raises:
        ValueError: A label that is no class; the losses would take it for background, or stop far from its cause.

    >>> boxes = torch.tensor([[0.25, 0.25, 0.75, 0.5], [0.0, 0.0, 1.0, 1.0]])
    >>> target = {"boxes": boxes, "labels": torch.tensor([1, 0]), "ignore": torch.tensor([False, True])}
    >>> loss_labels([target], num_classes=2)[0]["boxes"].tolist()
    [[0.5, 0.375, 0.5, 0.25]]
    """
    found = []
    for target in targets:
        kept = ~target["ignore"].bool()
        labels = target["labels"][kept].long()
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"An image has the labels {labels.unique().tolist()}, but the detector has {num_classes} classes, from "
                "0 on. Set num_classes to the data's."
            )
        boxes = target["boxes"][kept].float().reshape(-1, 4)
        found.append({"class_labels": labels, "boxes": box_convert(boxes, "xyxy", "cxcywh")})
    return found


def decode(logits: Tensor, boxes: Tensor, sizes: Tensor, num_classes: int, max_detections: int) -> list[Detections]:
    """Detections of the outputs of a DETR-like network.

    Logits with one column more than classes are those of a softmax whose last column means "no object" (DETR, YOLOS):
    a query gives its best class. Otherwise each query and class is a detection of its own, scored by the sigmoid.

    Args:
        logits: (B, Q, C) or (B, Q, C + 1).
        boxes: (B, Q, 4) centre, width, height as fractions of the picture.
        sizes: (B, 2) height and width of the original pictures.
        num_classes: C.
        max_detections: Most detections an image.

    Returns:
        One mapping an image: ``boxes`` (n, 4) xyxy in its pixels, inside the picture, ``scores`` and ``labels`` (n,).

    >>> logits, box = torch.tensor([[[0.0, -1.0]]]), torch.tensor([[[0.5, 0.5, 0.5, 2.0]]])
    >>> found = decode(logits, box, torch.tensor([[10, 20]]), num_classes=2, max_detections=1)[0]
    >>> found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist()
    ([[5.0, 0.0, 15.0, 10.0]], [0.5], [0])
    """
    if logits.shape[-1] == num_classes + 1:
        scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)  # (B, Q)
        scores, query = scores.topk(min(max_detections, scores.shape[1]), dim=1)
        labels = labels.gather(1, query)
    else:
        flat = logits.float().sigmoid().flatten(1)  # (B, Q * C)
        scores, place = flat.topk(min(max_detections, flat.shape[1]), dim=1)
        query, labels = place // num_classes, place % num_classes
    limits = sizes.to(boxes.device).flip(1).repeat(1, 2)[:, None].float()  # (B, 1, 4) width, height, width, height
    corners = box_convert(boxes.float(), "cxcywh", "xyxy").gather(1, query[..., None].expand(-1, -1, 4))
    corners = torch.minimum((corners * limits).clamp(min=0), limits)
    return [
        {"boxes": one, "scores": score, "labels": label}
        for one, score, label in zip(corners, scores, labels, strict=True)
    ]


@contextlib.contextmanager
def loss_of_these_images(config: Any) -> Iterator[None]:
    """Within this context the loss of LW-DETR and RF-DETR, in eval mode, is that of the given images alone.

    transformers divides it by the boxes of all processes, which waits for processes that have no image left; and it
    matches in as many groups as in training, where eval has one: each object would be given to several queries.

    Args:
        config: That of the network; other families are left as they are.
    """
    if getattr(config, "group_detr", None) is None:
        yield
        return
    from transformers.loss import loss_lw_detr

    groups, distributed = config.group_detr, loss_lw_detr._is_torch_distributed_initialized
    config.group_detr, loss_lw_detr._is_torch_distributed_initialized = 1, lambda: False
    try:
        yield
    finally:
        config.group_detr, loss_lw_detr._is_torch_distributed_initialized = groups, distributed


def in_float32(loss: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """A loss of the network's outputs in full precision, whatever the network ran in.

    That of LW-DETR and RF-DETR takes the logarithm of one minus a probability, which half precision rounds to 0.

    Args:
        loss: The function.
        arguments: Its arguments; floating-point tensors among them become float32.
        named: Arguments by name, likewise.

    Returns:
        What the function returns.

    >>> in_float32(lambda logits, scale: (logits.dtype, scale), torch.zeros(2, dtype=torch.bfloat16), scale=2)
    (torch.float32, 2)
    """

    def full(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    return loss(*map(full, arguments), **{name: full(value) for name, value in named.items()})


class TransformerDetector(nn.Module):
    """A detector of transformers as a network of the suite.

    YOLOS, LW-DETR, RT-DETRv2 and D-FINE are tested; the others of ``detector_files.KINDS`` share their interface. The
    pictures' side must be a multiple of 32 pixels, for LW-DETR and RF-DETR of patch times windows.

    Args:
        name: Hub id of a checkpoint, or a local folder with config.json, model.safetensors and, unless the family's
            usual pixels will do, preprocessor_config.json.
        num_classes: Number of classes; where it is not the checkpoint's, the heads that depend on it start anew.
        pretrained: Load the weights; False starts from random ones.
        max_detections: Most detections an image.
        config: Values to replace in config.json, such as ``{"num_queries": 100}``.

    Raises:
        FileNotFoundError: The checkpoint is not here and cannot be downloaded.
        ValueError: No detector of a known kind, weights that are damaged or do not fit, or an unsuitable argument.

    Reference:
        Carion et al., End-to-End Object Detection with Transformers, ECCV 2020; Fang et al., You Only Look at One
        Sequence, NeurIPS 2021; Zhao et al., DETRs Beat YOLOs on Real-time Object Detection, CVPR 2024.
    """

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        num_classes: int,
        pretrained: bool = True,
        max_detections: int = 100,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1 or max_detections < 1:
            raise ValueError(f"num_classes is {num_classes} and max_detections {max_detections}; both must be above 0.")
        self.name, self.num_classes, self.max_detections = name, num_classes, max_detections
        with quick_hub():
            settings = read_config(name, config or {})
            mean, std = pixel_rule(name, settings.model_type)
            self.random_heads = not pretrained or settings.num_labels != num_classes
            if pretrained:
                self.model = load_detector(name, settings, num_classes)
            else:
                self.model = random_detector(settings, num_classes)
        self.model.float()  # a checkpoint in half precision would stay so, and not train
        self.model.loss_function = partial(in_float32, self.model.loss_function)
        # In units of the uint8 pixels; not stored, since the folder's file says them.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.train()  # transformers hands loaded networks out in eval mode, where Lightning would leave them

    def forward(self, images: Tensor, labels: list[dict[str, Tensor]] | None = None) -> Any:
        """The outputs of the network, as transformers names them.

        Args:
            images: (B, 3, S, S) uint8.
            labels: Targets of the loss, see ``loss_labels``.

        Returns:
            ``logits`` (B, Q, C or C + 1), ``pred_boxes`` (B, Q, 4) and, with labels, ``loss``.
        """
        pixels = (images.float() - self.mean) / self.std
        return self.model(pixel_values=pixels, labels=labels)

    def loss(self, images: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """The network's own training loss of a batch; a sum over objects divided by their number in the batch.

        Args:
            images: (B, 3, S, S) uint8.
            targets: See ``loss_labels``; ignored objects are left out.

        Returns:
            A scalar, finite for images without objects too.
        """
        labels = loss_labels(targets, self.num_classes)
        with contextlib.nullcontext() if self.training else loss_of_these_images(self.model.config):
            loss = self(images, labels).loss
        # A batch without objects does not use this part of RT-DETR and D-FINE, for whose gradient DDP would wait.
        denoising = getattr(getattr(self.model, "model", None), "denoising_class_embed", None)
        return loss if denoising is None else loss + 0 * denoising.weight.sum()

    def image_losses(self, images: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """The loss of each image by itself; the loss of the batch is not their mean.

        Call ``eval()`` first to compare images: training adds random denoising queries, and batch statistics of one.

        Args:
            images: (B, 3, S, S) uint8.
            targets: See ``loss_labels``.

        Returns:
            (B,), each from a batch of one.
        """
        return torch.stack([self.loss(images[i : i + 1], targets[i : i + 1]) for i in range(len(images))])

    def detect(self, images: Tensor, sizes: Tensor) -> list[Detections]:
        """What is found in a batch. In eval mode: in training some families have several groups of queries.

        Args:
            images: (B, 3, S, S) uint8, the pictures squashed to a square.
            sizes: (B, 2) int64, height and width of the original pictures.

        Returns:
            One mapping an image, see ``decode``.
        """
        found = self(images)
        return decode(found.logits, found.pred_boxes, sizes, self.num_classes, self.max_detections)

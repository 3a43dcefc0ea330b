"""Trainable detectors: a compact one of the suite, those of transformers, and an ONNX file as predictor only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_modules.backbones.detectors import TransformerDetector
from lightning_modules.backbones.onnx_detector import OnnxDetector
from lightning_modules.base import BaseModule
from lightning_modules.detection.augment import flip_half, jitter, paste_patches
from lightning_modules.detection.batches import Batch, Target, stacked, targets_of, truths_of
from lightning_modules.detection.class_names import check_same, given_names, in_data_classes
from lightning_modules.detection.convnet import ConvDetector, Detections
from lightning_modules.detection.distillation import distillation_losses, load_teacher
from lightning_modules.detection.evaluation import HEADLINE, IOUS, MEANING, class_rows, coco_scores, full_scores
from lightning_modules.detection.optimiser import warm_cosine_adamw
from lightning_modules.detection.weights import highest
from lightning_modules.metrics.detection import DetectionScores


class BoxDetection(BaseModule):
    """What all detectors share: scoring and predicting; and training, for those that have losses.

    ``HardNegativeMining`` reaches it through ``find_boxes``, ``image_losses`` and three attributes that act on the
    training: ``image_weights`` (N,), factors of the images' losses; ``patches``, pieces of pictures to be pasted;
    ``hard_images`` (N,), where a teacher is listened to.

    Args:
        max_detections: Most boxes an image.
        class_names: The network's classes in its order, where they are not the data's. Where there are true boxes,
            found ones get the data's class of the same name, and those of other classes are dropped.
    """

    image_weights: Tensor | None = None
    hard_images: Tensor | None = None
    patches: Sequence[Tensor] = ()
    any_size = False  # whether pictures of a batch may differ in size

    def __init__(self, max_detections: int = 100, class_names: list[str] | None = None) -> None:
        super().__init__()

    @abstractmethod
    def build(self, num_classes: int) -> nn.Module:
        """The network: ``detect(images, sizes)``, and to be trained ``loss`` and ``image_losses(images, targets)``."""

    def configure_model(self) -> None:
        """Build the network once its classes are known, before a checkpoint is loaded; scores are of the data's."""
        data = list(getattr(self.data, "display_names", ()))
        if not hasattr(self, "network"):
            self.network_names = given_names(self.hparams["class_names"] or data, type(self).__name__)
            self.network: Any = self.build(len(self.network_names))
        self.names = data or self.network_names
        self.scores = DetectionScores(len(self.names), IOUS)

    def find_boxes(self, batch: Batch) -> list[Detections]:
        """``boxes`` (n, 4) xyxy in pixels of the picture, ``scores`` and ``labels`` (n,) in each image, best first.

        Labels are of ``names``, the data's; where a batch has no true boxes, of ``network_names``.
        """
        found = self.network.detect(batch["image"] if self.any_size else stacked(batch), batch["size"])
        return in_data_classes(found, self.network_names, self.names) if "boxes" in batch else found

    def image_losses(self, batch: Batch) -> Tensor:
        """The loss of each image by itself, without augmentation: (B,)."""
        return self.network.image_losses(stacked(batch), targets_of(batch))

    def _collect(self, batch: Batch) -> dict[str, Any]:
        """Score a batch; what pictures of it need: ``found`` boxes and class ``names``."""
        found = self.find_boxes(batch)
        self.scores.update(found, truths_of(batch), batch["index"])
        return {"found": found, "names": self.names}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect boxes and truths."""
        self._collect(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Collect boxes and truths, and return the boxes."""
        return self._collect(batch)

    def on_validation_epoch_end(self) -> None:
        """Log COCO's scores; ``val/ap_50`` is the one to select by where parts are small."""
        data, _ = self.scores.collected()
        values = coco_scores(data, len(self.names))
        self.log_dict({f"val/{name}": value for name, value in values.items()}, sync_dist=True)
        self.scores.reset()

    def on_test_epoch_end(self) -> None:
        """Log scores, interval, floors, and what each type of error costs; make the table by class."""
        data, _ = self.scores.collected()
        self.tables = {"classes.csv": class_rows(data, self.names)}
        self.num_tested = data.num_images
        values = full_scores(data, len(self.names))
        self.log_dict({f"test/{name}": value for name, value in values.items()}, sync_dist=True)
        self.scores.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Boxes, scores and labels found in each image, with its ``id``, ``size`` and the ``names`` of the labels."""
        rows = zip(self.find_boxes(batch), batch["id"], batch["size"].tolist(), batch["index"].tolist(), strict=True)
        named = {"names": self.names if "boxes" in batch else self.network_names}
        return [{**boxes, "id": name, "size": size, "index": index, **named} for boxes, name, size, index in rows]

    def result_notes(self) -> dict[str, Any]:
        """What the figures mean."""
        return {
            "n_images": getattr(self, "num_tested", 0),
            "convention": f"ap: mean over IoU .50 to .95. {self.scores.convention}; {MEANING}",
            "headline": list(HEADLINE),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the class names."""
        checkpoint["class_names"] = self.network_names

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained for other classes, or for these in another order."""
        check_same(self.network_names, checkpoint["class_names"], "checkpoint")


class TrainedDetection(BoxDetection):
    """What detectors share that learn.

    Args:
        lr: Learning rate of AdamW; it warms up and then falls to zero along a cosine, over all steps.
        backbone_lr: Learning rate of parameters with ``backbone`` in their name, as a factor of ``lr``.
        weight_decay: AdamW's weight decay, of weights with more than one axis.
        warmup: Share of the steps in which the learning rate rises.
        flip: Mirror half of the training images.
        jitter: Strength of the change of brightness and contrast, 0 to 1.
        online_ratio: Share of each batch's images whose losses count, the highest: mining within the batch, as OHEM
            does within an image's regions. 1 = all.
        paste: Probability that a batch's images get patches that were taken for objects; a callback provides them.
        max_detections: See ``BoxDetection``.
        class_names: See ``BoxDetection``.

    Raises:
        ValueError: Arguments outside their range.
    """

    def __init__(
        self,
        lr: float = 2e-3,
        backbone_lr: float = 1.0,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        flip: bool = True,
        jitter: float = 0.2,
        online_ratio: float = 1.0,
        paste: float = 0.0,
        max_detections: int = 100,
        class_names: list[str] | None = None,
    ) -> None:
        if lr <= 0 or not 0 < online_ratio <= 1 or not 0 <= warmup < 1 or not 0 <= jitter <= 1 or not 0 <= paste <= 1:
            raise ValueError(
                f"lr is {lr}, online_ratio {online_ratio}, warmup {warmup}, jitter {jitter} and paste {paste}; lr and "
                "online_ratio must be above 0, and all but lr are shares of 1."
            )
        super().__init__(max_detections, class_names)

    def on_fit_start(self) -> None:
        """Refuse labels that are not the network's."""
        check_same(self.network_names, self.names, "data")

    def augmented(self, batch: Batch) -> tuple[Tensor, list[Target]]:
        """Images and targets as they are trained on."""
        p, images, targets = self.hparams, stacked(batch), targets_of(batch)
        if p["flip"]:
            images, targets = flip_half(images, targets)
        images = jitter(images, p["jitter"])
        if p["paste"] and self.patches and float(torch.rand(())) < p["paste"]:
            images = paste_patches(images, targets, self.patches)
        return images, targets

    def training_losses(self, images: Tensor, targets: list[Target], index: Tensor) -> Tensor:
        """The losses of the images of a batch, (B,), of which ``index`` tells the position in the training part."""
        return self.network.image_losses(images, targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch: of all its images alike, of the hardest, or weighted by image."""
        images, targets = self.augmented(batch)
        losses = self.training_losses(images, targets, batch["index"])
        if self.image_weights is not None:
            losses = losses * self.image_weights.to(losses)[batch["index"]]
        loss = highest(losses, self.hparams["online_ratio"]).mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW; a warm-up and a cosine over all steps."""
        p, steps = self.hparams, max(1, int(self.trainer.estimated_stepping_batches))
        return warm_cosine_adamw(self.network, steps, p["lr"], p["backbone_lr"], p["weight_decay"], p["warmup"])


class ConvDetection(TrainedDetection):
    """The suite's compact detector (``convnet.ConvDetector``), trained from scratch; see there for the sources.

    Args:
        width: Channels, a multiple of 8.
        teacher: Checkpoint of another ``ConvDetection``, whose probabilities are learnt on the images that
            ``HardNegativeMining`` found hard; without that callback on none. None = no teacher.
        teacher_weight: Weight of that loss.
        **kwargs: Arguments of ``TrainedDetection``.
    """

    def __init__(self, width: int = 32, teacher: str | None = None, teacher_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    teachers: Sequence[ConvDetector] = ()  # one or none; in a list it is no part of the module and its checkpoints

    def build(self, num_classes: int) -> nn.Module:
        """The compact network."""
        return ConvDetector(num_classes, self.hparams["width"], self.hparams["max_detections"])

    def on_fit_start(self) -> None:
        """Load the teacher."""
        super().on_fit_start()
        if self.hparams["teacher"] is not None:
            self.teachers = [load_teacher(self.hparams["teacher"], self.names).to(self.device)]

    def training_losses(self, images: Tensor, targets: list[Target], index: Tensor) -> Tensor:
        """With a teacher: on hard images also the distance from it."""
        output = self.network(images)
        losses = self.network.losses_of(output, images, targets)
        if not self.teachers or self.hard_images is None:
            return losses
        with torch.no_grad():
            wanted = self.teachers[0](images)[0]
        far = distillation_losses(output[0], wanted) * self.hard_images[index]
        return losses + self.hparams["teacher_weight"] * far


class DetectionTransformer(TrainedDetection):
    """A detector of transformers by its name on the hub or its folder: RT-DETRv2, D-FINE, LW-DETR, YOLOS, DETR, ...

    Args:
        name: Tag on the hub, as ``PekingU/rtdetr_v2_r18vd``, or a folder that ``save_pretrained`` wrote.
        pretrained: Take its weights; false = random ones, of its configuration.
        **kwargs: Arguments of ``TrainedDetection``; fine-tuning wants ``lr: 1e-4`` and ``backbone_lr: 0.1``.
    """

    def __init__(self, name: str = "PekingU/rtdetr_v2_r18vd", pretrained: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def build(self, num_classes: int) -> nn.Module:
        """The network of transformers."""
        p = self.hparams
        return TransformerDetector(p["name"], num_classes, p["pretrained"], p["max_detections"])

    def random_weights(self) -> bool:
        """Not where the checkpoint of transformers is of as many classes."""
        return super().random_weights() and self.network.random_heads

    def training_losses(self, images: Tensor, targets: list[Target], index: Tensor) -> Tensor:
        """The network's own loss of the batch, (1,); image by image, and slower, where images are told apart."""
        if self.hparams["online_ratio"] < 1 or self.image_weights is not None:
            return super().training_losses(images, targets, index)
        return self.network.loss(images, targets)[None]


class OnnxDetection(BoxDetection):
    """A detector that was exported to ONNX: it tests, predicts and is mined, and cannot be trained.

    Args:
        file: The ONNX file.
        layout: What its output means, see ``backbones.onnx_detector.OnnxDetector``.
        score_threshold: Least score of a box.
        nms_iou: IoU above which the weaker of two boxes of a class goes.
        max_detections: See ``BoxDetection``.
        class_names: See ``BoxDetection``; needed where the file's classes are not the data's, or in another order.
    """

    def __init__(
        self,
        file: str,
        layout: Literal["yolox", "yolov8"] = "yolox",
        score_threshold: float = 0.01,
        nms_iou: float = 0.65,
        max_detections: int = 100,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__(max_detections, class_names)

    def build(self, num_classes: int) -> nn.Module:
        """The exported network."""
        p = self.hparams
        return OnnxDetector(
            p["file"], p["layout"], num_classes, p["score_threshold"], p["nms_iou"], p["max_detections"]
        )

    def refuse_to_train(self, *_: Any) -> Any:
        """What Lightning calls to train; it looks for both names first."""
        raise ValueError("An ONNX file cannot be trained. Use test, predict or mine, or train another detector.")

    training_step = configure_optimizers = refuse_to_train
    any_size = True  # it letter-boxes them

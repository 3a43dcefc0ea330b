"""Heatmap detection: CLIP's similarity maps as boxes, beside the controls; with an adapter that trains the maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_modules.backbones.encoder import FrozenEncoder
from lightning_modules.backbones.prompts import class_embeddings, mean_embeddings, prompt_templates
from lightning_modules.backbones.vit import vision_transformer
from lightning_modules.base import BaseModule
from lightning_modules.heatmap.adapter import AdaptedPath, AdapterName, TokenCache, inside_loss
from lightning_modules.heatmap.dense import PathName, check_pictures, resolve_path
from lightning_modules.heatmap.detector import CONTROLS, BoxRule, Detections, detect_batch
from lightning_modules.heatmap.diagnosis import batch_coverage
from lightning_modules.heatmap.evaluation import HEADLINE, DetectorScores
from lightning_modules.heatmap.fitted import Fitted, places_of
from lightning_modules.heatmap.similarity import Redundancy, class_similarity, on_grid

Batch = dict[str, Any]
PRESENCE_SCALE = 100.0  # CLIP's logit scale, for the zero-shot probability of a class in an image


class HeatmapDetection(BaseModule):
    """Boxes from the similarity of CLIP's patches to class names.

    ``test`` needs no training: it scores the heatmap's boxes and, in the same run, trivial controls. With an
    ``adapter`` ``fit`` raises the similarity inside the boxes of the training part; the model itself stays frozen.

    Args:
        encoder: The image-text model; its image tower must be a ViT.
        path: Path through its last blocks, see ``dense.dense_tokens``.
        num_layers: Blocks of the path; None = as published.
        residual: Start from the tokens before them; None = as published.
        ffn: Pass the feed-forward networks; None = as published.
        fusion: ``last``, or ``mean`` over the blocks of the path.
        redundancy: What is taken out of the similarities, see ``similarity.class_similarity``.
        strength: How much of it.
        sign: ``1``, ``-1`` (the inverted heatmap), or ``fitted``: for each class that of its gap on the training part.
        templates: Prompt templates: a name of ``backbones.prompts``, or a list.
        threshold: ``quantile``, ``relative``, ``top_k``, ``otsu``, ``mean_sd``, or ``fitted`` for each class on the
            training part.
        value: Percent of ``quantile`` and ``relative`` (0 to 100), k of ``top_k``, factor of ``mean_sd``.
        label_on: Label components on the map enlarged to the ``picture``, or on the patch ``grid``.
        score: Score of a box, see ``boxes.boxes_from_maps``.
        min_area: Smallest component in pixels of the picture.
        max_detections: Most boxes an image.
        nms_iou: IoU for non-maximum suppression in a class; None = off.
        class_source: Classes that an image is searched for: ``all``, ``present`` (oracle) or ``top_k``.
        top_k: Number of classes for ``top_k``.
        class_names: Names to search for instead of the data's, for ``predict``.
        adapter: ``none``, ``linear`` (on the tokens) or ``lora`` (in the path's blocks).
        rank: Rank of LoRA.
        lr: Learning rate of the adapter.
        weight_decay: AdamW's weight decay.
        logit_scale: Factor of the similarities in the loss.

    Raises:
        ValueError: Arguments that do not fit together.

    Reference:
        Li et al., CLIP Surgery, Pattern Recognition 2025; Choe et al., Evaluating Weakly Supervised Object Localization
        Methods Right, CVPR 2020 (PxAP, MaxBoxAcc).
    """

    ignored_hparams: ClassVar[Sequence[str]] = ("encoder",)

    def __init__(
        self,
        encoder: FrozenEncoder,
        path: PathName = "surgery",
        num_layers: int | None = None,
        residual: bool | None = None,
        ffn: bool | None = None,
        fusion: Literal["last", "mean"] = "last",
        redundancy: Redundancy = "class_mean",
        strength: float = 1.0,
        sign: Literal["1", "-1", "fitted"] = "1",
        templates: str | list[str] = "photo",
        threshold: Literal["quantile", "relative", "top_k", "otsu", "mean_sd", "fitted"] = "quantile",
        value: float = 75.0,
        label_on: Literal["picture", "grid"] = "picture",
        score: str = "max",
        min_area: float = 0.0,
        max_detections: int = 100,
        nms_iou: float | None = None,
        class_source: Literal["all", "present", "top_k"] = "present",
        top_k: int = 3,
        class_names: list[str] | None = None,
        adapter: AdapterName = "none",
        rank: int = 4,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        logit_scale: float = 5.0,
    ) -> None:
        if top_k < 1 or rank < 1 or lr <= 0:
            raise ValueError(f"top_k is {top_k}, rank {rank} and lr {lr}; all must be positive.")
        super().__init__()
        self.encoder = encoder

    def configure_models(self) -> None:
        """What needs no classes; they are known with the data."""
        p = self.hparams
        self.chosen_path = resolve_path(p["path"], p["num_layers"], p["residual"], p["ffn"])
        self.prompts = prompt_templates(p["templates"])
        self.rule = BoxRule(
            p["threshold"], p["value"], p["label_on"], p["score"], p["min_area"], p["max_detections"], p["nms_iou"]
        )
        self.fitted: Fitted | None = None
        self.fitted_in_training = False  # by mining, to weights that validation and checkpoint may have averaged
        self.cache = TokenCache()

    def configure_model(self) -> None:
        """Load the encoder, encode the class names and build the adapter, before a checkpoint is loaded."""
        if hasattr(self, "tokens"):
            return
        p, data = self.hparams, self.data
        self.names = list(p["class_names"] or getattr(data, "display_names", ()))
        if not self.names:
            raise ValueError("HeatmapDetection has no class names. Set model.init_args.class_names, as [ship, harbor].")
        vit = vision_transformer(self.encoder.towers.visual)
        text = class_embeddings(self.encoder, self.names, self.prompts)
        self.register_buffer("text", text, persistent=False)
        empty = mean_embeddings(self.encoder, [[template.format("") for template in self.prompts]])
        self.register_buffer("empty", empty[0], persistent=False)
        self.tokens = AdaptedPath(vit, self.chosen_path, p["fusion"], p["adapter"], p["rank"], text.shape[1])
        self.bias = nn.Parameter(torch.zeros(()), requires_grad=p["adapter"] != "none")
        self.scores = DetectorScores(len(self.names), ("heatmap", *CONTROLS), p["max_detections"])

    def _place_encoder(self) -> None:
        """The encoder is no part of the module; it follows it to its device."""
        if self.dtype != torch.float32:
            raise ValueError("Maps are made in float32. Set trainer.precision to 32-true, 16-mixed or bf16-mixed.")
        self.encoder.towers.model.to(self.device)

    def _check_names(self) -> None:
        self._place_encoder()
        known = list(getattr(self.data, "display_names", ()))
        if self.names != known:
            raise ValueError(
                f"model.init_args.class_names ({', '.join(self.names)}) are for predict: boxes are scored by the "
                f"data's classes ({', '.join(known)}), in their order. Leave them out, or set data.init_args.classes."
            )

    on_fit_start = on_validation_start = on_test_start = _check_names
    on_predict_start = _place_encoder

    def similarity(self, tokens: Tensor) -> Tensor:
        """Raw similarities ``(B, HW, K)`` of dense tokens ``(B, 1 + HW, D)``, without the sign, float32."""
        with torch.autocast(tokens.device.type, enabled=False):
            p, tokens = self.hparams, tokens.float()
            return class_similarity(tokens, self.text, p["redundancy"], p["strength"], self.empty)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Similarity of each patch, and the presence of each class.

        Args:
            images: Pictures ``(B, 3, H, W)`` uint8.

        Returns:
            Raw similarities without the sign, ``(B, K, rows, columns)``, and the zero-shot probability of each class in
            each image, ``(B, K)``; both float32.
        """
        tokens = self.tokens(self.frozen(images)).float()
        with torch.autocast(tokens.device.type, enabled=False):
            logits = PRESENCE_SCALE * nn.functional.normalize(tokens[:, 0], dim=-1) @ self.text.T
        return on_grid(self.similarity(tokens), self.tokens.vit.grid(images)), logits.softmax(dim=-1)

    def frozen(self, images: Tensor, places: list[int] | slice = slice(None)) -> Tensor:
        """What the frozen part makes of the pictures ``(B, 3, H, W)`` at some places of a batch."""
        check_pictures(images, self.tokens.vit.patch_size)
        return self.tokens.frozen(self.encoder.normalise(images[places].to(self.device)))

    def training_tokens(self, batch: Batch) -> Tensor:
        """Dense tokens ``(B, 1 + HW, D)`` of training images; training keeps what is frozen of them in the cache."""
        index, compute = batch["index"].tolist(), partial(self.frozen, batch["image"])
        return self.tokens(self.cache.tokens(index, compute, self.device, keep=self.training))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of patches inside against outside the boxes."""
        similarity = self.similarity(self.training_tokens(batch))  # (B, HW, K)
        coverage = batch_coverage(batch, len(self.names), self.tokens.vit.grid(batch["image"]))
        inside = coverage.flatten(2).transpose(1, 2).to(self.device)
        loss = inside_loss(similarity, inside, self.hparams["logit_scale"], self.bias)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["index"]))
        self.fitted = None  # what was fitted belongs to earlier weights
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """AdamW over the adapter; none without one."""
        if self.hparams["adapter"] == "none":
            if self.trainer.max_epochs != 0:
                raise ValueError("Without an adapter there is nothing to train: run test, or set adapter: linear.")
            return None
        trained = [weights for weights in self.parameters() if weights.requires_grad]
        return torch.optim.AdamW(trained, lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"])

    def fit_to_training_items(self) -> None:
        """Signs and thresholds of the classes from the training part, where asked for, under the present weights."""
        p, training = self.hparams, self.trainer.training
        if "fitted" not in (p["sign"], p["threshold"]) or (self.fitted and self.fitted_in_training == training):
            return
        places = places_of(self.names, getattr(self.data, "display_names", ()))
        was_training = self.training
        self.eval()
        with torch.inference_mode(), self.trainer.precision_plugin.forward_context():
            self.fitted = Fitted.from_maps(self._training_maps(places), p["sign"])
        self.train(was_training)
        self.fitted_in_training = training

    def _training_maps(self, places: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.data.gallery_dataloader():
            similarity = self.similarity(self.training_tokens(batch))
            grid = self.tokens.vit.grid(batch["image"])
            coverage = batch_coverage(batch, len(self.data.display_names), grid)[:, places]
            yield from zip(on_grid(similarity, grid).cpu(), coverage, strict=True)

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = fit_to_training_items

    def signed_maps(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Maps that are high where a class is, ``(B, K, rows, columns)``, and presence ``(B, K)``, on the CPU."""
        maps, presence = (values.cpu() for values in self(batch["image"]))
        if self.hparams["sign"] == "fitted":
            assert self.fitted is not None
            return maps * self.fitted.signs[:, None, None], presence
        return maps * float(self.hparams["sign"]), presence

    def detect(self, batch: Batch, maps: Tensor, presence: Tensor, controls: bool) -> dict[str, list[Detections]]:
        """Boxes in each image of a batch, by detector; see ``detector.detect_batch``."""
        p, fitted = self.hparams, self.fitted.thresholds if self.hparams["threshold"] == "fitted" else None
        return detect_batch(self.rule, batch, maps, presence, fitted, p["class_source"], p["top_k"], controls)

    def find_boxes(self, batch: Batch) -> list[Detections]:
        """The boxes of the heatmap in each image of a batch, as ``predict`` gives them and the miner asks for them."""
        self.fit_to_training_items()
        return self.detect(batch, *self.signed_maps(batch), controls=False)["heatmap"]

    def _collect(self, batch: Batch, controls: bool) -> dict[str, Any]:
        """Score a batch; what pictures of it need: signed ``maps``, ``found`` boxes and class ``names``."""
        maps, presence = self.signed_maps(batch)
        columns = zip(*(batch[name] for name in ("boxes", "box_labels", "ignore")), strict=True)
        targets = [{"boxes": boxes, "labels": labels, "ignore": ignore} for boxes, labels, ignore in columns]
        found = self.detect(batch, maps, presence, controls)
        coverage = batch_coverage(batch, len(self.names), (maps.shape[-2], maps.shape[-1]))
        side = batch["image"].shape[-1] if controls else None
        self.scores.update(batch["index"], targets, found, maps, coverage, batch["size"].cpu(), side)
        return {"maps": maps, "found": found["heatmap"], "names": self.names}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the boxes of the heatmap, and the diagnosis."""
        self._collect(batch, controls=False)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Collect the boxes of the heatmap and of the controls, and the diagnosis."""
        return self._collect(batch, controls=True)

    def on_validation_epoch_end(self) -> None:
        """Log the heatmap's figures; ``val/ap_20`` and ``val/gap`` are the ones to select by."""
        values = self.scores.compute(intervals=False)
        self.log_dict({f"val/{name}": value for name, value in values.items()}, sync_dist=True)
        self.scores.reset()

    def on_test_epoch_end(self) -> None:
        """Log all figures with their intervals, floors and controls."""
        values = self.scores.compute(intervals=True)
        self.tables = self.scores.tables(self.names)
        self.log_dict({f"test/{name}": value for name, value in values.items()}, sync_dist=True)
        self.scores.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Boxes, scores and labels found in each image, with its ``id``, ``size`` and the ``names`` of the labels."""
        rows = zip(self.find_boxes(batch), batch["id"], batch["size"].tolist(), batch["index"].tolist(), strict=True)
        return [
            {**boxes, "id": name, "size": size, "index": index, "names": self.names}
            for boxes, name, size, index in rows
        ]

    def result_notes(self) -> dict[str, Any]:
        """What the figures mean."""
        source, oracle = self.hparams["class_source"], " (oracle)" * (self.hparams["class_source"] == "present")
        return {
            "n_images": int(self.trainer.callback_metrics.get("test/num_images", 0)),
            "convention": f"{self.scores.convention}; classes searched for: {source}{oracle}",
            "headline": list(HEADLINE),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the class names, and what was fitted to the weights that are kept."""
        fitted = None if self.fitted is None or self.fitted_in_training else self.fitted.state_dict()
        checkpoint["heatmap"] = {"names": self.names, "fitted": fitted}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what was fitted, where it holds for the classes and maps of this run; else it is fitted anew."""
        self.fitted = Fitted.from_checkpoint(checkpoint, self.names, self.hparams)
        self.fitted_in_training = False

"""Cross-modal hashing with Lightning: training, and retrieval scored under two protocols."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_modules.base import BaseModule
from lightning_modules.hashing.losses import balanced_contrastive_loss, hashnet_pairwise_loss, nt_xent_loss
from lightning_modules.hashing.networks import FusionEncoder, HashHead, binary_codes
from lightning_modules.metrics.retrieval import HammingRetrieval

Batch = dict[str, Tensor]
Pair = tuple[Tensor, Tensor]  # image, text


class CrossModalHashing(BaseModule):
    """Learns binary codes under which an image and a text of the same content are close.

    Two ways to a code are trained together and scored apart. *Unimodal*: a head on the item's own modality, which is
    all that a real query has. *Fused*: the same heads on features in which a transformer has mixed image and text, the
    published protocol, where a code has seen its paired other modality. The training loss is ``loss(fused features)
    + hash_weight * loss(fused codes) + unimodal_weight * loss(unimodal codes)``. The first term is left out where it
    is not defined: image and text features of unequal widths have no cosine, and HashNet's loss is one on codes.
    HashNet's loss is the mean of the image-text pairs and of the pairs within the two modalities.

    Args:
        bits: Code length, at least 1.
        image_dim: Width of the image features; None = as the datamodule's, known when a run starts.
        text_dim: Width of the text features; None = as the datamodule's.
        loss: ``nt_xent`` or ``balanced`` (no labels used), or ``hashnet`` (labels: similar = shares one).
        fusion: Train and score the fused protocol too; False = the unimodal heads alone.
        unimodal_weight: Weight of the unimodal term; 0 with fusion is the published UCMFH.
        hash_weight: Weight of the term on fused codes.
        temperature: Of the contrastive losses.
        hidden: Width of the heads' hidden layer.
        dropout: Dropout rate of the heads.
        lr_fusion: Learning rate of the fusion encoder.
        lr_hash: Learning rate of the heads.

    Reference:
        Xia et al., When CLIP meets cross-modal hashing retrieval: A new strong baseline, Information Fusion 2023;
        Cao et al., HashNet: Deep Learning to Hash by Continuation, ICCV 2017.
    """

    def __init__(
        self,
        bits: int = 64,
        image_dim: int | None = None,
        text_dim: int | None = None,
        loss: Literal["nt_xent", "balanced", "hashnet"] = "nt_xent",
        fusion: bool = True,
        unimodal_weight: float = 1.0,
        hash_weight: float = 0.5,
        temperature: float = 0.5,
        hidden: int = 4096,
        dropout: float = 0.3,
        lr_fusion: float = 1e-4,
        lr_hash: float = 1e-3,
    ) -> None:
        if bits < 1:
            raise ValueError(f"bits is {bits}; a code needs at least 1 bit.")
        if loss not in ("nt_xent", "balanced", "hashnet"):
            raise ValueError(f"loss is {loss!r}; known are 'nt_xent', 'balanced' and 'hashnet'.")
        if unimodal_weight < 0 or hash_weight < 0:
            raise ValueError(f"unimodal_weight {unimodal_weight} and hash_weight {hash_weight} must not be negative.")
        if lr_fusion <= 0 or lr_hash <= 0:
            raise ValueError(f"lr_fusion is {lr_fusion} and lr_hash {lr_hash}; learning rates must be above 0.")
        if not fusion and unimodal_weight == 0:
            raise ValueError("fusion=False with unimodal_weight=0 leaves nothing to train; set one of them.")
        super().__init__()

    def configure_models(self) -> None:
        """Build the networks at once when the widths are given."""
        if self.hparams["image_dim"] is not None and self.hparams["text_dim"] is not None:
            self._build_networks()

    def configure_model(self) -> None:
        """Build the networks for the datamodule's features, before a checkpoint is loaded into them."""
        if hasattr(self, "image_head") and self._trainer is None:
            return  # load_from_checkpoint: the checkpoint knows the widths
        self.take_from_data("image_dim", "text_dim")
        if not hasattr(self, "image_head"):
            self._build_networks()

    def _build_networks(self) -> None:
        p = self.hparams
        if p["fusion"]:
            self.fusion = FusionEncoder(p["image_dim"], p["text_dim"])
        self.image_head = HashHead(p["image_dim"], p["bits"], p["hidden"], p["dropout"])
        self.text_head = HashHead(p["text_dim"], p["bits"], p["hidden"], p["dropout"])

    def configure_metrics(self) -> None:
        """One retrieval metric for each protocol and direction."""
        self.protocols = ("fused", "unimodal") if self.hparams["fusion"] else ("unimodal",)
        keys = [f"{protocol}_{direction}" for protocol in self.protocols for direction in ("i2t", "t2i")]
        self.val_metrics = nn.ModuleDict({key: HammingRetrieval(self.hparams["bits"]) for key in keys})
        self.test_metrics = nn.ModuleDict({key: HammingRetrieval(self.hparams["bits"]) for key in keys})
        self.results: dict[str, dict[str, Any]] = {}

    def forward(self, image: Tensor, text: Tensor) -> Pair:
        """Relaxed codes of each modality from itself alone: ``(B, Di)``, ``(B, Dt)`` -> two of ``(B, bits)``."""
        return self.image_head(image), self.text_head(text)

    def fused_features(self, image: Tensor, text: Tensor) -> Pair:
        """Features of each modality that have seen the other: same shapes as given."""
        return self.fusion(image, text)

    def _loss(self, pair: Pair, labels: Tensor) -> Tensor:
        image, text = self.gathered(pair[0]), self.gathered(pair[1])
        if self.hparams["loss"] == "hashnet":
            labels = self.gathered(labels)
            similar, scale = labels @ labels.T > 0, 10 / self.hparams["bits"]
            across, within_image, within_text = (
                hashnet_pairwise_loss(a, b, similar, scale) for a, b in ((image, text), (image, image), (text, text))
            )
            return across / 2 + (within_image + within_text) / 4
        loss = nt_xent_loss if self.hparams["loss"] == "nt_xent" else balanced_contrastive_loss
        return loss(image, text, self.hparams["temperature"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of the losses."""
        image, text, labels = batch["image"], batch["text"], batch["labels"]
        terms: dict[str, Tensor] = {}
        if self.hparams["fusion"]:
            fused = self.fused_features(image, text)
            if self.hparams["loss"] != "hashnet" and image.shape[1] == text.shape[1]:
                terms["fused"] = self._loss(fused, labels)
            terms["hash"] = self.hparams["hash_weight"] * self._loss(self(*fused), labels)
        if self.hparams["unimodal_weight"] > 0:
            terms["unimodal"] = self.hparams["unimodal_weight"] * self._loss(self(image, text), labels)
        loss = torch.stack(list(terms.values())).sum()
        logs = {"train/loss": loss, **{f"train/loss_{name}": value for name, value in terms.items()}}
        self.log_dict(logs, on_step=False, on_epoch=True, batch_size=len(image))
        return loss

    def codes(self, batch: Batch) -> dict[str, Pair]:
        """Binary codes of a batch by protocol, int8 of shape ``(B, bits)``, image and text."""
        inputs = {"unimodal": (batch["image"], batch["text"])}
        if self.hparams["fusion"]:
            inputs["fused"] = self.fused_features(batch["image"], batch["text"])
        relaxed = {protocol: self(*pair) for protocol, pair in inputs.items()}
        return {protocol: (binary_codes(image), binary_codes(text)) for protocol, (image, text) in relaxed.items()}

    def _score(self, metrics: nn.ModuleDict, batch: Batch, dataloader_idx: int) -> dict[str, Tensor]:
        codes = self.codes(batch)
        role = "query" if dataloader_idx == 0 else "database"
        for key, metric in metrics.items():
            protocol, direction = key.split("_")
            queries_are_images = direction == "i2t"
            side = 0 if queries_are_images == (role == "query") else 1  # 0 = image, 1 = text
            metric.update(codes[protocol][side], batch["labels"], batch["index"], role=role)
        image, text = codes["unimodal"]
        return {"index": batch["index"], "image_codes": image, "text_codes": text}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Collect the codes of the query (loader 0) and the database (loader 1)."""
        return self._score(self.val_metrics, batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Collect the codes of the query (loader 0) and the database (loader 1)."""
        return self._score(self.test_metrics, batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Unimodal binary codes with the index of their items."""
        image, text = self.codes(batch)["unimodal"]
        return {
            "index": batch["index"],
            "image_codes": image,
            "text_codes": text,
            "dataloader_idx": dataloader_idx,
        }

    def on_validation_epoch_end(self) -> None:
        """Log the validation figures.

        ``val/map``, the one to select by, is the unimodal mean of both directions; ``val/fused_map`` is the fused one.
        """
        self._log_results("val", self.val_metrics)
        for protocol, name in (("unimodal", "map"), ("fused", "fused_map")):
            values = [self.results[key]["map"] for key in self.results if key.startswith(protocol)]
            if values:
                self.log(f"val/{name}", torch.stack(values).mean(), prog_bar=True, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Log the test figures."""
        self._log_results("test", self.test_metrics)

    def _log_results(self, stage: str, metrics: nn.ModuleDict) -> None:
        self.results = {key: metric.compute() for key, metric in metrics.items()}
        for key, values in self.results.items():
            for name, value in values.items():
                if name == "random_precision_radius_2":  # depends on the codes, by the balls that are empty
                    self.log(f"{stage}/random_{key}_precision_radius_2", value, sync_dist=True)
                elif name.startswith("random_"):  # the other floors depend on the labels alone: one for all
                    self.log(f"{stage}/{name}", value, sync_dist=True)
                elif not name.startswith("n_") and value.ndim == 0:
                    self.log(f"{stage}/{key}_{name}", value, sync_dist=True)
        for metric in metrics.values():
            metric.reset()

    def result_notes(self) -> dict[str, Any]:
        """What the figures of the last evaluation mean: conventions, number of items, protocols."""
        metric = next(iter(self.test_metrics.values()))
        first = next(iter(self.results.values()), {})
        shared = [name for name in first if name.startswith(("n_", "random_")) and name != "random_precision_radius_2"]
        return {
            "convention": metric.convention,
            "protocols": {
                "unimodal": "a code is made from its own modality alone",
                "fused": "a code has seen its paired other modality, queries included",
            },
            **{name: first[name].item() for name in shared},
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam at constant rates, one for the fusion encoder and one for the heads."""
        heads = [*self.image_head.parameters(), *self.text_head.parameters()]
        groups: list[dict[str, Any]] = [{"params": heads, "lr": self.hparams["lr_hash"]}]
        if self.hparams["fusion"]:
            groups.append({"params": list(self.fusion.parameters()), "lr": self.hparams["lr_fusion"]})
        return torch.optim.Adam(groups, betas=(0.5, 0.999))

"""CLIP pre-training on image-caption pairs; its config trains the suite's tiny CLIP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_modules.backbones.tiny import build_tiny_clip, encode_phrases, normalise_images, save_weights, tokenize
from lightning_modules.base import BaseModule
from lightning_modules.contrastive.evaluation import (
    pixel_average_precision,
    presence_average_precision,
    recall_at_1,
)
from lightning_modules.contrastive.losses import patch_pooled_logits, sigmoid_loss, softmax_contrastive_loss
from lightning_modules.contrastive.networks import embeddings_and_values

TEMPLATES = ("{}", "a photo of {}", "an aerial photo of {}", "a satellite image of {}")


class ContrastivePretraining(BaseModule):
    """A CLIP of the tiny architecture, trained on captions, on class phrases and on patches.

    The loss is the sum of CLIP's softmax loss over captions, a sigmoid loss over concept phrases with all true
    phrases as positives, and the same over the best patches of each image, which ties patches to words although
    no mask is ever seen.

    Args:
        lr: Peak learning rate of AdamW under a one-cycle schedule.
        weight_decay: Of all matrices.
        patch_dropout: Share of the patches that a training image loses.
        concept_weight: Weight of the sigmoid loss over concept phrases.
        patch_weight: Weight of the same loss over patches.
        export: File (``.safetensors``) that receives the weights in half precision when ``fit`` ends; a relative path
            starts at the folder of the run.

    Batches need ``image`` (B, 3, S, S) uint8, ``text``, ``concepts`` (B, K), ``labels`` (B, C), ``semantic`` (B, S, S)
    and ``index`` (B,), the place in the set, by which several processes score each image once. The DataModule offers
    ``phrases``, for each of the K concepts the ways to name it, and ``class_names``, the first of them.
    """

    def __init__(
        self,
        lr: float = 1.5e-3,
        weight_decay: float = 0.05,
        patch_dropout: float = 0.6,
        concept_weight: float = 4.0,
        patch_weight: float = 2.0,
        export: str | None = None,
    ) -> None:
        super().__init__()

    def configure_models(self) -> None:
        """The tiny CLIP, and a scale and a bias for each sigmoid loss."""
        self.clip = build_tiny_clip(patch_dropout=self.hparams["patch_dropout"])
        self.concept_scale = nn.Parameter(torch.tensor([2.3, 2.3]))  # log of the inverse temperature
        self.concept_bias = nn.Parameter(torch.tensor([-2.0, -4.0]))

    @property
    def phrases(self) -> list[list[str]]:
        """The names of each concept."""
        return self.data.phrases

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Caption, concept and patch loss of one batch."""
        if self.device.type == "cpu":  # the fused attention is slower than matrix products there, most of all backwards
            with sdpa_kernel(SDPBackend.MATH):
                return self._loss(batch, batch_idx)
        return self._loss(batch, batch_idx)

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of images ``(B, D)`` and of their patches ``(B, N, D)``."""
        image, values = embeddings_and_values(self.clip.visual, normalise_images(images).to(self.dtype))
        return F.normalize(image, dim=-1), F.normalize(values, dim=-1)

    def _named_concepts(self, batch_idx: int) -> list[str]:
        """A phrase for each concept, drawn alike on all processes and in a resumed run."""
        rng = np.random.default_rng([int(os.environ.get("PL_GLOBAL_SEED", 0)), self.current_epoch, batch_idx])
        return [rng.choice(TEMPLATES).format(rng.choice(names)) for names in self.phrases]

    def _loss(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        image, values = self._embed(batch["image"])
        tokens = tokenize([*batch["text"], *self._named_concepts(batch_idx)]).to(self.device)
        text = self.clip.encode_text(tokens, normalize=True)
        captions, concepts = text[: len(image)], text[len(image) :]
        scale, bias = self.concept_scale.exp(), self.concept_bias
        pooled = patch_pooled_logits(values, concepts)
        losses = {
            "caption": softmax_contrastive_loss(
                self.gathered(image), self.gathered(captions), self.clip.logit_scale.exp().clamp(max=100)
            ),
            "concept": sigmoid_loss(scale[0] * image @ concepts.T + bias[0], batch["concepts"]),
            "patch": sigmoid_loss(scale[1] * pooled + bias[1], batch["concepts"]),
        }
        self.log_dict({f"train/{name}_loss": loss for name, loss in losses.items()})
        weights = {"caption": 1.0, "concept": self.hparams["concept_weight"], "patch": self.hparams["patch_weight"]}
        total = sum(weights[name] * loss for name, loss in losses.items())
        self.log("train/loss", total, prog_bar=True)
        return total

    def _evaluate(self, batch: dict[str, Any]) -> None:
        image, values = self._embed(batch["image"])
        self._seen.append(
            {
                "index": batch["index"],
                "image": image.float(),
                "text": self.clip.encode_text(tokenize(batch["text"]).to(self.device), normalize=True).float(),
                "patch": values.float() @ self._classes.T,
                "labels": batch["labels"].float(),
                "semantic": batch["semantic"],
            }
        )

    def _start(self) -> None:
        self._seen: list[dict[str, Tensor]] = []
        classes = self.phrases[: len(self.data.class_names)]
        self._classes = encode_phrases(self.clip, classes, self.device)

    def _finish(self, stage: str) -> None:
        seen = {key: self.gathered(torch.cat([part[key] for part in self._seen])) for key in self._seen[0]}
        first = torch.from_numpy(np.unique(seen["index"].cpu().numpy(), return_index=True)[1])  # samplers repeat items
        seen = {key: rows[first] for key, rows in seen.items()}
        presence = torch.tensor(presence_average_precision(seen["image"] @ self._classes.T, seen["labels"]))
        pixels = pixel_average_precision(seen["patch"], seen["semantic"])
        values = {
            "presence_ap": presence.nanmean().item(),
            "presence_prior": seen["labels"].mean(0)[seen["labels"].any(0)].mean().item(),
            "pixel_ap": pixels[:, 1].mean().item(),
            "pixel_prior": pixels[:, 2].mean().item(),
            "recall_at_1": recall_at_1(seen["image"], seen["text"]),
        }
        # equal on all processes, so that the mean over them changes nothing
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True, prog_bar=True)

    def on_validation_epoch_start(self) -> None:
        """Forget the last round."""
        self._start()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Embed a batch."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Score what was embedded."""
        self._finish("val")

    def on_test_epoch_start(self) -> None:
        """Forget the last round."""
        self._start()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Embed a batch."""
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        """Score what was embedded."""
        self._finish("test")

    def on_fit_end(self) -> None:
        """Write the weights to ``export``."""
        if self.hparams["export"] and self.trainer.is_global_zero:
            save_weights(self.clip, Path(self.trainer.default_root_dir) / self.hparams["export"])

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW without decay on vectors, one cycle over all steps."""
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            groups, lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"], betas=(0.9, 0.98)
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams["lr"], total_steps=int(self.trainer.estimated_stepping_batches), pct_start=0.08
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

"""Multi-label hashing: frozen image and text features, their fusion, a hash layer and a classifier."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_modules.base import BaseModule
from lightning_modules.metrics.multilabel import MultilabelScores, multilabel_scores
from lightning_modules.metrics.multilabel_floors import prior_scores
from lightning_modules.multilabel.checks import check_neighbours, check_settings, check_split
from lightning_modules.multilabel.evaluation import Fitted, in_order, joined, part_scores, selection_notes, test_notes
from lightning_modules.multilabel.losses import alignment_loss, loss_terms
from lightning_modules.multilabel.model import HashClassifier, scorings
from lightning_modules.multilabel.networks import decompose
from lightning_modules.multilabel.schedule import adamw_with_schedule, optimiser_steps
from lightning_modules.multilabel.towers import LiveTowers

Batch = dict[str, Any]
PARTS = ("fold", "test")  # what the two test loaders hold


class MultilabelHashing(BaseModule):
    """Labels of an image with its caption, through a binary code of both.

    Image and text feature are fused, a hash layer ends in ``tanh(scale * x)``, and a classifier reads the code. It is
    scored twice: on the relaxed codes (``soft``), as published, and on their signs (``binary``), which is what a
    search over stored codes would see. Without hash layer (``bits: null``) there is only ``soft``, with the KNN head
    only ``binary``. ``val/map``, the figure to select by, is the macro average precision of the first of them.

    Args:
        bits: Length of the code; None = no hash layer.
        fusion: ``hadamard``: directions, their product and log magnitudes; ``concat``: the features side by side.
        head: ``linear``, ``mlp`` or ``knn``: votes of the training items with the nearest codes, learnt as ``linear``.
        loss: ``bce``, or ``asymmetric``, which attends less to the many easy negatives.
        quantisation_weight: Weight of the distance of the code values from -1 and 1; 0 = off, as for the next ones.
        balance_weight: Weight of the mean of each bit over the batch.
        decorrelation_weight: Weight of the covariance between bits.
        alignment_weight: Weight of 1 - cosine of image and text direction; needs ``unfreeze_blocks``.
        knn_neighbours: K of the KNN head.
        knn_temperature: Softmax temperature of its votes.
        unfreeze_blocks: Transformer blocks of each tower, from the last, that are trained too; needs ``live`` data.
        hidden: Width of the fusion's hidden layer.
        width: Width of the fused feature.
        dropout: Dropout rate of the fusion.
        lr: Peak learning rate of the new layers.
        tower_lr: Peak learning rate of unfrozen tower blocks.
        weight_decay: AdamW's weight decay.
        schedule: ``cosine`` to the end, or ``warm_restarts``.
        warmup_epochs: Epochs in which the rate rises linearly; a fraction is allowed.
        restart_epochs: Epochs to the first restart.
        restart_factor: Growth of the following periods.
        min_lr: Rate at the end of a period.
        image_dim: Width of the image features; None = that of the data.
        text_dim: Width of the text features; None = that of the data.
        num_classes: Number of labels; None = that of the data.

    Raises:
        ValueError: Arguments that do not fit together, among them an alignment term that could not train anything.

    Reference:
        Tschannen et al., SigLIP 2, arXiv:2502.14786 (towers); Cao et al., HashNet, ICCV 2017 (tanh continuation);
        Ridnik et al., Asymmetric Loss for Multi-Label Classification, ICCV 2021.
    """

    def __init__(
        self,
        bits: int | None = 64,
        fusion: Literal["hadamard", "concat"] = "hadamard",
        head: Literal["linear", "mlp", "knn"] = "linear",
        loss: Literal["bce", "asymmetric"] = "bce",
        quantisation_weight: float = 0.1,
        balance_weight: float = 0.01,
        decorrelation_weight: float = 0.001,
        alignment_weight: float = 0.0,
        knn_neighbours: int = 20,
        knn_temperature: float = 0.07,
        unfreeze_blocks: int = 0,
        hidden: int = 1024,
        width: int = 512,
        dropout: float = 0.1,
        lr: float = 2e-4,
        tower_lr: float = 1e-5,
        weight_decay: float = 0.01,
        schedule: Literal["cosine", "warm_restarts"] = "cosine",
        warmup_epochs: float = 1.0,
        restart_epochs: int = 5,
        restart_factor: int = 2,
        min_lr: float = 1e-6,
        image_dim: int | None = None,
        text_dim: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        weights = {"quantisation": quantisation_weight, "balance": balance_weight}
        weights |= {"decorrelation": decorrelation_weight, "alignment": alignment_weight}
        check_settings(bits, head, knn_neighbours, weights, unfreeze_blocks, (lr, tower_lr, min_lr))
        super().__init__()

    def configure_models(self) -> None:
        """Build the networks at once when the widths are given."""
        self.scorings = scorings(self.hparams["bits"], self.hparams["head"])
        self.voting = (self.hparams["knn_neighbours"], self.hparams["knn_temperature"])
        self.fitted: Fitted | None = None
        self.predictions: dict[str, dict[str, Tensor]] = {}
        self.split_sha256: str | None = None  # of the items that the weights were trained and selected on
        self.selection_score = math.nan  # of these weights
        self.selection_count = 0  # items that it is of
        if None not in (self.hparams["image_dim"], self.hparams["text_dim"], self.hparams["num_classes"]):
            self._build()

    def configure_model(self) -> None:
        """Build the networks for the datamodule's features, before a checkpoint is loaded into them."""
        if self._trainer is None:
            return  # load_from_checkpoint: the checkpoint knows the widths
        data = self.data
        if not hasattr(self, "model"):
            self.take_from_data("image_dim", "text_dim", "num_classes")
            self._build()
        count = self.hparams["unfreeze_blocks"]
        if count and not getattr(data, "live", False):
            raise ValueError(f"unfreeze_blocks {count}: trained towers need pixels. Set data.init_args.live: true.")
        if not hasattr(self, "towers"):
            self.towers = LiveTowers(getattr(data, "encoder", None), count)

    def _build(self) -> None:
        p = self.hparams
        names = ("image_dim", "text_dim", "num_classes", "bits", "fusion", "head", "hidden", "width", "dropout")
        self.model = HashClassifier(**{name: p[name] for name in names})
        keys = [*self.scorings, *(f"{part}_{kind}" for part in PARTS for kind in self.scorings)]
        self.scores = nn.ModuleDict({key: MultilabelScores(p["num_classes"]) for key in keys})

    def embeddings(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Image and text embeddings of a batch, ``(B, Di)`` and ``(B, Dt)``: as they came, or through the towers."""
        if batch["image"].ndim == 2:
            return batch["image"], batch["text"]
        return self.towers(batch["image"], batch["text"], self.device)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits ``(B, C)`` and relaxed codes ``(B, bits)`` of embeddings; no codes without hash layer."""
        return self.model(image, text)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of the loss terms, each of them logged."""
        image, text = self.embeddings(batch)
        terms = loss_terms(*self(image, text), batch["labels"], self.hparams)
        if weight := self.hparams["alignment_weight"]:
            terms["alignment"] = weight * alignment_loss(decompose(image)[0], decompose(text)[0])
        loss = torch.stack(list(terms.values())).sum()
        logs = {"train/loss": loss, **{f"train/loss_{name}": value for name, value in terms.items()}}
        self.log_dict(logs, on_step=False, on_epoch=True, batch_size=len(batch["labels"]))
        self.fitted = None  # what was fitted belongs to earlier weights
        return loss

    def fit_to_training_items(self) -> Fitted:
        """Thresholds, class frequencies and the KNN gallery from all training items, under the present weights."""
        if self.fitted is not None:
            return self.fitted
        data, was_training = self.data, self.training
        self.eval()
        with torch.inference_mode(), self.trainer.precision_plugin.forward_context():
            batches = (self.transfer_batch_to_device(batch, self.device, 0) for batch in data.gallery_dataloader())
            found = joined((*self.model.scored(*self.embeddings(batch), None), batch["labels"]) for batch in batches)
        self.train(was_training)
        voting = self.voting if self.hparams["head"] == "knn" else None
        self.fitted = Fitted.from_training_items(found, list(data.class_names), voting)
        return self.fitted

    def check_items(self) -> None:
        """Remember what is trained on; refuse weights of other items, and too large a K."""
        data = self.data
        if self.hparams["head"] == "knn":
            check_neighbours(self.hparams["knn_neighbours"], len(data.rows["train"]))
        check_split(self.split_sha256, data.split_sha256)
        self.split_sha256 = data.split_sha256

    on_train_start = check_items

    def on_validation_epoch_start(self) -> None:
        """Collect the gallery that validation needs."""
        self.check_items()
        self.predictions = {}  # of an earlier test
        self.votes = self.fit_to_training_items().votes if self.hparams["head"] == "knn" else None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the probabilities of the items that selection looks at."""
        for kind, probabilities in self.model.scored(*self.embeddings(batch), self.votes)[0].items():
            self.scores[kind].update(probabilities, batch["labels"], batch["index"])

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the selection items; ``val/map`` is the one to select by."""
        for kind in self.scorings:
            probabilities, labels, _ = self.scores[kind].collected()
            scores = multilabel_scores(probabilities.cpu(), labels.cpu())
            self.scores[kind].reset()
            self.log_dict({f"val/{kind}_{name}": value for name, value in scores.items()}, sync_dist=True)
            if kind == self.scorings[0]:
                self.selection_score, self.selection_count = scores["map_macro"], len(labels)
                self.log("val/map", scores["map_macro"], prog_bar=True, sync_dist=True)
        if self.trainer.state.fn == "validate":
            floors = prior_scores(self.fit_to_training_items().train_frequency, labels.cpu())
            self.log_dict({f"val/random_{name}": value for name, value in floors.items()}, sync_dist=True)

    def on_test_epoch_start(self) -> None:
        """Fit what the training items decide, unless the checkpoint knows it."""
        self.check_items()
        self.votes = self.fit_to_training_items().votes
        self.test_codes: dict[str, list[tuple[Tensor, Tensor]]] = {part: [] for part in PARTS}

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect probabilities and codes of the fold (loader 0) and of the hold-out (loader 1)."""
        part = PARTS[dataloader_idx]
        probabilities, codes = self.model.scored(*self.embeddings(batch), self.votes)
        for kind, values in probabilities.items():
            self.scores[f"{part}_{kind}"].update(values, batch["labels"], batch["index"])
        if codes is not None:
            self.test_codes[part].append((batch["index"].cpu(), codes.cpu()))

    def on_test_epoch_end(self) -> None:
        """Log all figures of both parts with their floors, and keep the predictions."""
        fitted = self.fit_to_training_items()
        self.predictions = {}
        for part in PARTS:
            for kind in self.scorings:
                metric = self.scores[f"{part}_{kind}"]
                probabilities, labels, index = (values.cpu() for values in metric.collected())
                metric.reset()
                scores = part_scores(probabilities, labels, fitted.thresholds[kind])
                self.log_dict({f"{part}/{kind}_{name}": value for name, value in scores.items()}, sync_dist=True)
                self.predictions.setdefault(part, {"index": index, "labels": labels})[kind] = probabilities
            floors = prior_scores(fitted.train_frequency, labels)
            self.log_dict({f"{part}/random_{name}": value for name, value in floors.items()}, sync_dist=True)
            if self.hparams["bits"]:
                self.predictions[part]["codes"] = in_order(self.test_codes[part])

    def on_predict_start(self) -> None:
        """Fit what the training items decide, where they are at hand and the checkpoint does not know it."""
        if getattr(self.data, "rows", None):
            self.check_items()
            self.fit_to_training_items()
        self.votes = self.fitted.votes if self.fitted else None
        if self.hparams["head"] == "knn" and self.votes is None:
            raise ValueError("The checkpoint holds no KNN gallery; test it once on its training data, then predict.")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Probabilities, codes and the index of a batch's items."""
        probabilities, codes = self.model.scored(*self.embeddings(batch), self.votes)
        ids = batch["id"] if "id" in batch else self.data.ids_of(PARTS[dataloader_idx], batch["index"])
        return {"probabilities": probabilities[self.scorings[0]], "codes": codes, "index": batch["index"], "ids": ids}

    @property
    def class_names(self) -> list[str] | None:
        """Names of the labels, as the checkpoint knows them; None when nothing was fitted."""
        return self.fitted.class_names if self.fitted else None

    @property
    def decision_thresholds(self) -> Tensor | None:
        """The fitted threshold ``(C,)`` of each class for ``predict``; None when nothing was fitted."""
        return self.fitted.thresholds[self.scorings[0]] if self.fitted else None

    def result_notes(self) -> dict[str, Any]:
        """What the figures of the last test or validation mean."""
        if not self.predictions:
            return selection_notes(self.selection_count)
        notes = test_notes(self.fit_to_training_items(), self.predictions, self.hparams["bits"], self.voting[0])
        data = self.data
        return {**notes, "folds_sha256": data.folds_sha256, "features": data.features_name, **data.unlabelled()}

    def fit_for_checkpoint(self) -> None:
        """Fit what a checkpoint keeps, unless that takes a pass of the towers over all images."""
        if not self.data.live or self.hparams["head"] == "knn":
            self.fit_to_training_items()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was fitted."""
        self.fit_for_checkpoint()
        checkpoint["fitted"] = self.fitted.state_dict() if self.fitted else None
        checkpoint["split_sha256"], checkpoint["selection_score"] = self.split_sha256, self.selection_score

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what was fitted with these weights; the votes are those of this run's settings."""
        state = checkpoint.get("fitted")
        self.fitted = Fitted.from_state_dict(state).voted_by(*self.voting) if state else None
        self.split_sha256 = checkpoint.get("split_sha256")
        self.selection_score = checkpoint.get("selection_score", math.nan)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW whose rate warms up and falls with every optimiser step."""
        p = self.hparams
        groups = [{"params": list(self.model.parameters()), "lr": p["lr"]}]
        if self.towers.trained:
            groups.append({"params": self.towers.trained, "lr": p["tower_lr"]})
        optimizer, scheduler = adamw_with_schedule(groups, p, *optimiser_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

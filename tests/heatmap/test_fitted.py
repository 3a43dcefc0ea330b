"""Signs and thresholds belong to names, maps and weights: which of a checkpoint's hold, and what is fitted anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader

from lightning_modules.backbones import TinyClip
from lightning_modules.heatmap.fitted import MAP_SETTINGS, Fitted, places_of
from lightning_modules.heatmap.module import HeatmapDetection

NAMES = ["ship", "harbor", "tree"]
ENCODER = TinyClip()  # loaded when it is first asked
SETTINGS: dict[str, Any] = {**dict.fromkeys(MAP_SETTINGS, "same"), "redundancy": "none"}


def taken(names: list[str], **changed: Any) -> tuple[list[float], list[float]] | None:
    """Signs and thresholds that a run with these names and settings takes from a checkpoint."""
    fitted = Fitted(torch.tensor([1.0, -1.0, 1.0]), torch.tensor([0.1, 0.2, 0.3]).double(), 9).state_dict()
    before = {**SETTINGS, **{key: value for key, value in changed.items() if key == "redundancy"}}
    checkpoint = {"heatmap": {"names": NAMES, "fitted": fitted}, "hyper_parameters": before}
    found = Fitted.from_checkpoint(checkpoint, names, {**SETTINGS, **changed})
    return found and (found.signs.tolist(), pytest.approx(found.thresholds.tolist()))


def test_a_checkpoint_is_read_by_name() -> None:
    assert taken(NAMES) == ([1, -1, 1], [0.1, 0.2, 0.3])
    assert taken(["tree", "ship", "harbor"]) == ([1, 1, -1], [0.3, 0.1, 0.2])
    assert taken(["harbor"]) == ([-1], [0.2])
    assert taken(["harbor", "bridge"]) is None
    assert taken(NAMES[::-1], redundancy="class_mean") == ([1, -1, 1], [0.3, 0.2, 0.1])
    assert taken(["harbor"], redundancy="class_mean") is None  # fewer classes, other maps


@pytest.mark.parametrize("setting", [name for name in MAP_SETTINGS if name != "redundancy"])
def test_other_maps_need_other_thresholds(setting) -> None:
    assert taken(NAMES, **{setting: "other"}) is None


def test_classes_that_the_data_lacks_are_named() -> None:
    with pytest.raises(ValueError, match="none of bridge, pool"):
        places_of(["ship", "bridge", "pool"], NAMES)


@pytest.mark.parametrize(("sign", "wanted"), [("1", [0.9, 0.1]), ("-1", [-0.9, -0.1]), ("fitted", [0.9, -0.1])])
def test_thresholds_are_those_of_the_signed_maps(sign, wanted) -> None:
    maps = torch.tensor([[[0.9, 0.1, 0.1, 0.1]], [[0.1, 0.9, 0.9, 0.9]]])  # high and low inside
    coverage = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]] * 2)
    fitted = Fitted.from_maps([(maps, coverage)], sign)
    assert fitted.thresholds.tolist() == pytest.approx(wanted)
    assert fitted.signs.tolist() == ([1, -1] if sign == "fitted" else [float(sign)] * 2)


class Data(LightningDataModule):
    """Four pictures of noise with a box of each class, in all parts."""

    def __init__(self, names: list[str], image_size: int | None = 32) -> None:
        super().__init__()
        self.display_names, self.image_size = names, image_size

    def batch(self, rows: list[int]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        side = self.image_size or 32
        images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=generator)[rows]
        boxes = torch.tensor([[0.0, 0, 16, 16], [16, 0, 32, 32], [0, 16, 16, 32]])
        labels = torch.tensor([self.display_names.index(name) for name in NAMES])
        return {
            "image": images if self.image_size else list(images),
            "boxes": [boxes for _ in rows],
            "box_labels": [labels for _ in rows],
            "ignore": [torch.zeros(3, dtype=torch.bool) for _ in rows],
            "size": torch.full((len(rows), 2), 32),
            "index": torch.tensor(rows),
            "id": list(map(str, rows)),
        }

    def train_dataloader(self):
        return DataLoader(range(4), batch_size=2, collate_fn=self.batch)

    gallery_dataloader = val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def module(**settings: Any) -> HeatmapDetection:
    same = {"redundancy": "none", "templates": "plain", "threshold": "fitted", "sign": "fitted", "adapter": "linear"}
    return HeatmapDetection(ENCODER, **{**same, "lr": 0.1, "class_source": "all", **settings})


def trainer(*callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "max_epochs": 1}
    return Trainer(callbacks=list(callbacks), **{**quiet, **settings})


def test_a_run_with_other_names_detects_with_their_own_thresholds(tmp_path) -> None:
    first, path = module(), tmp_path / "heat.ckpt"
    fit = trainer()
    fit.fit(first, datamodule=Data(NAMES))
    fit.save_checkpoint(path)
    wanted = dict(zip(NAMES, first.fitted.thresholds.tolist(), strict=True))
    assert len(set(wanted.values())) == 3
    for names, chosen in ((NAMES[::-1], None), (NAMES, ["tree", "ship"])):
        later = module(class_names=chosen)
        run = trainer()
        run.predict(later, datamodule=Data(names), ckpt_path=path, weights_only=True)
        found = dict(zip(later.names, later.fitted.thresholds.tolist(), strict=True))
        assert found == {name: wanted[name] for name in chosen or NAMES}
    anew = module(class_names=["tree", "ship"], sign="-1")  # fitted to the boxes of these two
    trainer().predict(anew, datamodule=Data(NAMES), ckpt_path=path, weights_only=True)
    turned = module(sign="-1")
    trainer().predict(turned, datamodule=Data(NAMES), ckpt_path=path, weights_only=True)
    torch.testing.assert_close(anew.fitted.thresholds, turned.fitted.thresholds[[2, 0]])
    with pytest.raises(ValueError, match="none of bridge"):
        trainer().predict(module(class_names=["tree", "bridge"]), datamodule=Data(NAMES), ckpt_path=path)


class Average(Callback):
    """Looks at the training part after an epoch, as mining does, and validates other weights, as averaging does."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            with torch.no_grad():
                pl_module.find_boxes(batch)
            self.raw = pl_module.fitted.thresholds

    def on_validation_epoch_start(self, trainer, pl_module):
        torch.nn.init.eye_(pl_module.tokens.linear.change.weight)

    def on_validation_end(self, trainer, pl_module):
        self.used, pl_module.fitted = pl_module.fitted.thresholds, None
        pl_module.fit_to_training_items()
        self.right = pl_module.fitted.thresholds


def test_thresholds_are_those_of_the_weights_that_are_validated(tmp_path) -> None:
    for validated in (1, 0):
        look, heatmap = Average(), module()
        run = trainer(look, limit_val_batches=validated)
        run.fit(heatmap, datamodule=Data(NAMES))
        run.save_checkpoint(tmp_path / "heat.ckpt")
        kept = torch.load(tmp_path / "heat.ckpt", weights_only=True)["heatmap"]["fitted"]
        if validated:
            assert torch.equal(look.used, look.right)
            assert torch.equal(kept["thresholds"], look.right)
            assert not torch.equal(look.raw, look.right)
        else:
            assert kept is None  # the checkpoint's weights may be averaged


def test_maps_are_float32_under_autocast() -> None:
    heatmap, data = module(class_names=NAMES, threshold="otsu", sign="1"), Data(NAMES)
    heatmap.configure_model()
    images = data.batch([0, 1])["image"]
    tokens = torch.randn(2, 17, 128)
    with torch.no_grad():
        plain, (maps, _) = heatmap.similarity(tokens), heatmap(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(heatmap.similarity(tokens), plain)
            half, presence = heatmap(images)
    assert half.dtype == presence.dtype == torch.float32
    torch.testing.assert_close(half, maps, atol=0.05, rtol=0)
    assert len(half.unique()) > 90  # of 96: bfloat16 would have ties


@pytest.mark.parametrize(
    ("size", "words"), [(None, "one size.*image_size.*multiple of 8"), (31, "24 or 32"), (36, "32 or 40"), (7, "to 8.")]
)
@pytest.mark.parametrize("threshold", ["otsu", "fitted"])
def test_pictures_that_patches_do_not_cover_are_refused(size, words, threshold) -> None:
    with pytest.raises(ValueError, match=words):
        trainer().test(module(threshold=threshold), datamodule=Data(NAMES, size), verbose=False)

"""What the miner acts on, when it is due, and what it returns beside predictions; the teacher."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from callbacks import HardNegativeMining, RealTimeMining
from lightning_modules import ConvDetection
from lightning_modules.detection.distillation import distillation_losses, load_teacher


class Watched(ConvDetection):
    """Keeps what acts on its losses."""

    def training_losses(self, images, targets, index):
        self.index = index
        return torch.arange(1.0, len(index) + 1, requires_grad=True)


def test_weights_of_images_act_on_their_losses() -> None:
    module = Watched(online_ratio=0.5)
    module.log = lambda *arguments, **named: None
    boxes = [torch.tensor([[1.0, 1, 5, 5]])] * 4
    labels, ignore = [torch.zeros(1).long()] * 4, [torch.zeros(1).bool()] * 4
    batch = {
        "image": torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "boxes": boxes, "box_labels": labels, "ignore": ignore,
        "size": torch.full((4, 2), 8), "index": torch.tensor([3, 0, 1, 2]),
    }  # fmt: skip
    assert module.training_step(batch, 0).item() == (3 + 4) / 2  # the highest half
    module.image_weights = torch.tensor([1.0, 0.5, 0.1, 10.0])
    assert module.training_step(batch, 0).item() == pytest.approx((10 * 1 + 1 * 2) / 2)  # of 10, 2, 1.5 and 0.4


class Sampler:
    def set_weights(self, weights):
        self.weights = weights


def test_the_placebo_has_the_same_weights_on_other_images() -> None:
    miner, control = HardNegativeMining(), HardNegativeMining(control="placebo")
    miner.hardness = control.hardness = torch.arange(20.0)
    assert torch.equal(miner.weights().sort().values, control.weights().sort().values)
    assert not torch.equal(miner.weights(), control.weights())
    assert torch.equal(control.weights(), control.weights())
    for callback in (miner, control):  # nearly all have some hardness; hard are the few that weigh more
        module = SimpleNamespace(hard_images=None, device="cpu")
        callback.act(SimpleNamespace(datamodule=SimpleNamespace(sampler=Sampler())), module)
        assert module.hard_images.tolist() == (callback.weights() > 1 / 20).tolist()
        assert int(module.hard_images.sum()) == 3


def test_thresholds_of_another_number_of_classes_are_told_before_training() -> None:
    trainer = SimpleNamespace(datamodule=SimpleNamespace(sampler=None, mining_dataloader=None), max_epochs=11)
    module = SimpleNamespace(find_boxes=None, names=["ship", "car"])
    HardNegativeMining(confidence_threshold=[0.5, 0.4]).on_fit_start(trainer, module)
    with pytest.raises(ValueError, match=r"lists 3 values and there are 2 classes \(ship, car\)"):
        HardNegativeMining(confidence_threshold=[0.5, 0.4, 0.3]).on_fit_start(trainer, module)


def test_a_training_that_ends_before_the_first_round_is_told(recwarn) -> None:
    data, module = SimpleNamespace(sampler=None, mining_dataloader=None), SimpleNamespace(find_boxes=None, names=[])
    for epochs in (None, -1, 11, 10):
        HardNegativeMining().on_fit_start(SimpleNamespace(datamodule=data, max_epochs=epochs), module)
    (warning,) = [str(entry.message) for entry in recwarn]
    assert "start_epoch is 10 and the training has 10 epochs, counted from 0: nothing will be mined" in warning


@pytest.mark.parametrize(
    ("start", "every", "epochs", "rounds"),
    [(10, 10, 30, [9, 19]), (1, 1, 4, [0, 1, 2]), (3, 2, 8, [2, 4, 6]), (5, 1, 5, []), (2, 3, -1, [1, 4, 7, 10])],
)
def test_rounds_come_before_the_epochs_that_are_asked_for(start, every, epochs, rounds) -> None:
    miner = HardNegativeMining(every_n_epochs=every, start_epoch=start)
    last = 12 if epochs < 0 else epochs
    found = [e for e in range(last) if miner.is_due(SimpleNamespace(current_epoch=e, max_epochs=epochs))]
    assert found == rounds


def test_each_image_of_a_predicted_batch_gets_its_hard_negatives() -> None:
    box, far = [[0.0, 0, 4, 4]], [[0.0, 0, 4, 4], [20.0, 20, 24, 24]]
    batch = {
        "boxes": [torch.tensor(box)] * 2, "box_labels": [torch.zeros(1).long()] * 2,
        "ignore": [torch.zeros(1).bool()] * 2, "index": torch.tensor([7, 4]), "id": ["a.jpg", "b.jpg"],
    }  # fmt: skip
    outputs = [
        {"boxes": torch.tensor(box), "scores": torch.tensor([0.9]), "labels": torch.zeros(1).long()},
        {"boxes": torch.tensor(far), "scores": torch.tensor([0.9, 0.8]), "labels": torch.zeros(2).long()},
    ]
    miner = RealTimeMining()
    miner.on_predict_batch_end(None, None, outputs, batch, 0)
    assert outputs[0]["hard_negatives"] == []
    (found,) = outputs[1]["hard_negatives"]
    assert (found.image_index, found.image_id, found.type, found.prediction_index) == (4, "b.jpg", "background", 1)
    miner.on_predict_batch_end(None, None, outputs, {"index": torch.tensor([7, 4])}, 0)  # a folder of pictures
    assert [image["hard_negatives"] for image in outputs] == [[], []]


def test_a_teacher_must_be_one(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_teacher(str(tmp_path / "none.ckpt"), ["ship"])
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of ConvDetection"):
        load_teacher(str(tmp_path / "other.ckpt"), ["ship"])


def test_distillation_is_the_quality_focal_loss_written_out() -> None:
    own = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    teacher = 3 * torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    for row, found in enumerate(distillation_losses(own, teacher).tolist()):
        total, seen = 0.0, 0.0
        for cell in range(5):
            wanted = [1 / (1 + math.exp(-x)) for x in teacher[row, cell].tolist()]
            seen += max(wanted)
            for y, x in zip(wanted, own[row, cell].tolist(), strict=True):
                p = 1 / (1 + math.exp(-x))
                total -= (p - y) ** 2 * (y * math.log(p) + (1 - y) * math.log(1 - p))
        assert found == pytest.approx(total / max(1, seen), rel=1e-5)

"""Classes are compared by name: what is scored, predicted, loaded and trained where detector and data differ."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_modules import ConvDetection, OnnxDetection
from lightning_modules.detection.class_names import data_columns

OWN, DATA = ["person", "tennis court", "ship", "car"], ["Ship", "car", "tennis-court", "dam"]
TRUE = torch.tensor([0, 1, 2])  # of DATA; of OWN they are 2, 3 and 1


class Right(OnnxDetection):
    """An exported detector that finds all objects, and a person besides."""

    def build(self, num_classes):
        boxes = torch.tensor([[9.0 * k, 0, 9 * k + 8, 8] for k in range(4)])
        found = {"boxes": boxes, "scores": torch.full((4,), 0.5), "labels": torch.tensor([2, 3, 1, 0])}
        network = nn.Module()
        network.detect = lambda images, sizes: [found] * len(images)
        return network


def on(module, names):
    """The module as a run on data with these classes has it."""
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(display_names=names))
    module.configure_model()
    return module


def batch():
    boxes = [torch.tensor([[9.0 * k, 0, 9 * k + 8, 8] for k in range(3)])]
    return {
        "image": [torch.zeros(3, 8, 36).byte()], "size": torch.tensor([[8, 36]]), "index": torch.tensor([4]),
        "id": ["a.jpg"], "boxes": boxes, "box_labels": [TRUE], "ignore": [torch.zeros(3).bool()],
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:Boxes of classes")
def test_boxes_are_scored_in_the_class_of_their_name() -> None:
    module = on(Right("a.onnx", class_names=OWN), DATA)
    assert module._collect(batch())["names"] == DATA
    assert module.scores.compute()["ap_50"] == 1.0
    (labelled,) = module.predict_step(batch(), 0)
    assert (labelled["labels"].tolist(), labelled["names"], len(labelled["boxes"])) == ([0, 1, 2], DATA, 3)
    (folder,) = module.predict_step({name: batch()[name] for name in ("image", "size", "index", "id")}, 0)
    assert (folder["labels"].tolist(), folder["names"]) == ([2, 3, 1, 0], OWN)
    assert on(module, DATA[::-1])._collect(batch())["found"][0]["labels"].tolist() == [3, 2, 1]  # another run's data


def test_what_one_side_lacks_is_told_and_nothing_in_common_refused() -> None:
    with pytest.warns(UserWarning, match=r"dropped \(person\), .* missed \(dam\)"):
        assert data_columns(OWN, DATA).tolist() == [-1, 2, 0, 1]
    with pytest.raises(ValueError, match=r"knows person, the data Ship, .* no class is in both. Set model.init_args"):
        on(Right("a.onnx", class_names=OWN[:1]), DATA[:2])._collect(batch())


def test_a_checkpoint_of_other_classes_is_refused() -> None:
    module, stored = on(ConvDetection(width=8), ["ship", "car"]), {}
    module.on_save_checkpoint(stored)
    module.on_load_checkpoint(stored)
    with pytest.raises(
        ValueError, match=r"of the checkpoint are \['ship', 'car'\], those of this run \['car', 'ship'\]. .*set mod"
    ):
        on(ConvDetection(width=8), ["car", "ship"]).on_load_checkpoint(stored)
    cured = on(ConvDetection(width=8, class_names=["ship", "car"]), ["car", "ship"])
    cured.on_load_checkpoint(stored)  # to be tested, by name
    with pytest.raises(ValueError, match=r"of the data are \['car', 'ship'\], those of this run \['ship', 'car'\]"):
        cured.on_fit_start()


def test_pictures_of_their_own_size_are_refused_where_a_batch_is_stacked() -> None:
    with pytest.raises(
        ValueError, match=r"different sizes make no batch for this detector\. Set data\.init_args\.image_size"
    ):
        on(ConvDetection(width=8), DATA).find_boxes(batch())

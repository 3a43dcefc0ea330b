"""Detection scores, TIDE and pixel average precision of two processes are those of one, however uneven the shares."""

import numpy as np
import pytest
import torch
from detection_worlds import world
from processes import launch

from lightning_modules.metrics import TIDE, DetectionScores, PixelAveragePrecision

DDP_RUN = """
import os
import sys
import torch
import torch.distributed as dist
from lightning_modules.metrics import TIDE, DetectionScores, PixelAveragePrecision

source, target, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
rank = int(os.environ.get("LOCAL_RANK", 0))
dist.init_process_group("gloo", rank=rank, world_size=processes)
predictions, targets, maps, truth = torch.load(source)
n = len(targets)
shares = {
    "padded": torch.cat([torch.arange(n), torch.arange(n % 2)])[rank::2],
    "uneven": torch.arange(17) if rank else torch.arange(17, n),
    "one has none": torch.arange(n) if rank else torch.arange(0),
    "one has no truth": torch.arange(n)[1:2] if rank else torch.arange(n),
}
found = {}
for name, share in shares.items():
    boxes, pixels, errors = DetectionScores(3), PixelAveragePrecision(3), TIDE(3)
    for _ in range(2):  # a reset metric starts anew
        boxes.reset()
        pixels.reset()
        errors.reset()
        for part in share.split(8):
            if len(part):
                boxes.update([predictions[i] for i in part], [targets[i] for i in part], part)
                pixels.update(maps[part], truth[part], part)
                errors.update([predictions[i] for i in part], [targets[i] for i in part], part)
        silent = DetectionScores(3)  # finds nothing anywhere
        nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
        if len(share):
            silent.update([nothing] * len(share), [targets[i] for i in share], share)
        assert silent.compute()["recall_05"] == 0, name
        data, index = boxes.collected()
        found[name] = {
            "boxes": boxes.compute(),
            "pixels": pixels.compute(),
            "errors": errors.compute(),
            "by image": torch.from_numpy(errors.errors().per_image()),
            "collected": [torch.as_tensor(part) for part in (*data, index)],
            "matches": torch.from_numpy(boxes.matches().truth),
            "per class": torch.from_numpy(pixels.per_class()["pxap"]),
        }
torch.save(found, f"{target}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(tmp_path):
    predictions, targets = world(images=37, ignored=0.2, levels=20)
    g = torch.Generator().manual_seed(0)
    truth = torch.rand(37, 3, 6, 6, generator=g) < torch.rand(37, 3, 1, 1, generator=g) - 0.5
    truth[1] = False
    maps = torch.randn(37, 3, 6, 6, generator=g) + truth
    torch.save((predictions, targets, maps, truth), tmp_path / "data.pt")
    launch(DDP_RUN, 2, tmp_path / "data.pt", tmp_path)

    boxes, pixels, errors = DetectionScores(3), PixelAveragePrecision(3), TIDE(3)
    errors.update(predictions, targets, torch.arange(37))
    boxes.update(predictions, targets, torch.arange(37))
    pixels.update(maps, truth, torch.arange(37))
    data, index = boxes.collected()
    assert index.tolist() == list(range(37))
    for rank in range(2):
        for name, found in torch.load(tmp_path / f"{rank}.pt").items():
            assert found["boxes"] == boxes.compute(), (rank, name)
            assert found["pixels"] == pixels.compute(), (rank, name)
            assert found["errors"] == errors.compute(), (rank, name)
            np.testing.assert_array_equal(found["by image"].numpy(), errors.errors().per_image())
            for part, wanted in zip(found["collected"], (*data, index), strict=True):
                np.testing.assert_array_equal(part.numpy(), wanted)
            np.testing.assert_array_equal(found["matches"].numpy(), boxes.matches().truth)
            np.testing.assert_array_equal(found["per class"].numpy(), pixels.per_class()["pxap"])

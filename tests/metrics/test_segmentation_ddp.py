"""Segmentation scores of two processes are those of one, however uneven the shares."""

import pytest
import torch
from processes import launch

from lightning_modules.metrics import SegmentationScores, bootstrap_mean_iou

DDP_RUN = """
import os
import sys
import torch
import torch.distributed as dist
from lightning_modules.metrics import SegmentationScores, bootstrap_mean_iou

source, target, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
rank = int(os.environ.get("LOCAL_RANK", 0))
dist.init_process_group("gloo", rank=rank, world_size=processes)
predictions, targets = torch.load(source)
n = len(targets)
shares = {
    "padded": torch.cat([torch.arange(n), torch.arange(n % 2)])[rank::2],
    "uneven": torch.arange(3) if rank else torch.arange(3, n),
    "one has none": torch.arange(n) if rank else torch.arange(0),
}
found = {}
for name, share in shares.items():
    metric = SegmentationScores(6)
    for _ in range(2):  # a reset metric starts anew
        metric.reset()
        for part in share.split(4):
            if len(part):
                metric.update([predictions[i] for i in part], [targets[i] for i in part], part)
        counts, index = metric.collected()
        found[name] = {
            "scores": metric.compute(),
            "per class": {key: torch.from_numpy(value) for key, value in metric.per_class().items()},
            "confusion": torch.from_numpy(counts.confusion()),
            "index": index,
            "interval": bootstrap_mean_iou(counts),
        }
torch.save(found, f"{target}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(tmp_path):
    g = torch.Generator().manual_seed(0)
    targets = [torch.randint(0, 6, (5 + i, 9), generator=g).masked_fill(torch.arange(9) == i, 255) for i in range(11)]
    predictions = [torch.where(torch.rand(t.shape, generator=g) < 0.5, t, 2).clamp(max=5) for t in targets]
    torch.save((predictions, targets), tmp_path / "data.pt")
    launch(DDP_RUN, 2, tmp_path / "data.pt", tmp_path)

    metric = SegmentationScores(6)
    metric.update(predictions, targets, torch.arange(11))
    counts, index = metric.collected()
    for rank in range(2):
        for name, found in torch.load(tmp_path / f"{rank}.pt").items():
            assert found["scores"] == metric.compute(), (rank, name)
            assert torch.equal(found["index"], index)
            assert torch.equal(found["confusion"], torch.from_numpy(counts.confusion()))
            assert found["interval"] == bootstrap_mean_iou(counts)
            for key, value in metric.per_class().items():
                assert torch.equal(found["per class"][key], torch.from_numpy(value)), (rank, name, key)

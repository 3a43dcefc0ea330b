"""The collected items and scores of two processes are those of one, however uneven the shares."""

import pytest
import torch
from processes import launch

from lightning_modules.metrics import multilabel_scores

DDP_RUN = """
import os
import sys
import torch
import torch.distributed as dist
from lightning_modules.metrics import MultilabelScores

source, target, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
rank = int(os.environ.get("LOCAL_RANK", 0))
dist.init_process_group("gloo", rank=rank, world_size=processes)
probabilities, labels = torch.load(source)
n = len(labels)
shares = {
    "padded": torch.cat([torch.arange(n), torch.arange(n % 2)])[rank::2],
    "uneven": torch.arange(17) if rank else torch.arange(17, n),
    "one has none": torch.arange(n) if rank else torch.arange(0),
}
found = {}
for name, share in shares.items():
    metric = MultilabelScores(labels.shape[1])
    for _ in range(2):  # a reset metric starts anew
        metric.reset()
        for part in share.split(8):
            if len(part):
                metric.update(probabilities[part], labels[part], part)
        collected = metric.collected()
        found[name] = {"scores": metric.compute(), "collected": collected, "again": metric.collected()}
torch.save(found, f"{target}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(tmp_path):
    g = torch.Generator().manual_seed(0)
    labels = (torch.rand(101, 6, generator=g) < 0.3).int()
    probabilities = ((torch.rand(101, 6, generator=g) + labels) * 5).round() / 10  # with ties
    torch.save((probabilities, labels), tmp_path / "data.pt")
    launch(DDP_RUN, 2, tmp_path / "data.pt", tmp_path)
    wanted = multilabel_scores(probabilities, labels)
    for rank in range(2):
        for name, found in torch.load(tmp_path / f"{rank}.pt").items():
            assert found["scores"] == wanted, (rank, name)
            for key in ("collected", "again"):
                p, y, index = found[key]
                assert torch.equal(p, probabilities)
                assert torch.equal(y, labels.bool())
                assert torch.equal(index, torch.arange(101))

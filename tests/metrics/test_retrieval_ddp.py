import pytest
import torch
import torch.distributed as dist
from processes import launch

from lightning_modules.metrics import HammingMeanAveragePrecision, HammingRetrieval

N_QUERY, N_DATABASE, BITS = 15, 51, 10


def make():
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randn(n, BITS, generator=generator) for n in (N_QUERY, N_DATABASE)]
    labels = [(torch.rand(n, 5, generator=generator) < 0.3).float() for n in (N_QUERY, N_DATABASE)]
    return {"query": (codes[0], labels[0]), "database": (codes[1], labels[1])}


def feed(metric, indices):
    for role, (codes, labels) in make().items():
        for index in indices.get(role, torch.empty(0, dtype=torch.long)).split(4):
            if len(index):
                metric.update(codes[index], labels[index], index, role=role)
    return metric


def metrics():
    return [
        HammingMeanAveragePrecision(BITS),
        HammingMeanAveragePrecision(BITS, top_k=7, ties="stable"),
        HammingRetrieval(BITS, top_k=7),
    ]


def as_list(value):
    return [value] if isinstance(value, torch.Tensor) else list(value.values())


def part(n, rank):
    """What DistributedSampler gives to one of two processes: padded with the first items."""
    padded = torch.cat([torch.arange(n), torch.arange(n % 2)])
    return padded[rank::2]


def work(rank, folder):
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results = {}
    everything = {"query": part(N_QUERY, rank), "database": part(N_DATABASE, rank)}
    # the second case: one process has no database item at all
    lopsided = {
        "query": part(N_QUERY, rank),
        **({"database": torch.arange(N_DATABASE)} if rank == 0 else {}),
    }
    alone = {role: torch.arange(n) for role, n in (("query", N_QUERY), ("database", N_DATABASE)) if rank == 0}
    for name, indices in (("padded", everything), ("lopsided", lopsided), ("one has none", alone)):
        results[name] = []
        for metric in metrics():
            feed(metric, indices)
            results[name].append(as_list(metric.compute()))
            metric.reset()
            feed(metric, indices)
            again = as_list(metric.compute())
            assert all(torch.equal(a, b) for a, b in zip(again, results[name][-1], strict=True))
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


DDP_RUN = """
import os
import sys
sys.path[:0] = ["tests/metrics"]
from test_retrieval_ddp import work

work(int(os.environ["LOCAL_RANK"]), sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_give_the_value_of_one(tmp_path):
    everything = {"query": torch.arange(N_QUERY), "database": torch.arange(N_DATABASE)}
    expected = [as_list(feed(metric, everything).compute()) for metric in metrics()]
    launch(DDP_RUN, 2, tmp_path)
    for rank in range(2):
        for name, values in torch.load(tmp_path / f"rank{rank}.pt").items():
            for ours, theirs in zip(values, expected, strict=True):
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)

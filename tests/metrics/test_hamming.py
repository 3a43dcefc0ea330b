import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.metrics import hamming_average_precision, hamming_kernels
from lightning_modules.metrics.hamming import (
    check_bits,
    check_codes,
    check_labels,
    pack_bits,
    pack_bits_torch,
    pack_pairs,
    unpack_bits,
)
from lightning_modules.metrics.hamming_backends import (
    distance_histograms,
    histograms_torch,
    stable_precision_sums,
    stable_sums_torch,
)


def random_pairs(bits, classes, n_query=7, n_database=41, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (n_query, bits), (n_database, bits)
    codes = [torch.randn(shape, generator=generator) for shape in shapes]
    labels = [torch.rand(len(code), classes, generator=generator) < 0.3 for code in codes]
    return *codes, *labels


def naive_histograms(query_codes, database_codes, query_labels, database_labels):
    counts = np.zeros((len(query_codes), 2, query_codes.shape[1] + 1), dtype=np.int64)
    for i in range(len(query_codes)):
        for j in range(len(database_codes)):
            distance = sum(bool(a > 0) != bool(b > 0) for a, b in zip(query_codes[i], database_codes[j], strict=True))
            relevant = any(bool(a) and bool(b) for a, b in zip(query_labels[i], database_labels[j], strict=True))
            counts[i, int(relevant), distance] += 1
    return torch.from_numpy(counts)


def naive_sums(query_codes, database_codes, query_labels, database_labels, top_k):
    result = np.zeros((len(query_codes), 3))
    for i in range(len(query_codes)):
        distances = ((query_codes[i] > 0) != (database_codes > 0)).sum(dim=1).tolist()
        relevant = (query_labels[i] & database_labels).any(dim=1).tolist()
        result[i, 2] = sum(relevant)
        for rank, j in enumerate(sorted(range(len(distances)), key=distances.__getitem__)[:top_k], start=1):
            if relevant[j]:
                result[i, 1] += 1
                result[i, 0] += result[i, 1] / rank
    return torch.from_numpy(result)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 64, 65])
def test_packing_is_undone(width):
    bits = torch.rand(5, width) < 0.5
    assert torch.equal(unpack_bits(pack_bits(bits), width), bits)
    assert torch.equal(pack_bits_torch(bits), pack_bits(bits))


# one, two, four and eight bytes a row, several words, and distances beyond a byte
@pytest.mark.parametrize(
    ("bits", "classes"), [(1, 1), (8, 3), (16, 24), (31, 9), (64, 70), (100, 80), (130, 5), (300, 2)]
)
def test_histograms_equal_a_loop(bits, classes):
    matrices = random_pairs(bits, classes)
    pairs = pack_pairs(*matrices)
    expected = naive_histograms(*matrices)
    assert torch.equal(distance_histograms(pairs), expected)
    assert torch.equal(histograms_torch(pairs), expected)


# many ties, all in one distance, one and several words of codes and of labels
@pytest.mark.parametrize("top_k", [None, 1, 5, 40, 41, 100])
@pytest.mark.parametrize(
    ("bits", "classes"), [(1, 2), (3, 6), (16, 24), (48, 9), (64, 64), (64, 65), (128, 24), (256, 130)]
)
def test_stable_sums_equal_a_loop(bits, classes, top_k):
    matrices = random_pairs(bits, classes)
    matrices[2][0] = False  # a query without a relevant item
    matrices[2][1], matrices[3][:, -1] = True, True  # and one with nothing else
    matrices[1][10:20] = matrices[1][0]
    pairs, expected = pack_pairs(*matrices), naive_sums(*matrices, top_k)
    torch.testing.assert_close(stable_precision_sums(pairs, top_k), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(stable_sums_torch(pairs, top_k), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("n_database", range(1, 10))
def test_a_database_of_any_size_fills_the_lanes(n_database):
    matrices = random_pairs(4, 3, n_database=n_database)
    pairs = pack_pairs(*matrices)
    assert torch.equal(distance_histograms(pairs), naive_histograms(*matrices))
    torch.testing.assert_close(stable_precision_sums(pairs), naive_sums(*matrices, None), rtol=1e-13, atol=0)


@pytest.mark.parametrize("top_k", [None, 1, 5, 41, 100])
@pytest.mark.parametrize("bits", [3, 64, 300])
def test_both_backends_rank_alike(bits, top_k):
    pairs = pack_pairs(*random_pairs(bits, 6))
    torch.testing.assert_close(stable_precision_sums(pairs, top_k), stable_sums_torch(pairs, top_k), rtol=1e-12, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("top_k", [None, 50])
def test_a_gpu_gives_the_values_of_the_processor(top_k):
    matrices = random_pairs(64, 24, n_query=200, n_database=5000)
    here, there = pack_pairs(*matrices), pack_pairs(*(matrix.cuda() for matrix in matrices))
    assert there.device.type == "cuda"
    assert torch.equal(distance_histograms(there).cpu(), distance_histograms(here))
    found = stable_precision_sums(there, top_k).cpu()
    torch.testing.assert_close(found, stable_precision_sums(here, top_k), rtol=1e-12, atol=0)


def test_blocks_and_threads_do_not_change_anything(monkeypatch):
    pairs = pack_pairs(*random_pairs(12, 6, n_query=300, n_database=4000))
    expected = histograms_torch(pairs), stable_sums_torch(pairs, 10), stable_sums_torch(pairs)
    monkeypatch.setattr("lightning_modules.metrics.hamming_backends.GPU_PAIRS", 9001)
    assert torch.equal(histograms_torch(pairs), expected[0])
    for threads, step in ((1, 9001), (3, 9001), (3, 2**28)):
        monkeypatch.setattr("lightning_modules.metrics.hamming_backends.CPU_PAIRS", step)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(distance_histograms(pairs), expected[0])
        torch.testing.assert_close(stable_precision_sums(pairs, 10), expected[1], rtol=1e-12, atol=0)
        torch.testing.assert_close(stable_precision_sums(pairs), expected[2], rtol=1e-12, atol=0)


def _sums_into(queue, pairs):
    queue.put(stable_precision_sums(pairs).tolist())


def test_a_forked_process_computes_too():
    """DataLoader workers are forked from a process that may have ranked before, with several threads."""
    pairs = pack_pairs(*random_pairs(12, 6, n_query=300, n_database=4000))
    expected = stable_precision_sums(pairs).tolist()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_sums_into, args=(queue, pairs))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get() == expected


@pytest.mark.slow
def test_without_a_folder_for_compiled_code_it_is_compiled_anew(tmp_path):
    """A read-only installation without a home: there is no folder to keep compiled code in."""
    source = Path(hamming_kernels.__file__)
    shutil.copy(source, tmp_path)
    (tmp_path / "__pycache__").touch()  # a file in its place keeps even root from writing there
    code = (
        "import numpy as np, hamming_kernels as k; r = np.empty((1, 2, 65), np.int64); one = np.ones((1, 1), np.int64);"
        "k.histograms(one, one, one, one, r); print(r[0, 1, 0], k.histograms.stats.cache_path)"
    )
    env = {**os.environ, "HOME": str(tmp_path / "__pycache__"), "PYTHONDONTWRITEBYTECODE": "1"}
    env = {name: value for name, value in env.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "None"], done.stderr


@pytest.mark.parametrize("change", [lambda x: x > 0, lambda x: (x > 0).int(), lambda x: x.sign().numpy(), torch.tanh])
def test_codes_of_any_kind_mean_the_same(change):
    query, database, *labels = random_pairs(16, 4)
    expected = hamming_average_precision(query, database, *labels)
    assert torch.equal(hamming_average_precision(change(query), change(database), *labels), expected)


@pytest.mark.parametrize("bits", [0, -1, 2.5, True])
def test_bits_below_one_are_refused(bits):
    with pytest.raises(ValueError, match="at least 1 bit"):
        check_bits(bits)


def test_a_code_without_bits_is_refused():
    with pytest.raises(ValueError, match="bits is 0"):
        check_codes(torch.zeros(3, 0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named_by_its_row(value):
    codes = torch.ones(4, 3)
    codes[2, 1] = value
    with pytest.raises(ValueError, match="query_codes holds NaN or infinite values in 1 of 4 rows, first in row 2"):
        check_codes(codes, "query_codes")


@pytest.mark.parametrize(
    ("codes", "message"), [(torch.ones(4), r"shape \(4,\)"), (torch.ones(0, 8), "is empty: there is nothing to rank")]
)
def test_codes_that_are_no_rows_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        check_codes(codes)


def test_labels_that_are_not_binary_are_named_by_their_place():
    with pytest.raises(ValueError, match=r"row 1, column 0 is 2\.0.*one_hot"):
        check_labels(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    with pytest.raises(ValueError, match="is nan"):
        check_labels(torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="one column a class"):
        check_labels(torch.tensor([3, 1, 2]))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 8), (3, 8), (1, 4), (3, 4)), "query_codes has 2 rows but query_labels has 1"),
        (((2, 8), (3, 8), (2, 4), (4, 4)), "database_codes has 3 rows but database_labels has 4"),
        (((2, 8), (3, 16), (2, 4), (3, 4)), "query_codes is 8 wide but database_codes is 16 wide"),
        (((2, 8), (3, 8), (2, 4), (3, 5)), "query_labels is 4 wide but database_labels is 5 wide"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        pack_pairs(*(torch.ones(shape) for shape in shapes))

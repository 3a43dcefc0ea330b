import numpy as np
import pytest
import torch

from lightning_modules.metrics import HammingIndex


def filled(bits=20, n=300, seed=0):
    codes = torch.randn(n, bits, generator=torch.Generator().manual_seed(seed))
    index = HammingIndex(bits)
    index.add(codes[:100], [f"item{i}" for i in range(100)])
    index.add(codes[100:], [f"item{i}" for i in range(100, n)])
    return index, codes


@pytest.mark.parametrize("bits", [1, 5, 8, 20, 64, 128])
def test_search_equals_a_stable_sort(bits):
    index, codes = filled(bits)
    queries = torch.randn(6, bits, generator=torch.Generator().manual_seed(1))
    distances = ((queries[:, None] > 0) != (codes > 0)).sum(dim=-1).numpy()
    order = np.argsort(distances, axis=1, kind="stable")
    for k in (1, 10, 300):
        ids, found = index.search(queries, k)
        np.testing.assert_array_equal(found, np.take_along_axis(distances, order, axis=1)[:, :k])
        assert ids == [[f"item{i}" for i in row[:k]] for row in order]


def test_a_saved_index_finds_the_same(tmp_path):
    index, codes = filled()
    index.save(tmp_path / "codes.npz")
    loaded = HammingIndex.load(tmp_path / "codes.npz")
    assert (len(loaded), loaded.bits) == (300, 20)
    for ours, theirs in zip(loaded.search(codes[:5], 9), index.search(codes[:5], 9), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [file.name for file in tmp_path.iterdir()] == ["codes.npz"]
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as file:  # plain arrays that anything can read
        assert file["codes"].shape == (300, 3)


def test_files_that_are_no_index_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No Hamming index at .*missing\.npz"):
        HammingIndex.load(tmp_path / "missing.npz")
    index, _ = filled()
    path = tmp_path / "codes.npz"
    index.save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="is damaged"):
        HammingIndex.load(path)
    path.write_text("no archive")
    with pytest.raises(ValueError, match="not a Hamming index"):
        HammingIndex.load(path)
    np.savez(path, codes=np.zeros((2, 1)))
    with pytest.raises(ValueError, match="not a Hamming index"):
        HammingIndex.load(path)
    np.savez(path, codes=np.zeros((2, 1), np.uint8), ids=np.array(["a", "b"], dtype=object), bits=np.array(8))
    with pytest.raises(ValueError, match="not a Hamming index"):
        HammingIndex.load(path)
    np.savez(path, codes=np.zeros((2, 1), np.uint8), ids=np.array(["a", "b"]), bits=np.array(64))
    with pytest.raises(ValueError, match="do not fit 64 bits"):
        HammingIndex.load(path)


def test_bad_calls_are_refused():
    index, codes = filled()
    with pytest.raises(ValueError, match="bits is 0"):
        HammingIndex(0)
    with pytest.raises(ValueError, match="3 codes but 2 ids"):
        index.add(codes[:3], ["a", "b"])
    with pytest.raises(ValueError, match="8 wide, but this index was made with bits=20"):
        index.search(codes[:, :8], 1)
    for k in (0, 301):
        with pytest.raises(ValueError, match=f"k is {k}, but the index holds 300 items"):
            index.search(codes, k)
    with pytest.raises(ValueError, match="NaN"):
        index.search(codes[:1] * float("nan"), 1)
    assert len(index) == 300


def test_positions_are_those_of_the_names_and_names_default_to_positions():
    index, codes = filled()
    nameless = HammingIndex(20)
    nameless.add(codes[:100])
    nameless.add(codes[100:])
    queries = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    ids, distances = index.search(queries, 9)
    positions, found = index.positions(queries, 9)
    assert (positions.dtype, found.dtype) == (np.int64, np.int32)
    np.testing.assert_array_equal(found, distances)
    assert [[f"item{i}" for i in row] for row in positions] == ids
    assert nameless.search(queries, 9)[0] == [[str(i) for i in row] for row in positions]


def test_many_queries_at_once_find_what_each_finds_alone():
    index, _ = filled(bits=9)
    queries = torch.randn(2500, 9, generator=torch.Generator().manual_seed(2))
    positions, distances = index.positions(queries, 12)
    for start in (0, 1020, 2490):
        part = slice(start, start + 10)
        for found, expected in zip(index.positions(queries[part], 12), (positions, distances), strict=True):
            np.testing.assert_array_equal(found, expected[part])

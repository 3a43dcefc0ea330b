"""The votes of neighbours against a naive float64 loop."""

import io
import math

import numpy as np
import pytest
import torch

from lightning_modules.multilabel.knn import KnnVotes


def naive(query, gallery, labels, k, temperature, own=None):
    """Probabilities of one query, neighbours in order of distance and, within it, of the gallery."""
    bits = len(query)
    distances = [sum((a > 0) != (b > 0) for a, b in zip(query, code, strict=True)) for code in gallery]
    candidates = [row for row in range(len(gallery)) if row != own]
    nearest = sorted(candidates, key=lambda row: (distances[row], row))[:k]
    weights = [math.exp((1 - distances[row] / bits) / temperature) for row in nearest]
    total = sum(weights)
    return [
        sum(weight * labels[row][c] for weight, row in zip(weights, nearest, strict=True)) / total
        for c in range(len(labels[0]))
    ]


def signs(n, bits, seed):
    return torch.randn(n, bits, generator=torch.Generator().manual_seed(seed)).sign()


def marks(n, classes, seed=9):
    return (torch.rand(n, classes, generator=torch.Generator().manual_seed(seed)) < 0.3).int()


@pytest.mark.parametrize("bits", [1, 5, 16, 64])  # few bits: many ties at rank k
@pytest.mark.parametrize("k", [1, 10, 20, 50, 60])
@pytest.mark.parametrize("temperature", [0.03, 0.07, 5.0])
def test_votes_equal_a_naive_loop(bits, k, temperature):
    gallery, labels, queries = signs(60, bits, 0), marks(60, 7), signs(9, bits, 1)
    got = KnnVotes(gallery, labels, k, temperature).probabilities(queries)
    assert got.dtype == torch.float32
    expected = [naive(q, gallery.tolist(), labels.tolist(), k, temperature) for q in queries.tolist()]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 3, 16])
@pytest.mark.parametrize("k", [1, 10, 39])
def test_a_row_never_votes_for_itself(bits, k):
    gallery, labels = signs(40, bits, 2), marks(40, 5)
    votes = KnnVotes(gallery, labels, k)
    expected = np.array([naive(gallery[i].tolist(), gallery.tolist(), labels.tolist(), k, 0.07, i) for i in range(40)])
    np.testing.assert_allclose(votes.leave_one_out().numpy(), expected, rtol=1e-5, atol=1e-6)
    some = torch.tensor([31, 4, 4, 0])
    got = votes.probabilities(gallery[some], exclude_self=some)
    np.testing.assert_allclose(got.numpy(), expected[some.numpy()], rtol=1e-5, atol=1e-6)


def test_equal_codes_of_other_items_vote():
    gallery, labels = torch.ones(3, 8), torch.eye(3)
    votes = KnnVotes(gallery, labels, k=2)
    assert votes.leave_one_out().tolist() == [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    assert votes.probabilities(gallery[:1]).tolist() == [[0.5, 0.5, 0]]  # ties at rank k: the first in the gallery


def test_probabilities_stay_within_0_and_1():
    votes = KnnVotes(signs(300, 8, 0), torch.ones(300, 1), k=50)
    found = votes.probabilities(signs(200, 8, 1))
    assert found.max() <= 1
    assert found.min() > 1 - 1e-5


@pytest.mark.parametrize("kind", [torch.int8, torch.float16, torch.bool])
def test_any_kind_of_code(kind):
    gallery, labels, queries = signs(30, 12, 0), marks(30, 4), signs(5, 12, 1)
    expected = KnnVotes(gallery, labels, 10).probabilities(queries)
    convert = (lambda x: x > 0) if kind == torch.bool else (lambda x: x.to(kind))
    assert torch.equal(KnnVotes(convert(gallery), labels.bool(), 10).probabilities(convert(queries)), expected)


def test_the_state_goes_through_a_checkpoint():
    gallery, labels, queries = signs(50, 20, 0), marks(50, 9), signs(6, 20, 1)
    votes = KnnVotes(gallery, labels, k=10, temperature=0.15)
    state = votes.state_dict()
    assert (state["codes"].shape, state["labels"].shape) == ((50, 3), (50, 2))
    assert state["codes"].dtype == state["labels"].dtype == torch.uint8
    file = io.BytesIO()
    torch.save({"votes": state}, file)
    file.seek(0)
    loaded = KnnVotes.from_state_dict(torch.load(file, weights_only=True)["votes"])
    assert (len(loaded), loaded.bits, loaded.k, loaded.temperature) == (50, 20, 10, 0.15)
    assert torch.equal(loaded.probabilities(queries), votes.probabilities(queries))


def test_a_gallery_that_is_too_small_names_the_cure():
    gallery, labels = signs(20, 8, 0), marks(20, 3)
    with pytest.raises(ValueError, match=r"k is 21, but only 20 gallery items can vote\. Set k between 1 and 20"):
        KnnVotes(gallery, labels, k=21)
    votes = KnnVotes(gallery, labels, k=20)
    with pytest.raises(ValueError, match="only 19 gallery items can vote"):
        votes.leave_one_out()
    with pytest.raises(ValueError, match="k is 0"):
        KnnVotes(gallery, labels, k=0)


def test_bad_input_is_named():
    gallery, labels = signs(20, 8, 0), marks(20, 3)
    with pytest.raises(ValueError, match="20 gallery codes but 19 rows of labels"):
        KnnVotes(gallery, labels[:19], k=2)
    with pytest.raises(ValueError, match="temperature is 0"):
        KnnVotes(gallery, labels, k=2, temperature=0)
    with pytest.raises(ValueError, match="gallery labels must hold only 0 and 1"):
        KnnVotes(gallery, labels * 2, k=2)
    votes = KnnVotes(gallery, labels, k=2)
    with pytest.raises(ValueError, match="16 wide, but this index was made with bits=8"):
        votes.probabilities(signs(3, 16, 0))
    for rows in (torch.tensor([0, 1]), torch.tensor([0, 1, 20]), torch.tensor([-1, 0, 1])):
        with pytest.raises(ValueError, match="one gallery row, 0 to 19, for each of the 3 queries"):
            votes.probabilities(gallery[:3], exclude_self=rows)

"""Votes and means of models, and the matching of hash bits that were permuted and flipped."""

import itertools

import pytest
import torch

from lightning_modules.metrics import align_bits, mean_probabilities, vote_codes, vote_labels


def scrambled(weight, seed):
    """The same classifier with its bits in another order and some of them flipped."""
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(weight.shape[1], generator=g)
    flips = (torch.rand(weight.shape[1], generator=g) < 0.5) * 2.0 - 1
    return weight[:, order] * flips, order, flips


def test_means_and_shares():
    g = torch.Generator().manual_seed(0)
    parts = [torch.rand(5, 3, generator=g) for _ in range(3)]
    torch.testing.assert_close(mean_probabilities(parts), torch.stack(parts).mean(dim=0))
    assert mean_probabilities([part.half() for part in parts]).dtype == torch.float32
    assert mean_probabilities([part.double() for part in parts]).dtype == torch.float64
    ones = torch.ones(2, 2)
    assert mean_probabilities([ones] * 3).max() <= 1  # never pushed above 1 by rounding
    decisions = [part > 0.5 for part in parts]
    torch.testing.assert_close(vote_labels(decisions), torch.stack(decisions).float().mean(dim=0))
    assert torch.equal(vote_labels([part.to(torch.uint8) for part in decisions]), vote_labels(decisions))


def test_bits_that_were_permuted_and_flipped_are_found_again():
    weight = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    models = [weight, *(scrambled(3 * weight, seed)[0] for seed in (1, 2))]
    matches = align_bits(models)
    assert matches[0][0].tolist() == list(range(8))
    assert matches[0][1].tolist() == [1] * 8
    for model, (permutation, sign) in zip(models[1:], matches[1:], strict=True):
        torch.testing.assert_close(model[:, permutation] * sign, 3 * weight)


def test_the_matching_is_the_best_of_all():
    g = torch.Generator().manual_seed(3)
    first, second = torch.randn(6, 5, generator=g), torch.randn(6, 5, generator=g)
    permutation, sign = align_bits([first, second])[1]

    def total(order):
        return sum(torch.cosine_similarity(first[:, i], second[:, j], dim=0).abs().item() for i, j in enumerate(order))

    best = max(total(order) for order in itertools.permutations(range(5)))
    assert total(permutation.tolist()) == pytest.approx(best, abs=1e-6)
    aligned = second[:, permutation] * sign
    assert (torch.cosine_similarity(first, aligned, dim=0) >= 0).all()


def test_votes_over_scrambled_copies_are_the_votes_over_the_originals():
    g = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(7, 6, generator=g), torch.randn(7, generator=g)
    votes = [torch.randn(50, 6, generator=g).sign() for _ in range(4)]
    codes, weights, biases = [votes[0]], [weight], [bias]
    for seed, vote in enumerate(votes[1:], 1):
        other, order, flips = scrambled(weight, seed)
        codes.append(vote[:, order] * flips)
        weights.append(other)
        biases.append(bias + seed)
    voted, probabilities = vote_codes(codes, weights, biases)
    for row, column in itertools.product(range(50), range(6)):
        total = sum(vote[row, column].item() for vote in votes)
        wanted = votes[0][row, column].item() if total == 0 else (1 if total > 0 else -1)
        assert voted[row, column] == wanted
    assert (torch.stack(votes).sum(dim=0) == 0).any()  # even votes did occur
    torch.testing.assert_close(probabilities, torch.sigmoid(voted @ weight.T + bias + 1.5))


def test_one_model_votes_for_itself():
    g = torch.Generator().manual_seed(0)
    codes, weight, bias = torch.randn(9, 4, generator=g).sign(), torch.randn(3, 4, generator=g), torch.zeros(3)
    voted, probabilities = vote_codes([codes.to(torch.int8)], [weight], [bias])
    assert torch.equal(voted, codes)
    torch.testing.assert_close(probabilities, torch.sigmoid(codes @ weight.T))


def test_what_does_not_fit_is_refused():
    codes, weight, bias = torch.ones(4, 6), torch.ones(3, 6), torch.ones(3)
    for function in (mean_probabilities, vote_labels, align_bits):
        with pytest.raises(ValueError, match="at least one model"):
            function([])
        with pytest.raises(ValueError, match=r"\(4, 6\), \(5, 6\)"):
            function([torch.ones(4, 6), torch.ones(5, 6)])
        with pytest.raises(ValueError, match="shapes"):
            function([torch.ones(4)])
    with pytest.raises(ValueError, match="each model needs one"):
        vote_codes([codes, codes], [weight], [bias])
    with pytest.raises(ValueError, match="do not fit"):
        vote_codes([codes], [torch.ones(3, 5)], [bias])
    with pytest.raises(ValueError, match="biases have shapes"):
        vote_codes([codes], [weight], [torch.ones(3, 1)])
    with pytest.raises(ValueError, match=r"\+1 or -1"):
        vote_codes([codes * 0.9], [weight], [bias])

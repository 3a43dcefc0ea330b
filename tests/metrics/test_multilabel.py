"""Multi-label scores against scikit-learn and plain loops: ties, absent classes, items without labels."""

import math

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tmf
from sklearn import metrics as sk
from torchmetrics.functional import mean_absolute_error

from lightning_modules.metrics import (
    MultilabelScores,
    average_precision,
    fit_thresholds,
    multilabel_scores,
    prior_scores,
    threshold_scores,
)
from lightning_modules.metrics import multilabel_ranks as ranks_module
from lightning_modules.metrics.multilabel import THRESHOLD_SCORES

NAMES = {
    *(f"map_{average}" for average in ("macro", "micro", "weighted")),
    *(f"{name}_{average}" for name in ("f1", "precision", "recall", "auroc") for average in ("macro", "micro")),
    *("hamming_loss", "coverage_error", "ranking_loss", "lrap", "mae", "exact_match", "classes_scored"),
}


def make(n=300, classes=9, levels=None, seed=0, dtype=torch.float32):
    """Probabilities that follow the labels; ``levels``: rounded to so many values, as votes of neighbours are.

    Class 0 has no positive, the first item every other label, the last ten no label.
    """
    g = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, classes, generator=g) < torch.linspace(0.02, 0.4, classes)
    labels[0], labels[-10:], labels[:, 0] = True, False, False
    probabilities = torch.sigmoid(torch.randn(n, classes, generator=g, dtype=torch.float64) + 2 * labels - 1.5).to(
        dtype
    )
    if levels:
        probabilities = (probabilities * levels).round() / levels
    return probabilities, labels.int()


def by_sklearn(probabilities, labels, threshold=0.5):
    """Each score by one call; macro means over the classes with a positive (and a negative)."""
    p, y = probabilities.double().numpy(), labels.numpy()
    hard = p >= np.asarray(threshold)
    present, both = y.any(axis=0), y.any(axis=0) & ~y.all(axis=0)
    wanted = {
        "map_macro": sk.average_precision_score(y[:, present], p[:, present], average="macro"),
        "map_micro": sk.average_precision_score(y, p, average="micro"),
        "map_weighted": sk.average_precision_score(y[:, present], p[:, present], average="weighted"),
        "auroc_macro": sk.roc_auc_score(y[:, both], p[:, both], average="macro"),
        "auroc_micro": sk.roc_auc_score(y, p, average="micro"),
        "hamming_loss": sk.hamming_loss(y, hard),
        "exact_match": sk.accuracy_score(y, hard),
        "coverage_error": sk.coverage_error(y, p),
        "ranking_loss": sk.label_ranking_loss(y, p),
        "lrap": sk.label_ranking_average_precision_score(y, p),
        "mae": sk.mean_absolute_error(y, p),
        "classes_scored": present.sum(),
    }
    for name, score in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
        wanted[f"{name}_macro"] = score(y[:, present], hard[:, present], average="macro", zero_division=0)
        wanted[f"{name}_micro"] = score(y, hard, average="micro", zero_division=0)
    return wanted


@pytest.mark.parametrize("levels", [None, 20, 3])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_score_is_that_of_sklearn(levels, seed, dtype):
    probabilities, labels = make(levels=levels, seed=seed, dtype=dtype)
    found = multilabel_scores(probabilities, labels)
    assert set(found) == NAMES
    assert all(type(value) is float for value in found.values())
    assert found == pytest.approx(by_sklearn(probabilities, labels), abs=1e-6)


def test_a_class_without_negatives_counts_for_map_but_not_for_auroc():
    probabilities, labels = make()
    labels[:, 1] = 1
    assert multilabel_scores(probabilities, labels) == pytest.approx(by_sklearn(probabilities, labels), abs=1e-6)


def test_thresholds_may_differ_by_class():
    probabilities, labels = make(levels=20)
    thresholds = torch.linspace(0.05, 0.9, 9)  # some equal to a probability
    thresholds[3] = probabilities[0, 3]
    wanted = by_sklearn(probabilities, labels, thresholds.numpy())
    assert multilabel_scores(probabilities, labels, thresholds) == pytest.approx(wanted, abs=1e-6)
    found = threshold_scores(probabilities, labels, thresholds)
    assert set(found) == set(THRESHOLD_SCORES)
    assert found == pytest.approx({name: wanted[name] for name in THRESHOLD_SCORES}, abs=1e-6)
    assert threshold_scores(probabilities, labels, 0.3) == threshold_scores(
        probabilities, labels, torch.full((9,), 0.3)
    )


def test_a_number_as_threshold_is_not_rounded():
    probabilities, labels = torch.tensor([[0.3], [0.1]], dtype=torch.float64), torch.tensor([[1], [0]])
    assert threshold_scores(probabilities, labels, 0.3)["exact_match"] == 1


def test_one_class_is_scored():
    found = multilabel_scores(torch.tensor([[0.9], [0.8], [0.7], [0.2]]), torch.tensor([[1], [0], [1], [0]]))
    assert (found["precision_macro"], found["recall_macro"]) == (pytest.approx(2 / 3), 1)
    assert found["f1_macro"] == found["f1_micro"] == pytest.approx(0.8)
    assert (found["map_macro"], found["auroc_macro"]) == (pytest.approx(5 / 6), 0.75)


def test_layout_and_precision_of_the_inputs_do_not_matter():
    probabilities, labels = make(levels=16)  # sixteenths are exact in half precision
    wanted = multilabel_scores(probabilities, labels)
    columns = probabilities.T.contiguous().T
    for p in (columns, probabilities.half(), probabilities.bfloat16(), probabilities.double()):
        for y in (labels.bool(), labels.float().T.contiguous().T):
            assert multilabel_scores(p, y) == wanted
    assert multilabel_scores(probabilities.numpy(), labels.numpy()) == wanted


def test_chunks_do_not_matter(monkeypatch):
    probabilities, labels = make(levels=5)
    wanted = multilabel_scores(probabilities, labels)
    monkeypatch.setattr(ranks_module, "PAIRS_AT_ONCE", 50)
    assert multilabel_scores(probabilities, labels) == pytest.approx(wanted, abs=1e-12)


def test_average_precision_of_each_class():
    probabilities, labels = make(levels=7)
    found = average_precision(probabilities, labels)
    assert found.dtype == torch.float64
    assert found[0].isnan()
    for column in range(1, 9):
        wanted = sk.average_precision_score(labels[:, column], probabilities[:, column])
        assert found[column].item() == pytest.approx(wanted, abs=1e-12)


def test_items_and_classes_without_labels():
    nothing = multilabel_scores(torch.full((4, 3), 0.25), torch.zeros(4, 3))
    undefined = {name for name, value in nothing.items() if math.isnan(value)}
    assert undefined == {
        *("map_macro", "map_micro", "map_weighted", "auroc_macro", "auroc_micro"),
        *("f1_macro", "precision_macro", "recall_macro"),
    }
    assert (nothing["coverage_error"], nothing["ranking_loss"], nothing["lrap"]) == (0, 0, 1)
    assert (nothing["classes_scored"], nothing["exact_match"], nothing["mae"]) == (0, 1, 0.25)
    everything = multilabel_scores(torch.full((4, 3), 0.25), torch.ones(4, 3))
    assert (everything["coverage_error"], everything["ranking_loss"], everything["lrap"]) == (3, 0, 1)
    assert everything["map_macro"] == 1
    assert math.isnan(everything["auroc_macro"])


def test_minus_zero_and_the_ends_of_the_range():
    p = torch.tensor([[0.0, 1.0], [-0.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([[1, 1], [0, 0], [1, 0]])
    assert multilabel_scores(p, y) == pytest.approx(by_sklearn(p, y), abs=1e-12)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[1.2, 0.1]], [[1, 0]], "sigmoid"),
        ([[-0.1, 0.1]], [[1, 0]], "sigmoid"),
        ([[math.nan, 0.1]], [[1, 0]], "NaN"),
        ([[0.2, 0.1]], [[2, 0]], "only 0 and 1"),
        ([[0.2, 0.1, 0.3]], [[1, 0]], "both must be"),
        (torch.zeros(0, 2), torch.zeros(0, 2), "no item"),
    ],
)
def test_unsuitable_data_is_refused(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        multilabel_scores(torch.as_tensor(probabilities), torch.as_tensor(labels))


@pytest.mark.parametrize("thresholds", [torch.rand(3), torch.rand(2, 2), torch.tensor([0.5, math.nan])])
def test_unsuitable_thresholds_are_refused(thresholds):
    with pytest.raises(ValueError, match="thresholds"):
        threshold_scores(torch.rand(2, 2), torch.ones(2, 2), thresholds)


def test_where_torchmetrics_differs():
    """Why these scores are computed here: each line shows the value of torchmetrics 1.9, and that of scikit-learn."""
    probabilities, labels = make(levels=3)
    p, y, classes = probabilities, labels, labels.shape[1]
    ours = multilabel_scores(p, y)
    # tied classes are ordered by their column
    assert abs(tmf.multilabel_ranking_loss(p, y, classes).item() - sk.label_ranking_loss(y, p)) > 0.01
    assert ours["ranking_loss"] == pytest.approx(sk.label_ranking_loss(y, p), abs=1e-9)
    # a class without positives counts 0 in the mean
    with pytest.warns(UserWarning, match="No positive samples"):
        macro = tmf.multilabel_auroc(p, y, classes).item()
    assert macro == pytest.approx(sk.roc_auc_score(y[:, 1:], p[:, 1:]) * (classes - 1) / classes, abs=1e-6)
    assert ours["auroc_macro"] == pytest.approx(sk.roc_auc_score(y[:, 1:], p[:, 1:]), abs=1e-9)
    # one value above 1, as rounding may leave it, and the whole batch is taken for logits
    shifted = p.clone()
    shifted[0, 0] = 1 + 1e-6
    recalls = [tmf.multilabel_recall(q, y, classes, average="micro").item() for q in (p, shifted)]
    assert recalls[0] == pytest.approx(ours["recall_micro"], abs=1e-6)
    assert recalls[1] > recalls[0] + 0.01
    with pytest.raises(ValueError, match="sigmoid"):
        multilabel_scores(shifted, y)
    # and the mean absolute error fails for a transposed matrix
    with pytest.raises(RuntimeError, match="view"):
        mean_absolute_error(p.T.contiguous().T, y.float())


def naive_thresholds(p, y):
    best = []
    for column in range(y.shape[1]):
        scores = {t: sk.f1_score(y[:, column], p[:, column] >= t, zero_division=0) for t in np.unique(p[:, column])}
        top = max(scores.values())
        best.append(max(t for t, f1 in scores.items() if f1 > top - 1e-12) if y[:, column].any() else 0.5)
    return best


@pytest.mark.parametrize("levels", [None, 10])
def test_fitted_thresholds_maximise_f1(levels):
    probabilities, labels = make(n=80, levels=levels)
    found = fit_thresholds(probabilities, labels)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(naive_thresholds(probabilities.numpy(), labels.numpy()), abs=0)
    assert found[0] == 0.5
    at_half = threshold_scores(probabilities, labels, 0.5)["f1_macro"]
    assert threshold_scores(probabilities, labels, found)["f1_macro"] > at_half


def test_prior_scores_are_those_of_a_constant():
    _, labels = make()
    frequency = torch.tensor([0.01, 1.0, 0.0, 0.1, 0.12, 0.2, 0.6, 0.3, 0.4])
    found = prior_scores(frequency, labels)
    constant = frequency.double().expand(300, 9)
    fitted = [f if f > 0 else 0.5 for f in constant[0].tolist()]
    wanted = by_sklearn(constant, labels)
    always = by_sklearn(constant, labels, fitted)
    wanted |= {f"{name}_fitted": always[name] for name in THRESHOLD_SCORES}
    for name in ("map_macro", "map_weighted"):  # of a random order, which is better than a constant
        assert found.pop(name) > wanted.pop(name)
    assert found == pytest.approx(wanted, abs=1e-6)
    assert found["auroc_macro"] == 0.5
    with pytest.raises(ValueError, match="same list of classes"):
        prior_scores(frequency[:5], labels)


def test_the_floors_of_map_are_the_mean_over_random_orders():
    rng = np.random.default_rng(0)
    labels = np.zeros((23, 6), int)
    for column, positives in enumerate((0, 1, 2, 5, 11, 23)):  # rare classes as in a small fold, one without any
        labels[:positives, column] = 1
    counts = labels.sum(axis=0)
    scored = counts > 0
    drawn, pooled = [], []

    def ap(labels, scores):  # without ties: the mean precision at the positives
        hits = labels[np.argsort(-scores)]
        return (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits > 0].mean()

    for draw in range(1000):
        scores = rng.random(labels.shape)
        drawn.append([ap(labels[:, c], scores[:, c]) for c in np.flatnonzero(scored)])
        pooled.append(ap(labels.ravel(), scores.ravel()))
        if draw < 20:  # scikit-learn's, which is slow
            theirs = [sk.average_precision_score(labels[:, c], scores[:, c]) for c in np.flatnonzero(scored)]
            assert drawn[-1] == pytest.approx(theirs, abs=1e-12)
            assert pooled[-1] == pytest.approx(sk.average_precision_score(labels.ravel(), scores.ravel()), abs=1e-12)
    mean, error = np.mean(drawn, axis=0), np.std(drawn, axis=0).max() / 1000**0.5
    found = prior_scores(torch.full((6,), 0.3), torch.from_numpy(labels))
    assert found["map_macro"] == pytest.approx(mean.mean(), abs=4 * error)
    assert found["map_weighted"] == pytest.approx(np.average(mean, weights=counts[scored]), abs=4 * error)
    assert found["map_micro"] == pytest.approx(np.mean(pooled), abs=4 * np.std(pooled) / 1000**0.5)
    assert found["map_macro"] > labels.mean(axis=0)[scored].mean() + 0.05  # what a constant reaches
    informed = prior_scores(torch.from_numpy(labels.mean(axis=0)), torch.from_numpy(labels))
    constant = sk.average_precision_score(labels.ravel(), np.broadcast_to(labels.mean(axis=0), labels.shape).ravel())
    assert informed["map_micro"] == pytest.approx(constant, abs=1e-9)  # the larger here
    assert np.isnan(prior_scores(torch.full((6,), 0.3), torch.zeros(3, 6, dtype=torch.int64))["map_macro"])


def test_the_metric_counts_an_index_once_and_sorts_by_it():
    probabilities, labels = make()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    metric = MultilabelScores(num_classes=9)
    for part in torch.cat([order, order[:7]]).split(64):
        metric.update(probabilities[part], labels[part], part)
    assert metric.compute() == multilabel_scores(probabilities, labels)
    p, y, index = metric.collected()
    assert torch.equal(p, probabilities)
    assert torch.equal(y, labels.bool())
    assert torch.equal(index, torch.arange(300))
    metric.reset()
    with pytest.raises(ValueError, match="no item"):
        metric.collected()


def test_the_metric_refuses_what_does_not_fit():
    metric = MultilabelScores(num_classes=2)
    with pytest.raises(ValueError, match="do not belong together"):
        metric.update(torch.rand(3, 3), torch.ones(3, 3), torch.arange(3))
    with pytest.raises(ValueError, match="do not belong together"):
        metric.update(torch.rand(3, 2), torch.ones(3, 2), torch.arange(2))
    metric.update(torch.rand(2, 2), torch.tensor([[1, 0], [0, 1]]), torch.tensor([5, 5]))
    with pytest.raises(ValueError, match="share index 5"):
        metric.compute()
    with pytest.raises(ValueError, match="num_classes is 0"):
        MultilabelScores(num_classes=0)

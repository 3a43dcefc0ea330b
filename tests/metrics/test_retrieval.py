import ast
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import lightning_modules.metrics
from lightning_modules.metrics import (
    HammingMeanAveragePrecision,
    HammingRetrieval,
    hamming_average_precision,
    hamming_mean_average_precision,
    hamming_precision_at_k,
    hamming_precision_recall_curve,
    hamming_precision_within_radius,
    hamming_recall_at_k,
)


def make(n_query=20, n_database=60, bits=5, classes=6, seed=0):
    """Few bits, so that most items tie; query 0 has no label."""
    rng = np.random.default_rng(seed)
    query_labels, database_labels = rng.random((n_query, classes)) < 0.2, rng.random((n_database, classes)) < 0.2
    query_labels[0] = False
    codes = rng.choice([-1.0, 1.0], (n_query, bits)), rng.choice([-1.0, 1.0], (n_database, bits))
    return [torch.from_numpy(np.asarray(part)) for part in (*codes, query_labels, database_labels)]


def ranked_relevance(query_codes, database_codes, query_labels, database_labels, order):
    """Relevance (Q, N) in a stable order by distance, ties in the given order of the database."""
    rows = []
    for i in range(len(query_codes)):
        distances = [int((query_codes[i] != database_codes[j]).sum()) for j in order]
        places = sorted(range(len(order)), key=lambda place: distances[place])
        rows.append([bool((query_labels[i] & database_labels[order[place]]).any()) for place in places])
    return rows


def naive_ap(ranked, top_k, divisor):
    k = top_k or len(ranked)
    hits, total = 0, 0.0
    for rank, relevant in enumerate(ranked[:k], start=1):
        if relevant:
            hits += 1
            total += hits / rank
    below = {"relevant_in_top_k": hits, "min_k_relevant": min(k, sum(ranked)), "relevant": sum(ranked)}[divisor]
    return total / below if below else None


def naive_map(ranked, top_k, divisor, empty):
    values = [naive_ap(row, top_k, divisor) for row in ranked]
    if empty == "skip":
        return np.mean([value for value in values if value is not None])
    return np.mean([value or 0.0 for value in values])


@pytest.mark.parametrize("empty", ["zero", "skip"])
@pytest.mark.parametrize("divisor", ["relevant_in_top_k", "min_k_relevant", "relevant"])
@pytest.mark.parametrize("top_k", [None, 1, 2, 10, 59, 60, 1000])
@pytest.mark.parametrize("bits", [2, 5, 70])
def test_stable_order_equals_a_loop(bits, top_k, divisor, empty):
    data = make(bits=bits)
    expected = naive_map(ranked_relevance(*data, order=range(60)), top_k, divisor, empty)
    value = hamming_mean_average_precision(*data, top_k=top_k, ties="stable", divisor=divisor, empty=empty)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("top_k", "divisor"),
    [(None, "relevant_in_top_k"), (None, "relevant"), (10, "min_k_relevant"), (10, "relevant"), (1, "min_k_relevant")],
)
def test_expected_order_equals_the_mean_over_shuffled_databases(top_k, divisor):
    data = make(n_query=6, n_database=30, bits=3)
    rng = np.random.default_rng(1)
    draws = []
    for _ in range(400):
        ranked = ranked_relevance(*data, order=rng.permutation(30))
        draws.append([naive_ap(row, top_k, divisor) or 0.0 for row in ranked])
    values = hamming_average_precision(*data, top_k=top_k, divisor=divisor)
    error = 5 * np.std(draws, axis=0) / np.sqrt(len(draws)) + 1e-12
    assert (np.abs(values.numpy() - np.mean(draws, axis=0)) <= error).all()


def test_expected_order_does_not_see_the_order_of_the_database():
    query_codes, database_codes, query_labels, database_labels = make(bits=2)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = query_codes, database_codes[order], query_labels, database_labels[order]
    same = hamming_average_precision(query_codes, database_codes, query_labels, database_labels)
    torch.testing.assert_close(hamming_average_precision(*shuffled), same, rtol=1e-12, atol=0)


def test_without_ties_both_orders_and_other_libraries_agree():
    from sklearn.metrics import average_precision_score
    from torchmetrics.functional.retrieval import retrieval_average_precision

    # the item of rank j differs from every query in j bits: no two items tie
    n, rng = 50, np.random.default_rng(3)
    database_codes = torch.ones(n, n).tril()
    query_codes = torch.zeros(4, n)
    labels = [torch.from_numpy(rng.random((rows, 3)) < 0.3) for rows in (4, n)]
    labels[0][:, 0] = True
    scores = -torch.arange(1.0, n + 1)
    relevant = (labels[0].float() @ labels[1].float().T) > 0
    expected = torch.tensor(
        [average_precision_score(row.numpy(), scores.numpy()) for row in relevant], dtype=torch.float64
    )
    data = query_codes, database_codes, *labels
    torch.testing.assert_close(hamming_average_precision(*data), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(hamming_average_precision(*data, ties="stable"), expected, rtol=1e-9, atol=0)
    theirs = torch.stack([retrieval_average_precision(scores + n + 1, row, top_k=10) for row in relevant])
    ours = hamming_average_precision(*data, top_k=10, ties="stable")
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-6, atol=0)


def test_a_query_without_relevant_items_counts_zero_or_is_skipped():
    data = make()
    assert hamming_average_precision(*data)[0] == 0
    assert hamming_average_precision(*data, empty="skip")[0].isnan()
    zero, skip = hamming_mean_average_precision(*data), hamming_mean_average_precision(*data, empty="skip")
    n_empty = int((~(data[2].float() @ data[3].float().T > 0).any(dim=1)).sum())
    assert n_empty >= 1
    assert zero.item() == pytest.approx(skip.item() * (20 - n_empty) / 20)


def test_collapsed_codes_score_the_random_floor():
    _, _, query_labels, database_labels = make()
    metric = HammingMeanAveragePrecision(bits=8)
    metric.update(torch.ones(20, 8), query_labels, torch.arange(20), role="query")
    metric.update(torch.ones(60, 8), database_labels, torch.arange(60), role="database")
    assert metric.compute().item() == pytest.approx(metric.random_floor.item(), abs=1e-12)


def test_lookups_equal_a_loop():
    data = make(bits=9)
    rng = np.random.default_rng(5)
    relevance = (data[2].float() @ data[3].float().T > 0).numpy()
    distances = (data[0][:, None] != data[1]).sum(dim=-1).numpy()
    draws = []
    for _ in range(500):
        order = rng.permutation(60)
        draws.append([row[:7] for row in ranked_relevance_fast(distances[:, order], relevance[:, order])])
    found = np.mean(np.sum(draws, axis=2), axis=0)
    with_relevant = relevance.any(axis=1)
    assert hamming_precision_at_k(*data, k=7).item() == pytest.approx((found / 7).mean(), abs=0.01)
    recall = (found[with_relevant] / relevance.sum(axis=1)[with_relevant]).mean()
    assert hamming_recall_at_k(*data, k=7).item() == pytest.approx(recall, abs=0.01)
    inside = [[relevance[q, j] for j in range(60) if distances[q, j] <= 2] for q in range(20)]
    expected = np.mean([np.mean(row) if row else 0.0 for row in inside])
    assert hamming_precision_within_radius(*data).item() == pytest.approx(expected, abs=1e-12)
    curve = hamming_precision_recall_curve(*data)
    assert curve.recall[-1] == 1
    assert curve.precision[-1].item() == pytest.approx(relevance.mean())


def ranked_relevance_fast(distances, relevance):
    return np.take_along_axis(relevance, np.argsort(distances, axis=1, kind="stable"), axis=1)


def test_expected_order_with_a_random_divisor_is_refused_with_the_way_out():
    message = r"top_k=50 has no closed form.*divisor='min_k_relevant' or 'relevant'.*ties='stable'"
    with pytest.raises(ValueError, match=message):
        hamming_mean_average_precision(*make(), top_k=50)
    with pytest.raises(ValueError, match=message):
        HammingMeanAveragePrecision(bits=8, top_k=50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ties": "random"}, "ties is 'random'; it must be one of 'expected', 'stable'"),
        ({"divisor": "k"}, "divisor is 'k'; it must be one of 'relevant_in_top_k'"),
        ({"empty": "nan"}, "empty is 'nan'; it must be one of 'zero', 'skip'"),
        ({"top_k": 0, "ties": "stable"}, "top_k is 0; at least the first rank must count"),
    ],
)
def test_unknown_conventions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        hamming_mean_average_precision(*make(), **arguments)


def test_data_without_any_relevant_item_are_refused():
    query_codes, database_codes, query_labels, database_labels = make()
    data = query_codes, database_codes, query_labels, torch.zeros_like(database_labels)
    for ties in ("expected", "stable"):
        with pytest.raises(ValueError, match="None of the 20 queries shares a label"):
            hamming_average_precision(*data, ties=ties)
    with pytest.raises(ValueError, match="None of the 20 queries shares a label"):
        hamming_precision_at_k(*data, k=3)
    with pytest.raises(ValueError, match="k is 0"):
        hamming_recall_at_k(*make(), k=0)
    with pytest.raises(ValueError, match="radius is -1"):
        hamming_precision_within_radius(*make(), radius=-1)


def test_skipping_every_query_is_refused():
    codes = torch.tensor([[0], [0], [1]])  # the only relevant item is last
    labels = torch.tensor([[1], [0], [1]])
    data = codes[:1], codes[1:], labels[:1], labels[1:]
    assert hamming_mean_average_precision(*data, top_k=1, ties="stable") == 0
    with pytest.raises(ValueError, match="leaves no query"):
        hamming_mean_average_precision(*data, top_k=1, ties="stable", empty="skip")
    with pytest.raises(ValueError, match="leaves no query"):
        feed(HammingRetrieval(bits=1, top_k=1, empty="skip"), data).compute()


# ---- metrics


def feed(metric, data, batch=7, order=None):
    query_codes, database_codes, query_labels, database_labels = data
    for role, codes, labels in (("database", database_codes, database_labels), ("query", query_codes, query_labels)):
        for index in torch.arange(len(codes)).split(batch):
            index = index if order is None else order[role][index]
            metric.update(codes[index], labels[index], index, role=role)
    return metric


@pytest.mark.parametrize(
    "arguments",
    [{}, {"top_k": 10, "ties": "stable"}, {"top_k": 10, "divisor": "min_k_relevant"}, {"empty": "skip"}],
)
def test_the_metric_equals_the_function_whatever_the_order_of_updates(arguments):
    data = make(bits=12)
    order = {"query": torch.randperm(20), "database": torch.randperm(60)}
    expected = hamming_mean_average_precision(*data, **arguments)
    metric = feed(HammingMeanAveragePrecision(bits=12, **arguments), data, order=order)
    metric.update(data[1][:9], data[3][:9], torch.arange(9), role="database")  # what a padding sampler repeats
    assert metric.compute() == expected
    assert metric.query_codes[0].dtype == torch.uint8
    assert 0 < metric.random_floor < expected + 0.2
    metric.reset()
    assert feed(metric, data).compute() == expected
    assert pickle.loads(pickle.dumps(metric)).compute() == expected


def test_all_figures_equal_the_functions():
    data = make(bits=12)
    metric = feed(HammingRetrieval(bits=12, top_k=10), data)
    values = metric.compute()
    assert values["map"] == hamming_mean_average_precision(*data)
    assert values["map_low"] < values["map"] < values["map_high"]
    assert values["map_at_10"] == hamming_mean_average_precision(*data, top_k=10, ties="stable")
    assert values["precision_at_10"] == hamming_precision_at_k(*data, k=10)
    assert values["recall_at_10"] == hamming_recall_at_k(*data, k=10)
    assert values["precision_radius_2"] == hamming_precision_within_radius(*data)
    for name, curve in hamming_precision_recall_curve(*data)._asdict().items():
        assert torch.equal(values[f"curve_{name}"], curve)
    relevant = data[2].float() @ data[3].float().T > 0
    assert values["random_precision"].item() == pytest.approx(relevant.double().mean().item())
    assert values["random_precision"] < values["random_map"] < values["random_map_at_10"]
    assert values["map_at_10_low"] < values["map_at_10"] < values["map_at_10_high"]
    assert values["random_precision_at_10"] == values["random_precision"]
    assert values["random_recall_at_10"].item() == pytest.approx(10 / 60)
    full = ((data[0][:, None] != data[1]).sum(dim=-1) <= 2).any(dim=1)
    assert 0 < full.sum() < 20
    expected = relevant[full].double().mean(dim=1).sum().item() / 20  # an empty ball counts 0, as in the figure
    assert values["random_precision_radius_2"].item() == pytest.approx(expected)
    assert (values["n_query"], values["n_database"]) == (20, 60)
    assert values["n_empty"] == (~relevant.any(dim=1)).sum()
    assert "mAP@10 (ties=stable" in metric.convention
    assert "mAP@all (ties=expected" in metric.convention


def test_real_values_and_half_precision_are_taken():
    data = make(bits=12)
    data[0], data[1] = (0.3 * data[0]).half(), 2 * data[1].bfloat16()
    assert feed(HammingMeanAveragePrecision(bits=12), data).compute() > 0


def test_metric_errors_name_the_cure():
    codes, labels, index = torch.ones(3, 8), torch.ones(3, 2), torch.arange(3)
    with pytest.raises(ValueError, match="bits is 0"):
        HammingRetrieval(bits=0)
    with pytest.raises(ValueError, match="top_k is 0"):
        HammingRetrieval(bits=8, top_k=0)
    metric = HammingMeanAveragePrecision(bits=8)
    with pytest.raises(ValueError, match="role is 'gallery'"):
        metric.update(codes, labels, index, role="gallery")
    with pytest.raises(ValueError, match="query codes are 4 wide, but this metric was made with bits=8"):
        metric.update(codes[:, :4], labels, index)
    with pytest.raises(ValueError, match="3 codes, 3 labels and 2 indices"):
        metric.update(codes, labels, index[:2])
    with pytest.raises(ValueError, match="database labels must hold only 0 and 1"):
        metric.update(codes, 3 * labels, index, role="database")
    metric.update(codes, labels, index)
    with pytest.raises(ValueError, match=r"seen no database item.*role='database'"):
        metric.compute()
    with pytest.raises(ValueError, match="database labels have 4 classes but earlier labels had 2"):
        metric.update(codes, torch.ones(3, 4), index, role="database")


def test_an_index_that_restarts_in_each_batch_is_noticed():
    metric = HammingMeanAveragePrecision(bits=4)
    for label in (0, 1):
        labels = torch.nn.functional.one_hot(torch.full((2,), label), 2)
        metric.update(torch.ones(2, 4), labels, torch.arange(2), role="query")
        metric.update(torch.ones(2, 4), labels, torch.arange(2), role="database")
    with pytest.raises(ValueError, match=r"share index 0.*position in the dataset"):
        metric.compute()


# ---- the package


def test_model_and_science_libraries_are_not_imported_at_the_top():
    for file in Path(lightning_modules.metrics.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"faiss", "sklearn", "scipy", "matplotlib"}, file


@pytest.mark.skipif("CLIP_SUITE_GOLDENS" not in os.environ, reason="CLIP_SUITE_GOLDENS names no folder of goldens")
def test_the_reference_implementation_is_reproduced():
    with np.load(Path(os.environ["CLIP_SUITE_GOLDENS"]) / "ucmfh_a.npz") as golden:
        data = [torch.from_numpy(golden[name]) for name in ("query_codes", "db_codes", "query_labels", "db_labels")]
        expected = {None: float(golden["map_all"]), 50: float(golden["map_50"])}
    for top_k, value in expected.items():
        assert hamming_mean_average_precision(*data, top_k=top_k, ties="stable").item() == pytest.approx(
            value, abs=1e-6
        )
    metric = feed(HammingRetrieval(bits=32), data)
    assert metric.compute()["map_at_50"].item() == pytest.approx(expected[50], abs=1e-6)

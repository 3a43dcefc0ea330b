"""Every notebook runs offline from the first cell to the last, and shows what it says."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TIMEOUT = 300  # seconds a cell, on a machine that does other things as well


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells in a kernel of this interpreter whose working directory is an empty folder."""
    native_only = KernelSpecManager(kernel_dirs=[])  # a user's own python3 kernel may be another interpreter
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=native_only)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, km=manager, timeout=TIMEOUT, resources=resources)
    return client.execute(cleanup_kc=True)  # a manager that was handed in is not shut down otherwise


def outputs(notebook: NotebookNode, kind: str) -> list[str]:
    """The data of one MIME type that the cells display."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.data[kind] for output in shown if kind in output.get("data", {})]


def figures(notebook: NotebookNode) -> list[np.ndarray]:
    """The figures as pixels."""
    decoded = [base64.b64decode(data) for data in outputs(notebook, "image/png")]
    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in decoded]


@pytest.fixture
def quiet_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps the kernel from the user's profile and temporary files; returns the working directory."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_every_notebook_has_a_check():
    assert sorted(CHECKS) == [file.stem for file in NOTEBOOKS]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_is_stored_without_outputs_and_machine_paths(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not re.search(r"(/(home|Users|root|tmp|work)/|[A-Z]:\\\\)", file.read_text(encoding="utf-8"))


HASHING_VALUES = """
import json
print(json.dumps({
    "floor": floor,
    "prevalence": float((query.labels @ database.labels.T > 0).mean()),
    "maps": {name: ap.mean(dim=(0, 2)).tolist() for name, ap in aps.items()},
    "progressive_maps": average_precisions(progressive).mean(dim=1).tolist(),
    "results": json.loads((folder / "results.json").read_text()),
    "scales": [plain_record.scales, progressive_record.scales],
    "magnitudes": [[float(np.abs(c).mean()) for c in r.codes] for r in (plain_record, progressive_record)],
    "bits": [changed, weight_bits, trained_bits, ours.numel()],
    "compared": compared,
    "shares": shares,
    "hits": [float(hits), float(chance)],
    "mine": [len(split) for split in mine.splits.values()],
}))
"""


def check_hashing(notebook: NotebookNode, values: dict[str, Any]) -> None:
    """The figures of the hashing notebook are what its text says."""
    # retrieval is learnt, and the table of the notebook, results.json and the codes agree
    floor = values["floor"]
    assert values["prevalence"] < floor < values["prevalence"] + 0.02  # a random ranking's AP is just above it
    for name, maps in values["maps"].items():
        assert min(maps) > floor + 0.05, name
    test = values["results"]["test"]
    for way, expected in zip(("i2t", "t2i"), values["progressive_maps"], strict=True):
        assert test["metrics"][f"test/unimodal_{way}_map"] == pytest.approx(expected, abs=1e-6)
        assert test["floors"][f"test/unimodal_{way}_map"] == pytest.approx(floor, abs=1e-6)
    assert test["n"] == {"query": 90, "database": 270, "empty": 0}
    (table,) = outputs(notebook, "text/markdown")
    assert table.count(f"*random ranking* | {floor:.3f}") == 2
    assert all(f"{np.mean(maps[way]):.3f} [" in table for maps in values["maps"].values() for way in (0, 1))
    hits, chance = values["hits"]
    assert hits > 1.5 * chance

    # the sharpening: the scale rises, the values follow, no bit changes
    plain, progressive = values["scales"]
    assert plain == [1.0] * len(progressive)
    np.testing.assert_allclose(progressive, np.linspace(1, 10, len(progressive)), rtol=1e-6)
    soft, sharp = (magnitudes[-1] for magnitudes in values["magnitudes"])
    assert sharp > 0.5 > soft
    changed, by_weights, by_training, bits = values["bits"]
    assert changed == 0
    assert by_training > 0.2 * bits

    # the weights: the same direction, 128 times as long, no effect under Adam, and needed by HashNet alone
    for cosine, length in values["compared"].values():
        assert cosine > 0.999999
        assert length == pytest.approx(128, rel=0.01)
    assert by_weights < 0.01 * bits
    shares = values["shares"]
    assert shares["contrastive"] == pytest.approx(0.5, abs=1e-9)
    assert shares["contrastive, weighted"] == pytest.approx(0.5, abs=1e-9)
    assert shares["HashNet"] < 0.02
    assert shares["HashNet, weighted"] == pytest.approx(0.5, abs=0.05)

    assert values["mine"] == [70, 150, 200]
    assert len(outputs(notebook, "image/png")) == 6


HEATMAP_VALUES = """
import json
print(json.dumps({
    "sizes": [len(train_scenes), len(scenes), len(boxes)],
    "share_over": list(share_over.values()),
    "looks": looks,
    "partial": {str(alpha): values for alpha, values in partial.items()},
    "weight": present_weight,
    "covered": {name: [float(np.median(shares)) for shares in values] for name, values in covered.items()},
    "curves": {name: [one.value.tolist() for one in values] for name, values in curves.items()},
    "changed": changed,
    "both": [float(both.min()), float(both.max())],
    "let_in": [let_in, QUANTILE],
    "ap": {name: values.tolist() for name, values in results.items()},
    "best": best,
    "differences": list(differences.values()),
    "boxes": {name: sum(len(f["labels"]) for f in found) for name, found in detections.items()},
    "adapted": adapted_looks,
    "gains": gains,
    "module": [[float(metrics[f"test/ap_{t}"]) for t in ("05", "10", "20", "50")], plain_ap.tolist()],
}))
"""


def check_heatmap(notebook: NotebookNode, values: dict[str, Any]) -> None:
    """The figures of the heatmap notebook are what its text says."""
    assert values["sizes"][:2] == [60, 40]
    assert values["share_over"][0] > 0.5  # the whole image finds most objects at IoU 0.05 ...
    assert values["share_over"][1:] == sorted(values["share_over"][1:], reverse=True)
    assert values["share_over"][1] < 0.15  # ... and few at 0.20

    # the paths: vanilla is near a coin, inverting it mirrors that, surgery is a map
    looks = values["looks"]
    auroc = {name: look["patch_auroc"] for name, look in looks.items()}
    assert abs(auroc["vanilla"] - 0.5) < 0.1
    assert auroc["vanilla, inverted"] == pytest.approx(1 - auroc["vanilla"], abs=1e-9)
    assert looks["vanilla, inverted"]["gap"] == pytest.approx(-looks["vanilla"]["gap"], abs=1e-9)
    assert auroc["vanilla"] < auroc["maskclip"] < min(auroc["vv"], auroc["surgery"])
    for path in ("vv", "surgery"):
        assert looks[path]["pxap"] > looks[path]["random_pxap"] + 0.5

    # feature surgery: a larger gap, which is the weight of the class, and no better order
    for look in values["partial"].values():
        assert look["gap_low"] > looks["surgery"]["gap_high"]
        assert look["patch_auroc"] < auroc["surgery"] + 0.005
        assert look["pxap"] < looks["surgery"]["pxap"]
    assert values["partial"]["0.0"]["patch_auroc"] == pytest.approx(auroc["surgery"], abs=1e-4)  # a factor a map
    assert values["partial"]["0.0"]["gap"] / looks["surgery"]["gap"] == pytest.approx(values["weight"], rel=0.1)

    # thresholds: at 30 the box of any map is the picture, and the score that of the whole image
    for shares in values["covered"].values():
        assert shares[0] > 0.95
        assert shares == sorted(shares, reverse=True)
    curves = {name: np.array(value) for name, value in values["curves"].items()}  # (quantiles, IoUs)
    assert curves["surgery"][0, 0] == pytest.approx(curves["whole_image"][0, 0], abs=0.1)
    assert curves["noise_map"][0, 0] == pytest.approx(curves["whole_image"][0, 0], abs=0.1)
    assert (curves["surgery"][2:, 2] > curves["noise_map"][2:, 2] + 0.4).all()
    assert max(curve[0, 3] for curve in curves.values()) < 0.05
    assert np.ptp(curves["whole_image"], axis=0).max() == 0  # it knows no threshold

    # what changes nothing, and what does
    changed = list(values["changed"].values())
    assert changed[:5] == [0] * 5
    assert min(changed[5:]) > 0.01
    assert min(values["both"]) >= 0.4 - 1 / 144  # two masks of 70 % share at least 40 %

    # boxes: the quantile is that of the training part, and the method stands above its best control
    let_in, percent = values["let_in"]
    assert percent == round(100 * (1 - let_in))
    ap = values["ap"]
    controls = ("whole_image", "centre_box", "noise_map", "permuted_names")
    for place, (name, (difference, low, _)) in enumerate(zip(values["best"], values["differences"], strict=True)):
        assert ap[name][place] == max(ap[control][place] for control in controls)
        assert difference == pytest.approx(ap["surgery"][place] - ap[name][place], abs=1e-9)
        assert low > 0
    assert abs(ap["surgery"][2] - ap["surgery, all classes searched"][2]) < 0.05  # next to nothing, as the text says
    assert values["boxes"]["surgery, all classes searched"] > 4 * values["boxes"]["surgery"]

    # the adapter: a gain on vanilla, none on surgery, nothing from the boxes of other scenes
    adapted = values["adapted"]
    assert adapted["vanilla, after"]["gap_low"] > adapted["vanilla, before"]["gap_high"]
    assert adapted["surgery, after"]["gap_low"] > adapted["surgery, before"]["gap_high"]
    assert adapted["surgery, boxes of other scenes, after"]["patch_auroc"] < 0.65
    assert values["gains"]["vanilla"][1] > 0.3
    assert values["gains"]["surgery"][1] > 0

    module, plain = values["module"]
    assert module == pytest.approx(plain, abs=1e-6)
    paths, _, _, boxes, _, adapters = outputs(notebook, "text/markdown")
    assert f"| {auroc['surgery']:.3f} | {looks['surgery']['pxap']:.3f} |" in paths
    assert f"| {ap['surgery'][0]:.3f} [" in boxes
    assert adapters.count("after |") == 3
    assert len(outputs(notebook, "image/png")) == 9


CORRCLIP_VALUES = """
import json
print(json.dumps({
    "sizes": [len(scenes), data.num_classes, *(float(np.mean([len(i.unique()) for i in m])) for m in regions.values())],
    "rows": [float((matrix.sum(-1) - 1).abs().max()) for matrix in (weights | in_scope).values()],
    "shares": {name: [float(end) for end in share] for name, share in shares.items()},
    "below": below,
    "numbers": list(numbers.values()),
    "sum_error": sum_error,
    "gaps": list(gaps.values()),
    "mixed": mixed,
    "kept": [sum(kept), len(kept)],
    "mious": {name: list(row.values()) for name, row in mious.items()},
    "floor": floor,
    "ceiling": list(ceiling.values()),
    "differences": list(differences.values()),
    "tested": tested,
    "areas": areas,
}))
"""


def check_corrclip(notebook: NotebookNode, values: dict[str, Any]) -> None:
    """The figures of the CorrCLIP notebook are what its text says."""
    assert values["sizes"][:2] == [60, 13]
    assert values["sizes"][2] > 4 * values["sizes"][3]  # felzenszwalb cuts objects into parts

    # attention: each row is a distribution; q-k looks elsewhere, a scope keeps it at home, merging lets it out
    assert max(values["rows"]) < 1e-5
    share = {name: value for name, (value, _, _) in values["shares"].items()}
    assert all(low <= value <= high for value, low, high in values["shares"].values())
    assert share["all patches alike"] < share["CLIP's own, q-k"] < 0.3 < share["q-q"] + 0.02
    union, outer = share["guide; true objects, union"], share["guide; true objects, outer"]
    merged, unmerged = share["guide; felzenszwalb, merged"], share["guide; felzenszwalb, not merged"]
    assert share["guide"] + 0.1 < union < outer - 0.2
    assert share["guide"] + 0.1 < merged < unmerged - 0.2
    assert min(outer, unmerged) > 0.8

    # merging: most pairs of one class lie within eps, some of two as well, and those join most of a scene
    one_class, two_classes = values["below"]
    assert one_class > 0.5
    assert 0.05 < two_classes < 0.3
    assert values["numbers"] == sorted(values["numbers"], reverse=True)
    assert values["numbers"][-1] < values["numbers"][0] / 3

    # branches add up; correction leaves one class a region and the unsegmented part alone
    assert values["sum_error"] < 1e-4
    court, field, vehicle = values["gaps"]  # of main, spatial, semantic, all three
    assert vehicle[2] > max(vehicle[:2])
    assert all(gap[2] < min(gap[:2]) for gap in (court, field))
    assert values["mixed"][0] > 0.4
    assert values["mixed"][1] == 0
    assert values["kept"] == [60, 60]

    # the table: above plain CLIP and the floor, below the oracle; the scope helps, the guide does not, merging costs
    mious = {name: np.array(row) for name, row in values["mious"].items()}  # (sources, value and ends)
    full, without = mious["+ correction = CorrCLIP"], mious["CorrCLIP without merging"]
    own, query = mious["CLIP's own patches"], mious["q-q (baseline)"]
    scope, value = mious["+ scope"], mious["+ value (the guide's weights)"]
    assert (full[:, 1] > own[:, 2] + 0.1).all()
    assert (full[:, 1] > values["floor"] + 0.3).all()
    assert (without[:, 0] < values["ceiling"]).all()
    assert values["ceiling"][1] == 1
    assert own[0, 0] > values["floor"] > mious["q-k"][0, 0]
    assert (scope[:, 0] > query[:, 0] + 0.05).all()
    assert scope[1, 0] > scope[0, 0]
    assert (value[:, 0] < scope[:, 0]).all()
    assert full[0, 0] < mious["v-v, no regions"][0, 0] < without[0, 0]
    over_own, over_query, over_merged, over_values = np.array(values["differences"]).reshape(4, 2, 3)
    np.testing.assert_allclose(over_own[:, 0], full[:, 0] - own[:, 0], atol=1e-9)
    np.testing.assert_allclose(over_merged[:, 0], without[:, 0] - full[:, 0], atol=1e-9)
    assert abs(over_query[0, 0]) < 0.1 < over_query[1, 1]  # hardly above its baseline with felzenszwalb
    assert min(over_own[:, 1].min(), over_merged[:, 1].min(), over_values[:, 1].min()) > 0
    assert over_merged[0, 0] > over_merged[1, 0]

    # the module's figures are those of the functions
    tested = values["tested"]
    assert tested["test/miou"] == pytest.approx(full[0, 0], abs=1e-6)
    assert [tested["test/miou_low"], tested["test/miou_high"]] == pytest.approx(full[0, 1:], abs=1e-6)
    assert tested["test/miou_oracle"] == pytest.approx(values["ceiling"][0], abs=1e-6)
    assert tested["test/random_miou"] == pytest.approx(values["floor"], abs=1e-6)
    assert tested["test/miou_random_text"] < values["floor"] + 0.05

    # free names: areas add up to the picture, and without a name for it the ground goes elsewhere
    everything, objects = values["areas"].values()
    assert sum(everything.values()) == pytest.approx(1)
    assert sum(objects.values()) == pytest.approx(1)
    assert everything["grey pavement"] > 0.5
    assert 0.04 < everything["boat"] < 0.15
    assert sum(objects[name] - everything[name] for name in objects) == pytest.approx(everything["grey pavement"])

    (table,) = outputs(notebook, "text/markdown")
    assert "| + correction = CorrCLIP | {:.3f} [{:.3f}, {:.3f}] |".format(*full[0]) in table
    assert len(outputs(notebook, "image/png")) == 10


HARD_NEGATIVES_VALUES = """
import json
print(json.dumps({
    "toy": [[r.type, r.prediction_index, r.truth_index] for r in toy_records],
    "report": toy_report,
    "scores": scores,
    "numbers": numbers.tolist(),
    "confident": confident.tolist(),
    "hard": int(hard.sum()),
    "shares": shares,
    "means": means,
    "weights": [float(weights.sum()), float(weights[hard].sum()), sorted(weights.tolist()) == sorted(placebo.tolist())],
    "chosen": {name: row.tolist() for name, row in chosen.items()},
    "objects": [in_hard, in_easy],
    "mined": mined["statistics"],
    "deleted": [num_deleted, hidden],
    "outcome": outcome,
    "by_order": by_order,
    "mine": [again["ap_50"], own["ap_50"], again["statistics"]["hard_negatives"]],
    "weights_csv": sum(float(row["weight"]) for row in rows),
}))
"""


def check_hard_negatives(notebook: NotebookNode, values: dict[str, Any]) -> None:
    """The figures of the notebook on hard negatives are what its text says."""
    errors = [["localisation", 3, 1], ["class", 4, 2], ["both", 5, 3], ["background", 6, None], ["background", 7, None]]
    assert values["toy"] == [*errors, ["missed", None, 3], ["missed", None, 4]]
    assert values["report"]["statistics"]["types"]["duplicate"] == 1
    assert values["report"]["statistics"]["suspected_label_errors"] == 1
    assert values["report"]["metrics"]["precision"] == 2 / 8
    assert values["report"]["metrics"]["recall"] == 2 / 6

    # errors: the name of the class costs most, what is most frequent does not, a threshold trades errors for misses
    train, test = (values["scores"][part] for part in ("train", "val and test"))
    assert train["ap_50"] > test["ap_50"] > 5 * test["random_ap_50"]
    cost = [test[f"dap_{name}"] for name in ("localisation", "class", "both", "duplicate", "background", "missed")]
    assert max(cost) == cost[1]
    assert max(cost[2], cost[4]) < cost[1] / 2
    assert min(values["numbers"][2], values["numbers"][4]) > values["numbers"][0]
    assert sum(values["confident"][:5]) < sum(values["numbers"][:5]) / 5
    assert values["confident"][5] > values["numbers"][5]

    # weights: the share that was asked for, the control has the same weights and no more hardness than chance
    assert values["hard"] == 18
    assert values["weights"] == [pytest.approx(1), pytest.approx(0.3), True]
    assert values["shares"]["no mining"] == pytest.approx(0.15, abs=1e-6)
    assert values["shares"]["mining"] == pytest.approx(0.3, abs=0.03)
    assert values["shares"]["placebo"] < 0.22
    assert values["means"]["mining"] > 1.1 * max(values["means"]["no mining"], values["means"]["placebo"])
    for row in values["chosen"].values():
        assert 18 <= sum(row) <= 40  # with ties
    assert values["objects"][0] > values["objects"][1]
    counts = values["mined"]
    parts = ("true_positives", "false_positives", "below_threshold", "ignored")
    assert counts["total_predictions"] == sum(counts[name] for name in parts)

    # the audit: the trained detector reaches 0.9 hardly ever and is mostly right below; a jittered truth is listed
    (deleted, hidden), outcome = values["deleted"], values["outcome"]
    assert outcome["trained detector, from 0.9 on"][0] < 5
    listed, objects, finds = outcome["trained detector, all"]
    assert finds > listed / 2
    assert 0 < objects < deleted
    assert 0 < hidden < deleted
    listed, objects, finds = outcome["idealised detector, from 0.9 on"]
    assert finds > listed / 2
    assert deleted / 4 < objects <= outcome["idealised detector, all"][1] < deleted

    (ranked, at_random), (ideal, ideal_at_random) = values["by_order"].values()
    assert ranked < at_random + 3
    assert ideal > ideal_at_random + 5

    mined_ap, own_ap, number = values["mine"]
    assert mined_ap == pytest.approx(own_ap, abs=1e-6)
    assert number > 0
    assert values["weights_csv"] == pytest.approx(1)
    tables = outputs(notebook, "text/markdown")
    assert len(tables) == 6
    assert f"| {test['ap_50']:.3f} [{test['ap_50_low']:.3f}, " in tables[1]
    assert len(outputs(notebook, "image/png")) == 6


MULTILABEL_VALUES = """
import json
print(json.dumps({
    "sizes": {part: len(rows) for part, rows in data.rows.items()},
    "deviations": [[float(values.mean()), float(values.max())] for values in deviations.values()],
    "metrics": {name: float(value) for name, value in metrics.items()},
    "results": json.loads((folder / "results.json").read_text())["test"],
    "gap": gap,
    "f1": [half.mean(), fitted.mean()],
    "recalls": [upper["recall_macro"], lower["recall_macro"]],
    "prevalence": float(test_labels.float().mean()),
    "support": support.tolist(),
    "ap": [ap.tolist(), low.tolist(), high.tolist()],
    "widths": [widths[few].mean(), widths[many].mean()],
    "knn": [float(voter_trainer.callback_metrics["test/binary_map_macro"]), notes["random_codes_map_macro_test"]],
    "votes": [float(weights.sum()), float(np.abs(by_hand - stored).max())],
    "distances": distances.tolist(),
    "counted": [int((votes.codes[row].int() != (codes[asked] > 0).int()).sum()) for row in positions],
    "ensemble": ensemble,
    "differences": differences,
    "needs_gradient": term.requires_grad,
    "term": term.item(),
    "tried": [[w, loss, float((g - tried[0.0][1]).abs().max()), float(g.norm())] for w, (loss, g) in tried.items()],
    "refusal": refusal,
    "chosen": chosen,
    "select": [[record.maps["select"][epoch] for epoch in p["epochs"]] for record, p in zip(curves, chosen)],
    "best": [float(t.checkpoint_callback.best_model_score) for _, t in runs],
    "tested": [[float(t.callback_metrics[f"{p}/soft_map_macro"]) for p in ("fold", "test")] for _, t in runs],
}))
"""


def check_multilabel(notebook: NotebookNode, values: dict[str, Any]) -> None:
    """The figures of the multi-label notebook are what its text says."""
    sizes = values["sizes"]
    assert sizes["test"] == 160
    assert sizes["select"] == round(0.1 * (sizes["train"] + sizes["select"]))
    random, stratified = values["deviations"]
    assert stratified[0] < random[0] / 2
    assert stratified[1] < random[1]

    # labels are learnt, results.json agrees, and storing bits costs something
    metrics, test = values["metrics"], values["results"]
    for part in ("fold", "test"):
        assert metrics[f"{part}/binary_map_macro"] > metrics[f"{part}/random_map_macro"] + 0.3
    floor = metrics["test/random_map_macro"]
    assert values["prevalence"] < floor < values["prevalence"] + 0.05  # a random order's AP is just above it
    assert test["metrics"]["test/soft_map_macro"] == pytest.approx(metrics["test/soft_map_macro"], abs=1e-6)
    assert test["floors"]["test/soft_map_macro"] == pytest.approx(floor, abs=1e-6)
    assert test["n"] == {part: sizes[part] for part in ("train", "fold", "test")}
    gap, low, high = values["gap"]
    assert gap == pytest.approx(metrics["test/soft_map_macro"] - metrics["test/binary_map_macro"], abs=1e-6)
    assert low < gap < high

    # thresholds: the table's figures are the test's, and recall rises
    half, fitted = values["f1"]
    assert half == pytest.approx(metrics["test/soft_f1_macro"], abs=1e-6)
    assert fitted == pytest.approx(metrics["test/soft_f1_macro_fitted"], abs=1e-6)
    assert fitted > half
    assert values["recalls"][1] > values["recalls"][0]

    # classes: intervals hold their value, and rare classes have the wide ones
    assert min(values["support"]) >= 1
    ap, lows, highs = map(np.array, values["ap"])
    assert ap.mean() == pytest.approx(metrics["test/soft_map_macro"], abs=1e-6)
    assert (lows <= ap).all()
    assert (ap <= highs).all()
    assert values["widths"][0] > values["widths"][1]

    # the votes explain the prediction: they add up to it, and the distances are those of the bits
    knn, random_codes = values["knn"]
    assert knn > random_codes + 0.2
    assert values["votes"] == [pytest.approx(1, abs=1e-6), pytest.approx(0, abs=1e-6)]
    assert values["distances"] == values["counted"] == sorted(values["distances"])

    # the ensemble: the differences are those of the values, and the singles are what the runs reported
    mean = values["ensemble"]["mean of the probabilities"]
    assert len(values["differences"]) == 3
    for fold, (name, (difference, low, high)) in enumerate(values["differences"].items()):
        single = values["ensemble"][name]
        assert single[0] == pytest.approx(values["tested"][fold][1], abs=1e-6)
        assert difference == pytest.approx(mean[0] - single[0], abs=1e-9)
        assert low < difference < high
        assert high - low < single[2] - single[1] + mean[2] - mean[1]  # pairing makes it narrower

    # the cosine term: no gradient, whatever its weight
    assert values["needs_gradient"] is False
    for weight, loss, change, size in values["tried"]:
        assert loss == pytest.approx(values["tried"][0][1] + weight * values["term"], abs=1e-5)
        assert change == 0
        assert size > 0
    assert "no gradient" in values["refusal"]

    # the two ways to choose an epoch: the run took the honest one, the other cannot look worse on the fold
    for run, picked in enumerate(values["chosen"]):
        assert values["select"][run][0] == pytest.approx(values["best"][run], abs=1e-6)
        assert values["select"][run][0] >= values["select"][run][1]
        assert picked["fold"][1] >= picked["fold"][0]
        assert [picked["fold"][0], picked["test"][0]] == pytest.approx(values["tested"][run], abs=1e-6)
        assert picked["fold"][1] - picked["fold"][0] < 0.03  # small, as the text says

    thresholds, ensembles, epochs = outputs(notebook, "text/markdown")
    assert f"| hold-out | soft | {half:.3f} | {fitted:.3f} |" in thresholds
    assert f"| mean of the probabilities | {mean[0]:.3f} [" in ensembles
    assert epochs.count("| +") + epochs.count("| -") == 8
    assert len(outputs(notebook, "image/png")) == 6


CHECKS = {  # notebook: last cell, which prints JSON, and what to make of it
    "corrclip": (CORRCLIP_VALUES, check_corrclip),
    "hard_negatives": (HARD_NEGATIVES_VALUES, check_hard_negatives),
    "hashing": (HASHING_VALUES, check_hashing),
    "heatmap": (HEATMAP_VALUES, check_heatmap),
    "multilabel": (MULTILABEL_VALUES, check_multilabel),
}


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_runs(file, quiet_kernel):
    notebook = nbformat.read(file, as_version=4)
    last_cell, check = CHECKS[file.stem]
    notebook.cells.append(nbformat.v4.new_code_cell(last_cell))
    execute(notebook, quiet_kernel)
    pictures = figures(notebook)
    assert all(min(picture.shape[:2]) > 150 and picture.std() > 10 for picture in pictures)
    check(notebook, json.loads(notebook.cells[-1].outputs[0].text))
    assert list(quiet_kernel.iterdir()) == []  # everything went to a temporary folder

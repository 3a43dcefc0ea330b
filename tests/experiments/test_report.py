"""The report's figures are those of the files, its page needs no network, its LaTeX is whole, and gaps are named."""

from __future__ import annotations

import html
import json
import re
import shutil

import numpy as np
import pytest
from result_folders import write_ablation, write_crossval
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from callbacks.experiments.report.fold_analysis import analyse, spearman
from callbacks.experiments.report.page import write_report
from callbacks.experiments.report.pooled import pool
from callbacks.experiments.report.statements import scored_items
from callbacks.experiments.result_files import read_experiment
from callbacks.experiments.tables import Cell, Table, escape_latex, interval, number, to_latex, to_markdown

PM = "\N{PLUS-MINUS SIGN}"


@pytest.fixture(scope="module")
def crossval(tmp_path_factory):
    """A finished 5 x 12 cross-validation with its report: folder, record, page, Markdown, LaTeX."""
    folder = tmp_path_factory.mktemp("crossval")
    record = write_crossval(folder)
    files = write_report(folder)
    assert [file.name for file in files] == ["report.html", "report.md", "report.tex"]
    return folder, record, *(file.read_text() for file in files)


def rows_of(page: str, name: str) -> list[list[str]]:
    """The words of a table's rows on the page, small print included."""
    table = re.search(rf'<section class="table" id="{name}">(.*?)</section>', page, re.DOTALL).group(1)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)[1:]
    return [
        [html.unescape(re.sub("<[^>]+>", " ", cell)).strip() for cell in re.findall(r"<td.*?</td>", row)]
        for row in rows
    ]


def arrays_of(folder, folds=5):
    return [np.load(folder / f"fold_{fold}" / "predictions.npz") for fold in range(folds)]


def test_main_table_gives_mean_sd_interval_and_floor_with_the_best_in_bold(crossval) -> None:
    _, record, page, markdown, latex = crossval
    soft, binary = (record["metrics"][f"fold/{scoring}_map_macro"] for scoring in ("soft", "binary"))
    row = next(row for row in rows_of(page, "scores-fold") if row[0] == "mAP macro")
    said = f"{soft['mean']:.4f} {PM} {soft['sd']:.4f}"
    assert row[1].split() == [*said.split(), f"[{soft['low']:.4f},", f"{soft['high']:.4f}]"]
    assert row[3] == "0.0671"
    assert soft["mean"] > binary["mean"]
    assert f"<b>{said}</b>" in page
    assert f"| mAP macro | **{said}** \\[{soft['low']:.4f}, {soft['high']:.4f}\\] | {binary['mean']:.4f}" in markdown
    assert rf"mAP macro & \textbf{{{soft['mean']:.4f} $\pm$ {soft['sd']:.4f}}} {{\scriptsize [" in latex
    for words in (
        "n = 600 items, each scored once",
        "Convention: AP over all items",
        "of mAP the expectation of a random order",
        "Random codes reach a mAP macro of 0.0712",
        "Random codes reach a mAP macro of 0.0834",
    ):
        assert words in page
        assert words in markdown
        assert words in latex
    notes = {part: page.partition(f'id="scores-{part}"')[2].partition("</section>")[0] for part in ("fold", "test")}
    assert ("0.0712" in notes["fold"], "0.0834" in notes["fold"]) == (True, False)
    assert ("0.0712" in notes["test"], "0.0834" in notes["test"]) == (False, True)
    labels = {part: [a[f"{part}_labels"] for a in arrays_of(crossval[0])] for part in notes}
    bare = {"fold": sum((~part.any(axis=1)).sum() for part in labels["fold"]), "test": 0}
    bare["test"] = (~labels["test"][0].any(axis=1)).sum()
    for part, count in (("fold", 600), ("test", 150)):
        said = f"{bare[part]} of the {count} scored items and 3 of the training items"
        assert f"Without any label, so negatives of every class: {said}." in notes[part]


def change_figure(run, name: str, value: float) -> None:
    """Put another value into the results.json of a run."""
    content = json.loads((run / "results.json").read_text())
    content["test"]["metrics"][name] = value
    (run / "results.json").write_text(json.dumps(content))


def test_macro_means_say_over_how_many_classes_they_are(crossval, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(crossval[0], folder)
    file = folder / "crossval.json"
    record = json.loads(file.read_text())
    record["notes"]["num_classes"] = 14
    file.write_text(json.dumps(record))
    change_figure(folder / "fold_2", "fold/soft_classes_scored", 11.0)
    for text in (file.read_text() for file in write_report(folder)):
        assert "mAP macro over 11 to 12 of 14 classes; the others have no positive there." in text
        assert "mAP macro over 12 of 14 classes" in text  # the hold-out
    assert "classes; the others" not in crossval[2]  # where all are scored


def test_lower_is_better_where_it_is_and_a_missed_floor_is_marked(crossval) -> None:
    _, record, page, _, _ = crossval
    row = next(row for row in rows_of(page, "scores-fold") if row[0].startswith("Hamming loss, at 0.5"))
    means = [record["metrics"][f"fold/{scoring}_hamming_loss"]["mean"] for scoring in ("soft", "binary")]
    better = min(means)
    assert means[0] != means[1]
    assert re.search(rf"<b>{better:.4f} {PM} [\d.]+ \N{{DAGGER}}</b>", page)
    assert all("\N{DAGGER}" in cell for cell in row[1:3])
    assert not any("classes scored" in row[0] for row in rows_of(page, "scores-fold"))


@pytest.mark.parametrize(("part", "scoring"), [("fold", "soft"), ("test", "binary")])
def test_table_by_fold(crossval, part: str, scoring: str) -> None:
    _, record, page, _, _ = crossval
    entry = record["metrics"][f"{part}/{scoring}_map_macro"]
    rows = rows_of(page, f"by-{part}-{scoring}")
    assert [row[0] for row in rows] == [*(f"Fold {fold}" for fold in range(5)), "Mean", "Std"]
    expected = [*(entry["values"][str(fold)] for fold in range(5)), entry["mean"], entry["sd"]]
    assert [row[1] for row in rows] == [f"{value:.4f}" for value in expected]


def test_ensembles_stand_with_interval_and_paired_difference(crossval) -> None:
    rows = {row[0]: row[1:] for row in rows_of(crossval[2], "ensembles")}
    assert rows["mean of probabilities"][0].split() == ["0.7400", "[0.7200,", "0.7600]"]
    assert rows["mean of probabilities"][2].split() == ["+0.0300", "[0.0200,", "0.0400]"]
    assert rows["fold 3 (best by selection)"][2] == "\N{EN DASH}"


def fold_precisions_of(arrays) -> np.ndarray:
    """(K, C) average precisions within the folds, NaN where a fold has no positive."""
    return np.array(
        [
            [
                average_precision_score(a["fold_labels"][:, c], a["fold_soft"][:, c])
                if a["fold_labels"][:, c].any()
                else np.nan
                for c in range(a["fold_labels"].shape[1])
            ]
            for a in arrays
        ]
    )


def test_classes_show_the_mean_over_folds_beside_the_pooled_score(crossval) -> None:
    folder, _, page, _, _ = crossval
    arrays = arrays_of(folder)
    labels = np.concatenate([a["fold_labels"] for a in arrays])
    scores = np.concatenate([a["fold_soft"] for a in arrays])
    decided = scores >= np.float32(0.45)
    names = arrays[0]["class_names"].tolist()
    rows = {row[0]: row[1:] for row in rows_of(page, "classes")}
    aps = [average_precision_score(labels[:, c], scores[:, c]) for c in range(12)]
    means = np.nanmean(fold_precisions_of(arrays), axis=0)
    assert list(rows) == [names[c] for c in np.argsort(-means)]
    for c, name in enumerate(names):
        support, random, mean, ap, ends, precision, recall, _ = rows[name]
        assert mean == f"{means[c]:.4f}"
        assert (int(support), ap) == (labels[:, c].sum(), f"{aps[c]:.4f}")
        expected = []
        for part in (a["fold_labels"] for a in arrays):  # a positive at rank r: (1 + (r - 1)(R - 1)/(n - 1)) / r
            ranks, positives = np.arange(1, len(part) + 1), part[:, c].sum()
            ahead = (ranks - 1) * (positives - 1) / (len(part) - 1)
            expected += [((1 + ahead) / ranks).mean()] if positives else []
        assert random == f"{np.mean(expected):.4f}"
        low, high = map(float, ends.strip("[]").split(", "))
        assert low < aps[c] < high
        hits = (decided[:, c] & (labels[:, c] == 1)).sum()
        assert precision == f"{hits / decided[:, c].sum():.3f}"
        assert recall == f"{hits / labels[:, c].sum():.3f}"


def test_the_mean_over_folds_stands_badly_calibrated_models(crossval, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(crossval[0], folder)
    for fold in range(5):  # the order within a fold stays, that between the folds is lost
        file = folder / f"fold_{fold}" / "predictions.npz"
        arrays = dict(np.load(file))
        np.savez_compressed(file, **arrays | {"fold_soft": arrays["fold_soft"] * 0.19 + np.float32(0.2 * fold)})
    rarest = folder / "fold_2" / "predictions.npz"
    arrays = dict(np.load(rarest))
    arrays["fold_labels"][:, 11] = 0  # a fold without a positive has no say in the mean
    np.savez_compressed(rarest, **arrays)
    means = np.nanmean(fold_precisions_of(arrays_of(folder)), axis=0)
    page = write_report(folder)[0].read_text()
    rows = rows_of(page, "classes")
    assert [row[0] for row in rows] == [arrays["class_names"][c] for c in np.argsort(-means)]
    for row, mean in zip(rows, np.sort(means)[::-1], strict=True):
        assert float(row[3]) == pytest.approx(mean, abs=2e-3)  # float32 ties of the squeezed scores
        assert float(row[4]) < 0.8 * mean
    assert "far below the mean where these are badly calibrated" in page


def test_confused_pairs_count_every_false_positive_once(crossval) -> None:
    folder, _, page, _, _ = crossval
    arrays = arrays_of(folder)
    labels = np.concatenate([a["fold_labels"] for a in arrays]).astype(bool)
    decided = np.concatenate([a["fold_soft"] for a in arrays]) >= np.float32(0.45)
    names = arrays[0]["class_names"].tolist()
    masses = np.zeros((12, 12))
    for truth, said in zip(labels, decided, strict=True):
        blamed = truth & ~said if (truth & ~said).any() else truth
        for i in np.flatnonzero(said & ~truth):
            masses[i] += blamed / max(1, blamed.sum())
    for first, second, mass, _, wrong in rows_of(page, "confused"):
        i, j = names.index(first), names.index(second)
        assert float(mass) == pytest.approx(masses[i, j], abs=0.051)
        assert int(wrong) == (decided[:, i] & ~labels[:, i]).sum()
    assert float(rows_of(page, "confused")[0][2]) == pytest.approx(masses.max(), abs=0.051)


def test_misses_by_area(crossval) -> None:
    folder, _, page, _, _ = crossval
    arrays = arrays_of(folder)
    areas = np.concatenate([a["fold_areas"] for a in arrays])
    missed = np.concatenate([a["fold_soft"] for a in arrays]) < np.float32(0.45)
    small = areas < 32**2 / (640 * 480)
    rows = rows_of(page, "missed-area")
    assert rows[0][2:4] == [f"{small.sum():,}", f"{(small & missed).sum():,}"]
    assert rows[-1][2] == f"{np.isfinite(areas).sum():,}"


def test_fold_section_explains_the_scores(crossval) -> None:
    folder, record, page, _, _ = crossval
    analysis = analyse(pool(read_experiment(folder).runs))
    labels = [a["fold_labels"] for a in arrays_of(folder)]
    frequency = np.array([part.mean(axis=0) for part in labels])
    overall = np.concatenate(labels).mean(axis=0)
    assert np.allclose(analysis.deviation, frequency / overall - 1)
    values = np.array([record["metrics"]["fold/soft_map_macro"]["values"][str(fold)] for fold in range(5)])
    assert np.allclose(analysis.scores, values, atol=1e-6)
    assert np.allclose(analysis.contributions.sum(axis=1), values - values.mean(), atol=1e-6)
    rows = rows_of(page, "fold-shares")
    assert [row[1] for row in rows] == [f"{value:.4f}" for value in values]
    top = analysis.class_names[int(np.abs(analysis.contributions[0]).argmax())]
    assert rows[0][-1].startswith(top)
    assert len(rows_of(page, "fold-rarest")) == 10
    deviation = np.abs(analysis.deviation).mean(axis=1)
    assert rows_of(page, "fold-correlation")[0][3] == number(spearmanr(values, deviation).statistic, 2, signed=True)


@pytest.mark.parametrize("count", [5, 30])
def test_spearman_agrees_with_scipy(count: int) -> None:
    first, second = np.random.default_rng(count).integers(0, 9, (2, count)).astype(float)
    found, expected = spearman(first, second), spearmanr(first, second)
    assert found.rho == pytest.approx(expected.statistic)
    if count > 7:
        assert found.p == pytest.approx(expected.pvalue)
    assert np.isnan(spearman(first, np.ones(count)).rho)


def test_page_is_one_file_without_scripts(crossval) -> None:
    page = crossval[2]
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith(("data:image/png;base64,", "#section-")) for source in sources)
    assert sum(source.startswith("data:") for source in sources) == 4 + 12  # figures, worst items
    bare = re.sub(r'"data:[^"]*"', "", page)
    assert not re.search(r"https?:|<script|<link|@import|url\(", bare)
    assert "50% &lt;b&gt;x_y&lt;/b&gt; &amp; {#1}" in bare
    assert "<b>x_y" not in bare


def check_latex(latex: str) -> None:
    """No character that LaTeX reads as a command stands unescaped, environments and braces close."""
    body = "\n".join(line for line in latex.splitlines() if not line.startswith("%"))
    assert body.isascii()
    for kind in ("table", "tabular", "minipage"):
        assert body.count(rf"\begin{{{kind}}}") == body.count(rf"\end{{{kind}}}")
    bare = re.sub(r"\\[\\&%$#_{}]", "", body)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    text = re.sub(r"\\label\{[^}]*\}|\$[^$]*\$", "", bare)
    assert not re.search(r"[%#_^~<>|]", text)
    for table in re.findall(r"\\toprule\n(.*?)\\bottomrule", latex, re.DOTALL):
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1


def test_latex_is_whole(crossval) -> None:
    check_latex(crossval[4])
    name = escape_latex("50% <b>x_y</b> & {#1}|$~^\\")
    assert name == (
        r"50\% \textless{}b\textgreater{}x\_y\textless{}/b\textgreater{} \& \{\#1\}\textbar{}"
        r"\$\textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert name in crossval[4]


@pytest.mark.slow
def test_eighty_classes_show_the_ends(tmp_path) -> None:
    write_crossval(tmp_path, classes=80, items=1000)
    page, _, latex = (file.read_text() for file in write_report(tmp_path))
    best, worst = rows_of(page, "classes-top"), rows_of(page, "classes-bottom")
    assert (len(best), len(worst)) == (10, 10)
    aps = [float(row[3]) for row in best + worst]  # means over folds
    assert aps == sorted(aps, reverse=True)
    check_latex(latex)


def test_a_fold_whose_results_are_damaged_does_not_count_as_finished(crossval, tmp_path, capsys) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(crossval[0], folder)
    (folder / "fold_3" / "results.json").write_text("{torn")
    page, markdown, _ = (file.read_text() for file in write_report(folder))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missing: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"missing: The scores of fold 3: {folder}/fold_3/results.json is damaged: Expecting")
    assert "<b>4 of 5</b> folds finished" in page
    values = [crossval[1]["metrics"]["fold/soft_map_macro"]["values"][str(fold)] for fold in (0, 1, 2, 4)]
    row = next(row for row in rows_of(page, "scores-fold") if row[0] == "mAP macro")
    assert row[1].startswith(f"{np.mean(values):.4f} {PM} {np.std(values, ddof=1):.4f}")
    assert rows_of(page, "by-fold-soft")[3] == ["Fold 3", *["\N{EN DASH}"] * 6]
    assert 'id="ensembles"' not in page  # one of its models is that of the fold
    assert "n = 480 items" in markdown
    assert "Missing: fold 3." in markdown


def test_figures_of_a_newer_test_are_in_all_sections(crossval, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(crossval[0], folder)
    change_figure(folder / "fold_1", "fold/soft_map_macro", 0.25)
    found = read_experiment(folder)
    entry = found.record["metrics"]["fold/soft_map_macro"]
    before = crossval[1]["metrics"]["fold/soft_map_macro"]["values"]
    assert entry["values"] == {**before, "1": 0.25}
    assert entry["mean"] == pytest.approx(np.mean([*entry["values"].values()]))
    assert "ensemble" not in found.record
    said = "The ensembles: crossval.json differs from the results.json of fold 1. Give the crossval command"
    assert [text.startswith(said) for text in found.missing] == [True]


@pytest.mark.parametrize("content", ['{"test": null}', '{"test": {"metrics": 1}}'])
def test_results_without_metrics_are_damaged(crossval, tmp_path, content: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(crossval[0] / "fold_0", folder)
    (folder / "results.json").write_text(content)
    assert "results.json is damaged: no metrics. Delete it" in write_report(folder)[0].read_text()


def test_missing_and_failed_folds_are_named_and_the_rest_is_reported(crossval, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(crossval[0], folder)
    record = json.loads((folder / "crossval.json").read_text())
    record["folds"]["1"] = {"status": "failed", "folder": "fold_1", "error": "Traceback\nCUDA out of memory"}
    del record["folds"]["2"]
    (folder / "crossval.json").write_text(json.dumps(record))
    (folder / "fold_3" / "predictions.npz").write_bytes(b"PK torn")
    (folder / "fold_4" / "worst" / "worst.json").unlink()
    (folder / "fold_0" / "worst" / "fold_00.png").write_bytes(b"torn")
    page, markdown, latex = (file.read_text() for file in write_report(folder))
    for said in (page, markdown, latex):
        assert "Fold 1 failed. It said: CUDA out of memory" in said
        assert "Fold 2 is missing." in said
        assert "Missing: folds 1, 2." in said
    cure = f"`python cli.py test -c {folder}/fold_3/config.yaml --ckpt_path best` writes it again."
    assert f"The predictions of fold 3: {folder}/fold_3/predictions.npz is damaged: it is cut" in page
    assert cure in page
    assert "no picture" in page
    assert [row[0] for row in rows_of(page, "fold-frequency")] == ["Fold 0", "Fold 4", "All"]


@pytest.mark.parametrize("kind", ["absent", "text", "array", "torn", "flipped", "pickled"])
def test_unreadable_predictions_are_named_with_the_command_that_mends_them(crossval, tmp_path, kind: str) -> None:
    folder = tmp_path / "a run"
    shutil.copytree(crossval[0] / "fold_0", folder)
    file = folder / "predictions.npz"
    content = bytearray(file.read_bytes())
    if kind == "absent":
        file.unlink()
    elif kind == "pickled":
        np.savez_compressed(file, fold_ids=np.array([{}], dtype=object))
    elif kind == "array":
        with file.open("wb") as target:
            np.save(target, np.zeros(3))
    else:
        content[len(content) // 2] ^= 255
        file.write_bytes({"text": b"hello", "torn": content[:5000], "flipped": content}[kind])
    page = html.unescape(write_report(folder)[0].read_text())
    assert ("is not there." if kind == "absent" else "is damaged: it is cut short or no npz file.") in page
    assert f"`python cli.py test -c '{folder}/config.yaml' --ckpt_path best` writes it again." in page
    assert "pickle" not in page


def test_predictions_of_another_test_are_noticed(crossval, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(crossval[0] / "fold_0", folder)
    change_figure(folder, "fold/soft_map_macro", 0.5)
    assert "results.json says 0.5000, so they are of different tests" in write_report(folder)[0].read_text()


def test_an_item_in_two_folds_is_refused(crossval, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(crossval[0], folder)
    shutil.copy(folder / "fold_0" / "predictions.npz", folder / "fold_1" / "predictions.npz")
    with pytest.raises(ValueError, match=r"Item item_\d+ of fold 1 is in fold 0 too"):
        write_report(folder)


def test_single_run_has_values_without_spread(crossval, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(crossval[0] / "fold_0", folder)
    page, _, latex = (file.read_text() for file in write_report(folder))
    value = crossval[1]["metrics"]["fold/soft_map_macro"]["values"]["0"]
    assert rows_of(page, "scores-fold")[0][1] == f"{value:.4f}"
    assert "over 1 folds" not in page
    assert 'id="fold-shares"' not in page
    assert "Mean over folds" not in page
    rows = rows_of(page, "classes")
    aps = np.sort(fold_precisions_of(arrays_of(crossval[0], 1))[0])[::-1]
    assert [row[3] for row in rows] == [f"{ap:.4f}" for ap in aps]
    check_latex(latex)


def test_run_without_boxes_binary_codes_and_thresholds(crossval, tmp_path) -> None:
    arrays = dict(np.load(crossval[0] / "fold_0" / "predictions.npz"))
    kept = {name: array for name, array in arrays.items() if not re.search("areas|binary|thresholds", name)}
    np.savez_compressed(tmp_path / "predictions.npz", **kept)
    page = write_report(tmp_path)[0].read_text()
    assert "a threshold of 0.5" in page
    assert 'id="missed-area"' not in page
    assert "results.json" in page  # named as missing


def test_ablation_report(tmp_path) -> None:
    record = write_ablation(tmp_path)
    page, markdown, latex = (file.read_text() for file in write_report(tmp_path))
    rows = rows_of(page, "ablation")
    cell = record["cells"][0]
    assert rows[0][2].startswith(f"{cell['mean']:.4f} {PM} {cell['sd']:.4f}")
    level = record["marginals"]["model.init_args.bits"][2]
    assert any(row[1] == "128" and row[2].startswith(f"{level['mean']:.4f}") for row in rows_of(page, "marginals"))
    for said in (page, markdown, latex):
        assert "seed 2 failed: CUDA out of memory" in said
        assert "Scored on 120 items." in said
    assert "17 of 18" in page
    check_latex(latex)


@pytest.mark.parametrize(
    ("metric", "notes", "said"),
    [
        ("test/binary_map_macro", {"n_fold": 120, "n_test": 2400.0}, ["Scored on 2,400 items."]),
        ("fold/soft_lrap", {"n_fold": 120.4}, ["Scored on 120 items on average."]),
        ("test/soft_lrap", {"n_fold": 120}, []),
        ("map", {}, []),
    ],
)
def test_ablation_says_how_many_items_its_metric_saw(metric: str, notes: dict, said: list[str]) -> None:
    assert scored_items({"metric": metric, "notes": notes}) == said


def test_empty_folder_says_what_was_looked_for(tmp_path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_report(tmp_path)
    for words in (
        str(tmp_path),
        "crossval.json",
        "ablation.json",
        "predictions.npz",
        "python cli.py crossval -c CONFIG",
    ):
        assert words in str(caught.value)
    (tmp_path / "fold_0").mkdir()
    with pytest.raises(FileNotFoundError, match="A crossval was begun here"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["crossval.json", "ablation.json"])
@pytest.mark.parametrize(("content", "cause"), [("{torn", "Expecting"), ("{}", "it lacks"), ("[1]", "it lacks")])
def test_damaged_record_is_named_with_its_cure(tmp_path, name: str, content: str, cause: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged: {cause}.*Delete it and give the \w+ command again"):
        write_report(tmp_path)


def test_tables_escape_and_check_their_width() -> None:
    table = Table(
        "t", "A & B", ["x_1", "y"], [["[a]", Cell("0.5", interval(0.4, 0.6, 1), best=True)], ["m", "1"]], "lr", (), 1
    )
    latex = to_latex(table)
    assert r"\caption{A \& B}" in latex
    assert "{[a]} & \\textbf{0.5} {\\scriptsize [0.4, 0.6]} \\\\\n\\midrule\nm & 1" in latex
    assert to_markdown(table).splitlines()[2:5] == [
        "| x\\_1 | y |",
        "| :-- | --: |",
        "| \\[a\\] | **0.5** \\[0.4, 0.6\\] |",
    ]
    with pytest.raises(ValueError, match="Table t"):
        Table("t", "", ["a"], [["b", "c"]], "l")

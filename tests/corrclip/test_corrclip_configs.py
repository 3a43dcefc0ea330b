"""Every CorrCLIP config, overlay and grid through the command line's parser, and the names that they give."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import cli
from callbacks.experiments.grid import cells_of, read_factors
from callbacks.experiments.runs import options
from datamodules.segmentation_classes import read_class_lines
from lightning_modules.backbones.clip import check_activation

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "corrclip"
BASES = sorted(CONFIGS.glob("*.yaml"))
OVERLAYS = sorted([*CONFIGS.glob("method/*.yaml"), *CONFIGS.glob("masks/*.yaml")])
GRIDS = sorted(CONFIGS.glob("grids/*.yaml"))
FILES = [*BASES, *OVERLAYS, *GRIDS]


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


@pytest.fixture(scope="module")
def parse() -> Callable[..., Any]:
    """``parse("-c", file, ...)``: what ``test`` would run with; one parser for all, as making it takes longest."""

    class OnlyParses(cli.SuiteCLI):
        def instantiate_classes(self) -> None:
            pass

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    made = OnlyParses(["test", "-c", str(CONFIGS / "voc.yaml")])
    return lambda *tokens: made.parsed(made.parser, ["test", *map(str, tokens)])["test"]


def leaves(content: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each leaf; the keys of a grid are dotted already."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, f"{above}.{key}" if above else str(key))
    else:
        yield above, content


def parts(path: Path) -> list[dict[str, Any]]:
    """The settings of a config, or of each cell of a grid, by dotted key."""
    content = yaml.safe_load(path.read_text())
    if path not in GRIDS:
        return [dict(leaves(content))]
    return [dict(leaves(cell.overrides)) for cell in cells_of(read_factors(content, path.name))]


@pytest.mark.parametrize("path", BASES, ids=name_of)
def test_each_config_is_understood(path, parse) -> None:
    found = parse("-c", path)
    for key, value in leaves(yaml.safe_load(path.read_text())):
        if not key.endswith("class_path") and not key.startswith("trainer.callbacks"):
            assert found[key] == value, key


@pytest.mark.parametrize("path", OVERLAYS, ids=name_of)
def test_each_overlay_is_understood_and_wins(path, parse) -> None:
    found = parse("-c", CONFIGS / "voc.yaml", "-c", path)
    for key, value in parts(path)[0].items():
        assert found[key] == value, key


@pytest.mark.parametrize("path", GRIDS, ids=name_of)
def test_each_cell_of_each_grid_is_understood(path, parse) -> None:
    base = ROOT / str(re.search(r"ablate -c (\S+)", path.read_text())[1])
    cells = cells_of(read_factors(yaml.safe_load(path.read_text()), path.name))
    assert len({cell.folder for cell in cells}) == len(cells) > 4
    # each option is checked as it comes, so one parse stands for all cells; the last of them is what remains
    found = parse("-c", base, *(word for cell in cells for word in options(cell.overrides)))
    for key, value in leaves(cells[-1].overrides):
        assert found[key] == value, key


def test_an_early_cell_that_is_wrong_would_be_seen(parse) -> None:
    for wrong in ({"model.init_args.similarity": "cosine"}, {"model.init_args.guide.init_args.nam": "x"}):
        words = [*options(wrong), *options({"model.init_args.similarity": "uniform"})]
        with pytest.raises(cli.UserError):
            parse("-c", CONFIGS / "voc.yaml", *words)


def test_a_cell_and_an_overlay_of_one_name_are_the_same_masks(parse) -> None:
    rows = yaml.safe_load((CONFIGS / "grids" / "masks.yaml").read_text())["masks"]
    for row, overlay in (("SAM 2, 32 points", "sam2_32"), ("SAM 2, 8 points", "sam2"), ("SAM ViT-H", "sam")):
        cell = parse("-c", CONFIGS / "voc.yaml", *options(rows[row]))
        other = parse("-c", CONFIGS / "voc.yaml", "-c", CONFIGS / "masks" / f"{overlay}.yaml")
        assert cell["data.init_args.masks"].as_dict() == other["data.init_args.masks"].as_dict()


def test_the_grids_hold_the_rows_of_the_paper() -> None:
    rows = {path.stem: next(iter(yaml.safe_load(path.read_text()).values())) for path in GRIDS}
    published = ["baseline (q-q)", "+ scope", "+ value", "+ refinement", "+ correction (CorrCLIP)"]
    assert list(rows["components"])[3:8] == published
    assert list(rows["similarity"]) == [
        "uniform", "q-k of CLIP", "q-q of CLIP", "x-x of DINO-B", "qk-qk of DINO-S", "qk-qk of DINO-B",
    ]  # fmt: skip
    assert {"ViT-B/16 MetaCLIP", "ViT-L/14 MetaCLIP", "ViT-H/14 LAION"} <= set(rows["backbones"])
    assert {"SAM 2, 32 points", "SAM 2, 8 points", "Mask2Former", "EoMT"} <= set(rows["masks"])


def test_weights_of_clip_exist_and_have_the_right_activation() -> None:
    import open_clip

    pairs = set()
    for part in (part for path in FILES for part in parts(path)):
        key = "model.init_args.encoder.init_args."
        if f"{key}model" in part or f"{key}pretrained" in part:
            pairs.add((part[f"{key}model"], part[f"{key}pretrained"]))  # never one without the other
    assert len(pairs) == 8
    assert pairs <= set(open_clip.list_pretrained())
    for model, tag in pairs:
        check_activation(model, tag)


def test_weights_of_guides_exist() -> None:
    import timm

    key = "model.init_args.guide.init_args.name"
    names = {part[key] for path in FILES for part in parts(path) if key in part}
    assert len(names) == 7
    assert names <= set(timm.list_models("vit_*", pretrained=True))


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("foodseg103", 104, {0: "background", 1: "candy", 48: "chicken duck", 103: "other ingredients"}),
        ("atlantis", 56, {0: "bicycle", 10: "cypress tree", 34: "river", 55: "wetland"}),
        ("cub200", 201, {0: "background", 1: "Black-footed Albatross", 17: "Cardinal", 200: "Common Yellowthroat"}),
        ("suim", 8, {0: "background (waterbody)", 1: "human diver", 7: "sea-floor and rocks"}),
    ],
)
def test_class_files(name, count, some) -> None:
    file = CONFIGS / "classes" / f"{name}.txt"
    lines = read_class_lines(file)  # refuses doubles
    assert len(lines) == len({line.lower() for line in lines}) == count
    assert {number: lines[number] for number in some} == some
    data = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]["init_args"]
    assert ROOT / data["classes"] == file


def test_the_class_of_a_colour_of_suim_are_its_bits() -> None:
    colours = yaml.safe_load((CONFIGS / "suim.yaml").read_text())["data"]["init_args"]["label_colours"]
    assert [4 * (r // 255) + 2 * (g // 255) + b // 255 for r, g, b in colours] == list(range(8))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_commands_name_files_that_exist(path) -> None:
    comments = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for named in re.findall(r"configs/[\w/]+\.yaml", comments):
        assert (ROOT / named).is_file(), named
    for named in re.findall(r"(?<![\w/])(?:masks|method)/\w+\.yaml", comments):
        assert (CONFIGS / named).is_file(), named

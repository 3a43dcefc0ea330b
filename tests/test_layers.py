"""The walls between the packages, read from the imports in the source."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lightning_modules", "datamodules", "callbacks")
MATHS = {"torch", "torchvision", "numpy", "scipy", "sklearn"}
LAZY = {
    "open_clip",
    "transformers",
    "timm",
    "onnxruntime",
    "segment_anything",
    "faiss",
    "h5py",
    "matplotlib",
    "wandb",
    "sklearn",
    "skimage",
    "numba",
    "gradio",
}
COMPILED = {  # decorators need numba, so these files are imported late themselves
    "lightning_modules/metrics/detection_kernels.py",
    "lightning_modules/metrics/hamming_kernels.py",
    "lightning_modules/heatmap/component_kernels.py",
}
COMPILERS = {*COMPILED, "lightning_modules/metrics/compiling.py"}  # may import numba at all
LAZY_SUBMODULES = {"scipy.io", "scipy.ndimage", *(name[:-3].replace("/", ".") for name in COMPILED)}
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def imports(file: Path, top_only: bool) -> Iterator[str]:
    """Dotted names that a file imports; ``top_only`` leaves out what stands in functions and in TYPE_CHECKING."""
    queue: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if top_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        queue.extend(ast.iter_child_nodes(node))


def roots(file: Path, top_only: bool = False) -> set[str]:
    """First parts of the names that a file imports, without the standard library."""
    return {name.split(".")[0] for name in imports(file, top_only)} - set(sys.stdlib_module_names)


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def methods() -> list[Path]:
    return sorted(file.parent for file in (ROOT / "lightning_modules").glob("*/module.py"))


def maths_files() -> list[Path]:
    """The files of methods beside module.py, and the metrics."""
    beside = [file for folder in methods() for file in folder.rglob("*.py") if file.name != "module.py"]
    return [file for file in beside if file.name != "__init__.py"]


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_a_file_is_one_subject(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_slow_libraries_are_imported_inside_functions(file: Path) -> None:
    names = set(imports(file, top_only=True))
    allowed = {"numba"} if relative(file) in COMPILED else set()
    assert not {name for name in names if name.split(".")[0] in LAZY - allowed}
    assert not {name for name in names for lazy in LAZY_SUBMODULES if f"{name}.".startswith(f"{lazy}.")}


@pytest.mark.parametrize("file", maths_files(), ids=relative)
def test_maths_of_a_method_knows_no_lightning(file: Path) -> None:
    allowed = MATHS | {"lightning_modules"} | ({"numba"} if relative(file) in COMPILED else set())
    assert roots(file) <= allowed, f"only {sorted(allowed)} beside module.py"
    inside = [name for name in imports(file, top_only=False) if name.startswith("lightning_modules.")]
    assert not [name for name in inside if name.split(".")[2:3] == ["module"] or name.split(".")[1] == "base"]


METRICS = sorted((ROOT / "lightning_modules" / "metrics").rglob("*.py"))


@pytest.mark.parametrize("file", METRICS, ids=relative)
def test_metrics_know_tensors_only(file: Path) -> None:
    compilers = {"numba"} if relative(file) in COMPILERS else set()
    assert roots(file) <= MATHS | {"torchmetrics", "faiss", "lightning_modules"} | compilers
    inside = [name for name in imports(file, top_only=False) if name.startswith("lightning_modules.")]
    assert all(name.startswith("lightning_modules.metrics") for name in inside)


BACKBONES = sorted((ROOT / "lightning_modules" / "backbones").rglob("*.py"))


@pytest.mark.parametrize("file", BACKBONES, ids=relative)
def test_backbones_know_no_method_and_no_lightning(file: Path) -> None:
    assert not roots(file) & {"lightning", "datamodules", "callbacks", "cli", "wandb"}
    inside = [name for name in imports(file, top_only=False) if name.startswith("lightning_modules.")]
    assert all(name.startswith("lightning_modules.backbones") for name in inside)


@pytest.mark.parametrize("file", sorted((ROOT / "datamodules").rglob("*.py")), ids=relative)
def test_datamodules_know_no_model(file: Path) -> None:
    assert not roots(file) & {"lightning_modules", "callbacks", "cli", "open_clip", "transformers", "timm", "wandb"}


@pytest.mark.parametrize("file", sorted((ROOT / "callbacks").rglob("*.py")), ids=relative)
def test_callbacks_know_no_module(file: Path) -> None:
    names = [name for name in imports(file, top_only=False) if name.startswith("lightning_modules")]
    pure = ("lightning_modules.metrics", *(name[:-3].replace("/", ".") for name in map(relative, maths_files())))
    assert all(name.startswith(pure) for name in names), "reach modules through a protocol; metrics and maths are free"
    assert not roots(file) & {"cli", "datamodules"}


@pytest.mark.parametrize("file", sorted((ROOT / "lightning_modules").rglob("*.py")), ids=relative)
def test_modules_know_no_callback_and_no_datamodule(file: Path) -> None:
    assert not roots(file) & {"callbacks", "datamodules", "cli"}


def test_packages_are_the_ones_of_this_repository() -> None:
    import callbacks
    import cli
    import datamodules
    import lightning_modules

    for module in (callbacks, cli, datamodules, lightning_modules):
        assert Path(str(module.__file__)).resolve().is_relative_to(ROOT)


def test_no_top_level_name_of_other_people() -> None:
    assert not [name for name in ("datasets", "models", "utils", "ops") if (ROOT / name).exists()]


@pytest.mark.slow
def test_importing_the_command_line_imports_no_model_library() -> None:
    code = (
        "import sys, lightning.pytorch.cli; before = set(sys.modules); import cli; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert not LAZY & set(done.stdout.split())

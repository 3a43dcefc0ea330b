"""Where the weights of mask sources lie: published files, folders of the hub, and what to say when they are missing."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_modules.backbones.encoder import AUTOCAST
from lightning_modules.backbones.weights import is_weight_file, nearest, quick_hub

SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_FILES = {"vit_b": "sam_vit_b_01ec64.pth", "vit_l": "sam_vit_l_0b3195.pth", "vit_h": "sam_vit_h_4b8939.pth"}


def resolve_device(name: str) -> torch.device:
    """``auto`` as the GPU where there is one, else the CPU; other names as torch knows them.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def check_precision(precision: str) -> None:
    """Refuse an unknown precision.

    Raises:
        ValueError: It is not one of ``encoder.AUTOCAST``.
    """
    if precision not in AUTOCAST:
        raise ValueError(f"precision is {precision!r}; known: {', '.join(AUTOCAST)}.")


def files_hash(paths: Iterable[Path]) -> str:
    """The sha256 of the bytes of several files, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda each: each.name):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    return total.hexdigest()


def sam_file(checkpoint: str) -> Path:
    """The weight file of a SAM; a published one is downloaded once, to the folder of ``torch.hub``.

    Args:
        checkpoint: ``vit_b``, ``vit_l`` or ``vit_h``, or the path of a file.

    Raises:
        FileNotFoundError: The file is not here and cannot be downloaded.
        ValueError: Neither a known name nor a file.
    """
    if checkpoint not in SAM_FILES:
        if not is_weight_file(checkpoint):
            raise ValueError(
                f"'{checkpoint}' is neither a SAM nor a weight file. {nearest(checkpoint, SAM_FILES)} Or give the path "
                "of a .pth file."
            )
        path = Path(checkpoint).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"SAM checkpoint {path} does not exist. Check the path; the published files are {SAM_URL} + "
                f"{', '.join(SAM_FILES.values())}."
            )
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / SAM_FILES[checkpoint]
    if not path.is_file():
        url = SAM_URL + path.name
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()  # else it waits long
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:
            raise FileNotFoundError(
                f"SAM checkpoint {path.name} is not on this machine and could not be downloaded ({error}). On a "
                f"machine with network get {url}, copy it here, and either put it into {path.parent} or set "
                f"checkpoint: /path/to/{path.name}"
            ) from error
    return path


def hub_folder(path: str, files: tuple[str, ...], note: str = "") -> Path:
    """The folder of a checkpoint of transformers: a local one, or one of the hub, downloaded once.

    Args:
        path: Local folder, or hub id.
        files: What it must hold beside ``*.safetensors``.
        note: A sentence on the licence, for the message.

    Raises:
        FileNotFoundError: It is not here and cannot be downloaded, or lacks files.
    """
    needed = ", ".join((*files, "model.safetensors"))
    folder = Path(path).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            with quick_hub():
                folder = Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise FileNotFoundError(
                f"The checkpoint '{path}' is no folder here and could not be downloaded ({reason}). On a machine with "
                f"network get {needed} from https://huggingface.co/{path}, copy them into one folder, and set "
                f"path: /path/to/{Path(path).name}{' ' + note if note else ''}"
            ) from error
    lost = [name for name in files if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        lost.append("model.safetensors")
    if lost:
        raise FileNotFoundError(f"The folder {folder} is incomplete: {', '.join(lost)} missing. It needs {needed}.")
    return folder


def folder_hash(folder: Path) -> str:
    """The sha256 of the configuration, the pixel rule and the weights in a folder of transformers."""
    return files_hash([*folder.glob("*config.json"), *folder.glob("*.safetensors")])


def from_folder(kind: Any, folder: Path) -> nn.Module:
    """A model of transformers with all its weights.

    Args:
        kind: Its class.
        folder: Of ``hub_folder``.

    Raises:
        ValueError: Damaged weights, or some that are missing or do not fit config.json.
    """
    from safetensors import SafetensorError

    try:
        model, info = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    except (SafetensorError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:300]
        raise ValueError(f"The weights in {folder} are damaged or do not fit ({detail}). Get them again.") from error
    # transformers gives missing weights random values and only warns.
    misshapen = [key if isinstance(key, str) else key[0] for key in info.get("mismatched_keys", ())]
    if lost := sorted({*info["missing_keys"], *misshapen}):
        raise ValueError(f"The weights in {folder} do not fit their config.json: missing or misshapen {lost[:3]}.")
    return model


def transformers_class(name: str, since: str) -> Any:
    """A class of transformers by name.

    Args:
        name: Of the class.
        since: The first version that has it, for the message.

    Raises:
        ImportError: The installed version is older.
    """
    import transformers

    if not hasattr(transformers, name):
        raise ImportError(
            f"transformers {transformers.__version__} has no {name}; it came with {since}. Run: "
            f"pip install 'transformers>={since}'"
        )
    return getattr(transformers, name)

"""Search over the codes of a database for a text or an image.

``python -m lightning_modules.hashing.search --codes runs/quickstart/codes --text "two red cars on grass"`` finds
images, ``--image FILE`` finds captions. The codes are those that ``predict`` wrote with the callback CodeWriter.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lightning_modules.backbones as backbones
from lightning_modules.backbones.encoder import FrozenEncoder, open_image
from lightning_modules.hashing.networks import HashHead, binary_codes
from lightning_modules.metrics.hamming import unpack_bits
from lightning_modules.metrics.hamming_index import HammingIndex


def load_head(state: dict[str, Tensor], modality: str) -> HashHead:
    """The hash head of a modality out of a state dict, in evaluation mode.

    Args:
        state: The state dict of a hashing module, with the weights of ``image_head`` and ``text_head``.
        modality: ``image`` or ``text``.

    Example:
        >>> head = HashHead(in_dim=6, bits=16, hidden=8)
        >>> state = {f"text_head.{name}": value for name, value in head.state_dict().items()}
        >>> load_head(state, "text").output.out_features
        16
    """
    prefix = f"{modality}_head."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if "hidden.weight" not in own or "output.weight" not in own:
        raise ValueError(f"The checkpoint holds no {modality} hash head. Give one of a hashing module.")
    hidden, in_dim = own["hidden.weight"].shape
    head = HashHead(in_dim, len(own["output.weight"]), hidden)
    head.load_state_dict(own)
    return head.eval()


def load_codes(path: Path, modality: str) -> tuple[HammingIndex, str]:
    """An index over the codes of one modality, and the checkpoint that they were made with (empty: not known).

    Args:
        path: A file that CodeWriter wrote.
        modality: ``image`` or ``text``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no codes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Codes {path} do not exist. Write them: python cli.py predict with CodeWriter.")
    try:
        with np.load(path, allow_pickle=False) as file:
            packed, ids, bits = file[f"{modality}_codes"], file["ids"], int(file["bits"])
            checkpoint = str(file["checkpoint"])
        codes = unpack_bits(torch.from_numpy(packed), bits)
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no codes, or is damaged ({error}). Write it again with predict.") from error
    index = HammingIndex(bits)
    index.add(codes, ids.tolist())
    return index, checkpoint


class CodeSearch:
    """Finds the database items whose codes are nearest to the code of a text or of an image.

    Only unimodal codes are compared: an image is found by its own code, not by that of its caption.

    Args:
        codes: Folder with ``database.npz``, or such a file.
        encoder: The frozen towers that made the features of the training.
        checkpoint: Weights that the codes were made with; None = those that the file of codes names.

    Raises:
        FileNotFoundError: No codes or no checkpoint.
        ValueError: Codes, checkpoint and encoder do not belong together.
    """

    def __init__(self, codes: str | Path, encoder: FrozenEncoder, checkpoint: str | Path | None = None) -> None:
        file = Path(codes) if Path(codes).is_file() else Path(codes) / "database.npz"
        loaded = {modality: load_codes(file, modality) for modality in ("image", "text")}
        self.indices = {modality: index for modality, (index, _) in loaded.items()}
        self.encoder = encoder
        path = checkpoint or loaded["image"][1]
        if not path or not Path(path).is_file():
            raise FileNotFoundError(
                f"Checkpoint {path or '(none is named in the codes)'} does not exist. Give the checkpoint that the "
                f"codes in {file} were made with."
            )
        try:
            self.state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        except (pickle.UnpicklingError, RuntimeError, KeyError, EOFError) as error:
            raise ValueError(f"{path} is no checkpoint of a training run ({error}).") from error

    def images(self, text: str, k: int = 10) -> list[tuple[str, int]]:
        """Ids and Hamming distances of the k nearest images, nearest first."""
        if not text.strip():
            raise ValueError("The text to search for is empty; say what to look for.")
        return self._nearest(self.encoder.encode_text([text]), "text", "image", k)

    def texts(self, image: Any, k: int = 10) -> list[tuple[str, int]]:
        """Ids and Hamming distances of the items with the k nearest texts, nearest first.

        Args:
            image: RGB PIL image.
            k: Items to find; no more than there are.
        """
        return self._nearest(self.encoder.encode_image(self.encoder.preprocess(image)[None]), "image", "text", k)

    def _nearest(self, features: Tensor, source: str, target: str, k: int) -> list[tuple[str, int]]:
        head, index = load_head(self.state, source), self.indices[target]
        if head.hidden.in_features != features.shape[1]:
            raise ValueError(
                f"The {source} head takes features of width {head.hidden.in_features}, but {self.encoder.name} gives "
                f"{features.shape[1]}. Use the encoder that the features of the training came from."
            )
        with torch.no_grad():
            codes = binary_codes(head(features.cpu().float()))
        ids, distances = index.search(codes, min(k, len(index)))
        return [(name, int(distance)) for name, distance in zip(ids[0], distances[0], strict=True)]


def main(args: Sequence[str] | None = None) -> None:
    """Print the nearest items for a text or an image."""
    parser = argparse.ArgumentParser(prog="python -m lightning_modules.hashing.search", description="Search by code.")
    parser.add_argument("--codes", required=True, help="folder that predict wrote with CodeWriter")
    parser.add_argument("--checkpoint", help="weights that the codes were made with (default: as the codes say)")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", help="find images for this text")
    query.add_argument("--image", help="find the items whose captions fit this image file")
    parser.add_argument("-k", type=int, default=10, help="items to find (default: 10)")
    parser.add_argument("--encoder", choices=backbones.__all__, default="TinyClip", help="default: TinyClip")
    parser.add_argument("--encoder_args", type=json.loads, default={}, help='as JSON: {"model": "ViT-B-32", ...}')
    given = parser.parse_args(args)
    try:
        encoder = getattr(backbones, given.encoder)(**given.encoder_args)
        search = CodeSearch(given.codes, encoder, given.checkpoint)
        if given.image is None:
            found = search.images(given.text, given.k)
        else:
            found = search.texts(open_image(given.image), given.k)
    except (ValueError, FileNotFoundError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print("rank  distance  id")
    for rank, (name, distance) in enumerate(found, start=1):
        print(f"{rank:4d}  {distance:8d}  {name}")


if __name__ == "__main__":
    main()

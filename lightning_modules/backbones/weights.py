"""Reading weight files without trusting them: what is inside, and messages that name the cure."""

from __future__ import annotations

import contextlib
import difflib
import pickle
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def nearest(name: str, known: Iterable[str], count: int = 4) -> str:
    """The known names most like ``name``, as a clause for an error message.

    Args:
        name: What was asked for.
        known: What there is.
        count: How many to name at most.

    Returns:
        ``Nearest: a, b.``, or, where nothing is alike, ``Known: ...``.

    Example:
        >>> nearest("ViT-B32", ["ViT-B-32", "ViT-L-14", "RN50"])
        'Nearest: ViT-B-32, ViT-L-14.'
    """
    known = list(known)
    lower = {k.lower(): k for k in known}
    close = [lower[k] for k in difflib.get_close_matches(name.lower(), lower, n=count, cutoff=0.5)]
    if close:
        return f"Nearest: {', '.join(close)}."
    return f"Known: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}." if known else "None is known."


def is_weight_file(name: str) -> bool:
    """Whether ``name`` means a file rather than a tag.

    Example:
        >>> is_weight_file("openai"), is_weight_file("model.safetensors"), is_weight_file("weights/openai")
        (False, True, True)
    """
    return name.endswith(SUFFIXES) or "/" in name or "\\" in name or Path(name).is_file()


@contextlib.contextmanager
def quick_hub(timeout: float = 5.0) -> Iterator[None]:
    """Within this context the hub client answers from its local cache at once when the hub cannot be reached.

    Left alone it retries each file for half a minute, with a line on the screen for each attempt.

    Args:
        timeout: Seconds to wait for the hub.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout).close()
        except urllib.error.HTTPError:
            pass  # it answered
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a weight file; nothing in the file is executed.

    Args:
        path: A ``.safetensors`` file, or a state dict saved by ``torch.save`` (``.pt``, ``.pth``, ``.bin``).

    Returns:
        Shape by tensor name; a ``state_dict`` inside a training checkpoint is unwrapped.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Weight file {path} does not exist. Check the path.")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"Weight file {path} has the ending {path.suffix!r}; known: {', '.join(SUFFIXES)}.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"Weight file {path} is damaged ({error}). Download it again.") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"Weight file {path} is damaged or holds Python objects beside tensors, which could run code; it was not "
            "loaded. Download it again, or save the bare state dict as .safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"Weight file {path} is a TorchScript archive, which holds code. Use the same weights as .safetensors."
            ) from error
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"Weight file {path} is damaged ({first}). Download it again.") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not any(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"Weight file {path} holds no state dict. Save model.state_dict().")
    tensors = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return {key: tuple(value.shape) for key, value in tensors.items()}

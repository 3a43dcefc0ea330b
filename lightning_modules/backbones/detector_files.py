"""The files of a transformers detector: its configuration, its pixels and its weights, complete or refused."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

log = logging.getLogger(__name__)

KINDS = (
    "yolos",
    "lw_detr",
    "rt_detr_v2",
    "d_fine",
    "rt_detr",
    "rf_detr",
    "deimv2",
    "detr",
    "conditional_detr",
    "dab-detr",
    "deformable_detr",
    "table-transformer",
)
FILES = "config.json, model.safetensors and preprocessor_config.json"
RESCALED = ("rt_detr", "rt_detr_v2", "d_fine")  # trained on pixels in 0..1; the others with these of ImageNet
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _missing(name: str, error: object) -> FileNotFoundError:
    """The error for a checkpoint that is not at hand: which files to put where."""
    reason = str(error).strip().splitlines()[0]
    if Path(name).is_dir():
        return FileNotFoundError(
            f"The folder {name} cannot be read ({reason}). It needs {FILES}; without the weights set pretrained: false."
        )
    return FileNotFoundError(
        f"The detector '{name}' is no folder here and could not be downloaded ({reason}). On a machine with network "
        f"get {FILES} from https://huggingface.co/{name}, copy them into one folder, and set "
        f"name: /path/to/{Path(name).name}"
    )


def read_config(name: str, replace: dict[str, Any]) -> Any:
    """The configuration of a detector.

    Args:
        name: Hub id, or a local folder.
        replace: Values that take the place of those in config.json.

    Returns:
        The configuration of transformers, with the checkpoint's number of classes.

    Raises:
        FileNotFoundError: It is not here and cannot be downloaded.
        ValueError: The configuration of no detector, or a value in ``replace`` that it does not know or allow.
    """
    from transformers import AutoConfig

    cure = f"Give a detector of one of the kinds {', '.join(KINDS)}."
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise _missing(name, "it has no config.json")
    try:
        config, unknown = AutoConfig.from_pretrained(name, return_unused_kwargs=True, **replace)
    except OSError as error:
        raise _missing(name, error) from error
    except ValueError as error:  # a kind that transformers does not know
        raise ValueError(f"{name} cannot be taken for a detector ({str(error).splitlines()[0]}). {cure}") from error
    except Exception as error:  # the checks of single values have a class of their own, of huggingface_hub
        detail = " ".join(str(error).split())
        raise ValueError(f"config.json of {name} with {replace} is not valid: {detail}") from error
    if config.model_type not in KINDS:
        raise ValueError(f"{name} holds a model of the kind '{config.model_type}', which is no detector. {cure}")
    if unknown:
        raise ValueError(
            f"config sets {', '.join(sorted(unknown))}, which a {config.model_type} does not have. Take the names in "
            "its config.json."
        )
    config.use_pretrained_backbone = False  # those weights would be fetched from the hub, only to be replaced
    return config


def pixel_rule(name: str, kind: str) -> tuple[list[float], list[float]]:
    """What a detector subtracts from pixels and divides them by.

    Args:
        name: Hub id, or a local folder; where it has no preprocessor_config.json the usual rule of the kind holds.
        kind: One of ``KINDS``.

    Returns:
        Mean and deviation of the three channels, in units of pixels of 0..255.

    Raises:
        ValueError: The file is damaged.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    said: dict[str, Any] = {}
    local = Path(name).is_dir()
    if not local or (Path(name) / "preprocessor_config.json").is_file():
        try:
            said = ImageProcessingMixin.get_image_processor_dict(name)[0]
        except OSError as error:
            if local:
                raise ValueError(f"preprocessor_config.json in {name} is damaged: {error}") from error
    unit = 1 / said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    if not said.get("do_normalize", kind not in RESCALED):
        return [0.0] * 3, [unit] * 3
    mean, std = said.get("image_mean", MEAN), said.get("image_std", STD)
    return [unit * value for value in mean], [unit * value for value in std]


def random_detector(config: Any, num_classes: int) -> nn.Module:
    """A detector with random weights.

    Args:
        config: Of ``read_config``; its number of classes is set.
        num_classes: Number of classes.

    Returns:
        The network.
    """
    from transformers import AutoModelForObjectDetection

    config.num_labels = num_classes
    return AutoModelForObjectDetection.from_config(config)


def load_detector(name: str, config: Any, num_classes: int) -> nn.Module:
    """A detector with its weights; for another number of classes than the checkpoint's, its heads start anew.

    Args:
        name: Hub id, or a local folder.
        config: Of ``read_config``; its number of classes is set.
        num_classes: Number of classes.

    Returns:
        The network.

    Raises:
        FileNotFoundError: The weights are not here and cannot be downloaded.
        ValueError: They are damaged, or do not fit the configuration beyond the heads.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForObjectDetection

    trained = config.num_labels
    if num_classes != trained:
        config.num_labels = num_classes
    try:
        with _quiet():
            model, info = AutoModelForObjectDetection.from_pretrained(
                name, config=config, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except SafetensorError as error:
        raise ValueError(f"The weights in {name} are damaged ({error}). Download them again.") from error
    except OSError as error:
        raise _missing(name, error) from error
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    # Names, or names with both shapes, by the version of transformers.
    misshapen = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    # The heads end in one row a class, and maybe one for "no object"; nothing else may differ.
    heads = [key for key in misshapen if num_classes != trained and shapes[key][0] in (num_classes, num_classes + 1)]
    if lost := sorted({*info["missing_keys"], *misshapen} - {*heads}):
        raise ValueError(
            f"The weights in {name} do not fit their config.json: {len(lost)} are missing or misshapen, such as "
            f"{', '.join(lost[:3])}. Download both files again, or set pretrained: false for random weights."
        )
    if heads:
        log.warning(
            "%s was trained on %d classes, not %d: %d of its %d weight arrays start anew (%s, ...).",
            *(name, trained, num_classes, len(heads), len(list(model.parameters())), min(heads)),
        )
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within this context transformers does not print its own table of weights, which ``load_detector`` judges."""
    from transformers.utils import logging as library

    before = library.get_verbosity()
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(before)

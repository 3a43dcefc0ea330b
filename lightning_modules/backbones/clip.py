"""CLIP models of open_clip: any architecture by name, weights by tag or from a local file."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from torch import nn

from lightning_modules.backbones.blocks import open_clip_image_parts, open_clip_text_parts
from lightning_modules.backbones.encoder import FrozenEncoder, Precision, Towers
from lightning_modules.backbones.weights import is_weight_file, nearest, quick_hub, tensor_shapes

PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
log = logging.getLogger(__name__)


def open_clip_towers(model: nn.Module, tokenizer: Any) -> Towers:
    """The towers of an open_clip model.

    Args:
        model: A model of open_clip, its ``visual.preprocess_cfg`` set (``open_clip.set_model_preprocess_cfg``).
        tokenizer: Its tokenizer: B strings to token ids ``(B, L)``.

    Returns:
        The model as functions; evaluation transform from the model's own mean, standard deviation and size.
    """
    from open_clip import get_model_preprocess_cfg
    from open_clip.transform import PreprocessCfg, image_transform_v2

    cfg = get_model_preprocess_cfg(model)
    image_blocks, image_head = open_clip_image_parts(model.visual)
    text_blocks, text_head = open_clip_text_parts(model)
    text = {"tokenizer": type(tokenizer).__name__, "context": getattr(tokenizer, "context_length", None)}
    return Towers(
        model=model,
        image=model.encode_image,
        text=model.encode_text,
        tokenize=tokenizer,
        transform=image_transform_v2(PreprocessCfg(**cfg), is_train=False),
        preprocessing=json.dumps({**cfg, **text}, sort_keys=True),
        image_blocks=image_blocks,
        text_blocks=text_blocks,
        image_head=image_head,
        text_head=text_head,
        visual=model.visual,
        mean=cfg["mean"],
        std=cfg["std"],
    )


def activation_twin(model: str) -> str | None:
    """The name of the same architecture with the other activation (QuickGELU or GELU), if open_clip has one.

    Example:
        >>> activation_twin("ViT-B-32"), activation_twin("ViT-B-32-quickgelu"), activation_twin("ViT-B-16-SigLIP")
        ('ViT-B-32-quickgelu', 'ViT-B-32', None)
    """
    import open_clip

    twin = model.removesuffix("-quickgelu") if model.endswith("-quickgelu") else f"{model}-quickgelu"
    return twin if twin in open_clip.list_models() else None


def tags_of(model: str) -> dict[str, dict[str, Any]]:
    """open_clip's entry of each tag that fits ``model`` or its activation twin."""
    import open_clip

    names = [n for n in (model, activation_twin(model)) if n is not None]
    return {
        tag: open_clip.get_pretrained_cfg(n, tag) for n in names for tag in open_clip.list_pretrained_tags_by_model(n)
    }


def tag_of_file(model: str, path: Path) -> str | None:
    """The tag whose weights a local file holds, told by the names of the file and of its folders.

    Args:
        model: Name of the architecture.
        path: The file, e.g. ``.../vit_base_patch32_clip_224.openai/open_clip_model.safetensors``.

    Returns:
        The tag whose hub repository or download name stands in the path (the longest one), or None.

    Example:
        >>> tag_of_file("ViT-B-32", Path("w/vit_base_patch32_clip_224.openai/open_clip_model.safetensors"))
        'openai'
        >>> tag_of_file("ViT-B-32", Path("w/mine.safetensors"))
    """
    parts = path.absolute().parts
    found: list[tuple[int, str]] = []
    for tag, cfg in tags_of(model).items():
        repository = cfg.get("hf_hub", "").rpartition("/")[0].rpartition("/")[2]
        download = Path(cfg.get("url", "")).name
        if repository and any(part == repository or part.endswith(f"--{repository}") for part in parts):
            found.append((len(repository), tag))
        elif download and path.name == download:
            found.append((len(download), tag))
    return max(found)[1] if found else None


def check_activation(model: str, tag: str) -> None:
    """Refuse weights trained with the other activation than the architecture has.

    Args:
        model: Name of the architecture.
        tag: A tag of it or of its twin.

    Raises:
        ValueError: QuickGELU weights with a GELU model, or the reverse; names the right model.
    """
    import open_clip

    wanted = bool(tags_of(model)[tag].get("quick_gelu", False))
    has = bool(open_clip.get_model_config(model).get("quick_gelu", False))
    twin = activation_twin(model)
    # Without a twin (roberta-ViT-B-32) the architecture is the only one there is, and the entry of the tag is wrong.
    if wanted != has and twin is not None:
        names = {True: "QuickGELU", False: "GELU"}
        raise ValueError(
            f"The weights '{tag}' were trained with {names[wanted]}, but the model {model} computes {names[has]}: "
            f"the embeddings would be wrong. Use model: {twin}"
        )


def missing_weights(model: str, tag: str, cause: object) -> FileNotFoundError:
    """The error for weights that could not be downloaded: which file to put where."""
    cfg = tags_of(model)[tag]
    repository, _, file = cfg.get("hf_hub", "").rpartition("/")
    if repository:
        file = re.sub(r"\.(bin|pth)$", ".safetensors", file) or "open_clip_model.safetensors"
        source, target = f"{file} from https://huggingface.co/{repository}", f"{repository.rpartition('/')[2]}/{file}"
    else:
        source, target = cfg.get("url", ""), Path(cfg.get("url", "")).name
    reason = str(cause).splitlines()[0][:200] if str(cause) else type(cause).__name__
    return FileNotFoundError(
        f"The weights '{tag}' of {model} are not on this machine and could not be downloaded ({reason}). On a machine "
        f"with network get {source}, copy it here, and set pretrained: /path/to/{target} (keep these names: they tell "
        "the activation and the pixel normalisation)."
    )


def resolve_weights(model: str, pretrained: str | None) -> tuple[Path | None, dict[str, Any]]:
    """Find the weight file and the preprocessing of a model.

    Args:
        model: Name of the architecture.
        pretrained: Tag, path of a file, or None for random weights.

    Returns:
        The file (None: random weights) and the preprocessing that its training used (mean, std, ...).

    Raises:
        ValueError: Unknown model or tag, or an activation mismatch.
        FileNotFoundError: The file does not exist, or the tag's file is not here and cannot be downloaded.
    """
    import open_clip

    if model not in open_clip.list_models():
        raise ValueError(f"open_clip has no model '{model}'. {nearest(model, open_clip.list_models())}")
    tags = tags_of(model)
    choices = {json.dumps({k: cfg.get(k) for k in PREPROCESS_KEYS}) for cfg in tags.values()}
    agreed = json.loads(choices.pop()) if len(choices) == 1 else {}
    if pretrained is None:
        return None, agreed
    tag = pretrained.lower().replace("-", "_")
    if tag in tags and not Path(pretrained).is_file():
        check_activation(model, tag)
        try:
            with quick_hub():
                path = Path(open_clip.download_pretrained(tags[tag]))
        except Exception as error:
            raise missing_weights(model, tag, error) from error
        return path, {k: tags[tag].get(k) for k in PREPROCESS_KEYS}
    if not is_weight_file(pretrained):
        others = open_clip.list_pretrained_models_by_tag(pretrained)
        belongs = f"That tag belongs to {', '.join(others[:6])}." if others else nearest(pretrained, tags)
        raise ValueError(f"'{pretrained}' is neither a tag of {model} nor a weight file. {belongs}")
    path = Path(pretrained).expanduser()
    known = tag_of_file(model, path)
    if known is not None:
        check_activation(model, known)
        return path, {k: tags[known].get(k) for k in PREPROCESS_KEYS}
    if not agreed and tags:
        log.warning("%s: the tags of %s differ in pixel normalisation; CLIP's own is taken.", path, model)
    return path, agreed


class OpenClip(FrozenEncoder):
    """A CLIP model of open_clip, frozen.

    Weights trained with QuickGELU (OpenAI's, MetaCLIP's, DFN's) need the model name that ends in ``-quickgelu``; a
    mismatch is an error. A local file tells its training by its name or its folder's (see ``tag_of_file``); any other
    file is taken to fit the named model.

    Args:
        model: Name of the architecture, one of ``open_clip.list_models()``.
        pretrained: Tag (one of ``open_clip.list_pretrained()``), or a local ``.safetensors``, ``.pt``, ``.pth`` or
            ``.bin`` file; None gives random weights.
        precision: ``32-true``, ``16-mixed`` or ``bf16-mixed``.
        compile: Run both towers through ``torch.compile``.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021;
        Cherti et al., Reproducible Scaling Laws for Contrastive Language-Image Learning, CVPR 2023.
    """

    def __init__(
        self,
        model: str = "ViT-B-32-quickgelu",
        pretrained: str | None = "openai",
        precision: Precision = "32-true",
        compile: bool = False,
        device: str = "auto",
    ) -> None:
        super().__init__(precision, compile, device)
        self.model = model
        self.pretrained = pretrained

    @property
    def label(self) -> str:
        """Architecture and weights."""
        weights = self.pretrained or "random"
        return f"{self.model} {Path(weights).name if is_weight_file(weights) else weights}"

    @property
    def embed_dim(self) -> int:
        """Length of the embeddings."""
        import open_clip

        config = open_clip.get_model_config(self.model)
        if config is None:
            raise ValueError(f"open_clip has no model '{self.model}'. {nearest(self.model, open_clip.list_models())}")
        return int(config["embed_dim"])

    def load(self) -> Towers:
        """Build the model, load its weights strictly."""
        import open_clip

        path, preprocess = resolve_weights(self.model, self.pretrained)
        if path is not None:
            self._check_grid(tensor_shapes(path), path)
        try:
            with quick_hub():
                model = open_clip.create_model(
                    self.model,
                    pretrained=None if path is None else str(path),
                    force_preprocess_cfg=preprocess,
                    pretrained_text=False,
                    weights_only=True,
                )
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:300]
            raise ValueError(f"Weight file {path} does not fit the model {self.model}: {detail}") from error
        except OSError as error:
            raise FileNotFoundError(f"{self.model} needs files of a text tower that are not here: {error}") from error
        try:
            with quick_hub():
                tokenizer = open_clip.get_tokenizer(self.model)
        except Exception as error:
            hub = open_clip.get_model_config(self.model)["text_cfg"].get("hf_tokenizer_name", self.model)
            raise FileNotFoundError(
                f"The tokenizer of {self.model} is not on this machine and could not be downloaded. On a machine with "
                f"network run `hf download {hub} --include '*token*' 'config.json'` and copy that machine's "
                "~/.cache/huggingface/hub here."
            ) from error
        return open_clip_towers(model, tokenizer)

    def _check_grid(self, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
        """Refuse weights of another resolution, which open_clip would interpolate without a word."""
        import open_clip

        vision = open_clip.get_model_config(self.model)["vision_cfg"]
        have = shapes.get("visual.positional_embedding")
        size, patch = vision.get("image_size"), vision.get("patch_size")
        if have is None or not isinstance(size, int) or not isinstance(patch, int):
            return
        if have[0] not in ((size // patch) ** 2, (size // patch) ** 2 + 1):
            raise ValueError(
                f"Weight file {path} does not fit the model {self.model}: it has {have[0]} image positions, the model "
                f"{(size // patch) ** 2 + 1} ({size} px in patches of {patch}). Name the model that it was trained as."
            )

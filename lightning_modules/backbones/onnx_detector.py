"""Detectors in ONNX files, run by onnxruntime: they predict, and are not trained."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from lightning_modules.backbones.detectors import Detections
from lightning_modules.backbones.yolo_layouts import LAYOUTS, Decoded, Size, letterbox

FLOATS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


def select(decoded: Decoded, score_threshold: float, nms_iou: float, max_detections: int) -> tuple[Tensor, ...]:
    """The best boxes that do not double each other; each place gives its best class.

    Args:
        decoded: Boxes (N, 4) xyxy and scores (N, C).
        score_threshold: Lowest score.
        nms_iou: Of two boxes of a class whose IoU is above this, the weaker goes.
        max_detections: Most boxes.

    Returns:
        Boxes (n, 4), scores (n,) and labels (n,), best first.

    >>> boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [0, 0, 4, 4]])
    >>> scores = torch.tensor([[0.5, 0.1], [0.6, 0.0], [0.1, 0.4]])
    >>> [part.tolist() for part in select((boxes, scores), 0.2, 0.7, 9)[1:]]
    [[0.6000000238418579, 0.4000000059604645], [0, 1]]
    """
    boxes, (scores, labels) = decoded[0], decoded[1].max(dim=1)
    likely = scores >= score_threshold
    boxes, scores, labels = boxes[likely], scores[likely], labels[likely]
    kept = batched_nms(boxes, scores, labels, nms_iou)[:max_detections]
    return boxes[kept], scores[kept], labels[kept]


class OnnxDetector(nn.Module):
    """A detector in an ONNX file as a predictor of the suite; it has no loss and no gradient.

    The file takes one picture of a fixed size. onnxruntime runs on as many threads as torch does; where the pictures
    are on a GPU and onnxruntime is the build for it (onnxruntime-gpu), it runs there. The file is opened at the first
    picture, so that the object can be copied to other processes.

    Args:
        file: The ONNX file.
        layout: ``yolox``: an export of YOLOX that is still to be decoded. ``yolov8``: one of Ultralytics' YOLOv8 or
            YOLO11, without its own NMS.
        num_classes: Number of classes that the file knows.
        score_threshold: Lowest score of a detection.
        nms_iou: Of two boxes of a class whose IoU is above this, the weaker goes.
        max_detections: Most detections an image.

    Raises:
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: onnxruntime is not installed.
        ValueError: An unknown layout, or a number out of range.
    """

    def __init__(
        self,
        file: str,
        layout: Literal["yolox", "yolov8"],
        num_classes: int,
        score_threshold: float = 0.01,
        nms_iou: float = 0.65,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}; known: {', '.join(LAYOUTS)}.")
        if num_classes < 1 or max_detections < 1:
            raise ValueError(f"num_classes is {num_classes} and max_detections {max_detections}; both must be above 0.")
        if not 0 <= score_threshold <= 1 or not 0 <= nms_iou <= 1:
            raise ValueError(f"score_threshold is {score_threshold} and nms_iou {nms_iou}; both must be in 0..1.")
        if not Path(file).is_file():
            raise FileNotFoundError(f"There is no ONNX file {file}. Check the path.")
        if importlib.util.find_spec("onnxruntime") is None:
            raise ModuleNotFoundError(
                f"The detector {file} needs onnxruntime, which is not installed: pip install clip-suite[onnx]"
            )
        self.file, self.layout, self.num_classes = file, layout, num_classes
        self.score_threshold, self.nms_iou, self.max_detections = score_threshold, nms_iou, max_detections
        self._session: Any = None
        self._provider = ""

    def __getstate__(self) -> dict[str, Any]:
        """All but the open file, which cannot be copied."""
        return {**self.__dict__, "_session": None, "_provider": ""}

    @torch.no_grad()
    def detect(self, images: Tensor | Sequence[Tensor], sizes: Tensor) -> list[Detections]:
        """What is found in pictures.

        Args:
            images: B pictures (3, H, W) uint8 RGB, each of its own size, or (B, 3, H, W).
            sizes: (B, 2) int64, height and width of the original pictures, which may have been resized.

        Returns:
            One mapping a picture: ``boxes`` (n, 4) xyxy in pixels of the original, inside it, ``scores`` and
            ``labels`` (n,), best first.

        Raises:
            ValueError: A file that cannot be read, or that takes or gives something else than the layout says.
        """
        return [self._detect_one(image, size) for image, size in zip(images, sizes.tolist(), strict=True)]

    def _detect_one(self, image: Tensor, size: Sequence[int]) -> Detections:
        session, frame, kind = self._opened(image.device)
        layout = LAYOUTS[self.layout]
        fitted = letterbox(image.cpu(), frame, layout.centred)
        pixels = layout.prepare(fitted.pixels)[None].to(kind).contiguous()
        output = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0]
        self._check_output(list(output.shape), frame)
        decoded = layout.decode(torch.from_numpy(output)[0].float(), frame)
        boxes, scores, labels = select(decoded, self.score_threshold, self.nms_iou, self.max_detections)
        height, width = image.shape[1:]
        stretch = boxes.new_tensor([size[1] / width, size[0] / height] * 2)
        limits = boxes.new_tensor([size[1], size[0]] * 2)
        boxes = torch.minimum((fitted.to_picture(boxes) * stretch).clamp(min=0), limits)
        return {
            key: value.to(image.device)
            for key, value in zip(("boxes", "scores", "labels"), (boxes, scores, labels), strict=True)
        }

    def _opened(self, device: torch.device) -> tuple[Any, Size, torch.dtype]:
        """The session on this device, opened if it is not, the frame and the type of its input."""
        import onnxruntime

        known = onnxruntime.get_available_providers()
        provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        provider = provider if provider in known else "CPUExecutionProvider"
        if self._session is None or provider != self._provider:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
            where = [(provider, {"device_id": device.index or 0})] if provider.startswith("CUDA") else [provider]
            try:
                session = onnxruntime.InferenceSession(self.file, options, providers=where)
            except Exception as error:  # onnxruntime's errors share no class of their own
                raise ValueError(
                    f"{self.file} cannot be read as an ONNX network ({' '.join(str(error).split())[:200]}). Export it "
                    "again."
                ) from error
            self._check_ends(session.get_inputs(), session.get_outputs())
            self._session, self._provider = session, provider
        taken = self._session.get_inputs()[0]
        return self._session, (taken.shape[2], taken.shape[3]), FLOATS[taken.type]

    def _check_ends(self, taken: Sequence[Any], given: Sequence[Any]) -> None:
        """Refuse a network whose inputs and outputs are not those of a detector of the layout."""
        shape = [side if isinstance(side, int) else None for side in taken[0].shape]  # names stand for any size
        single = len(shape) == 4 and shape[0] in (1, None) and shape[1] == 3
        if len(taken) != 1 or not single or None in shape[2:]:
            raise ValueError(
                f"{self.file} takes {', '.join(f'{end.name} {end.shape}' for end in taken)}; one picture (1, 3, "
                "height, width) of a fixed size is needed. Export it so."
            )
        if taken[0].type not in FLOATS:
            raise ValueError(f"{self.file} takes {taken[0].type}; {' or '.join(FLOATS)} is needed. Export it so.")
        if len(given) != 1:
            raise ValueError(
                f"{self.file} gives {', '.join(f'{end.name} {end.shape}' for end in given)}; a file of layout "
                f"{self.layout} gives one array. Export it without NMS, masks or separate heads."
            )
        if all(isinstance(side, int) for side in given[0].shape):
            self._check_output(list(given[0].shape), tuple(taken[0].shape[2:]))

    def _check_output(self, shape: list[int], frame: Size) -> None:
        """Refuse an output of another shape than layout, frame and number of classes make."""
        expected = [1, *LAYOUTS[self.layout].rows(frame, self.num_classes)]
        if shape != expected:
            raise ValueError(
                f"{self.file} gives an array {shape}; layout {self.layout} with {self.num_classes} classes on "
                f"{frame[0]} x {frame[1]} pixels makes {expected}. Set the layout and num_classes of the file."
            )

"""Tells what stopped a run in one readable message, and whether the user or the program has to be mended."""

from __future__ import annotations

import errno
import pickle
import re
import traceback
from pathlib import Path

USER = 2  # exit code: something that the user gave has to be changed
BUG = 1  # exit code: the program failed
OWN = ("lightning_modules", "datamodules", "callbacks")
HINT = "Set CLIP_SUITE_DEBUG=1 to see where."


def explain_run_failure(error: BaseException) -> tuple[str, int]:
    """The message and the exit code for an exception that ended a run.

    Args:
        error: The exception.

    Returns:
        Message and exit code: 2 when the settings or the data of the user are wrong, 1 when the program failed.

    Example:
        >>> explain_run_failure(FileNotFoundError(2, "No such file or directory", "features.mat"))
        ('features.mat: No such file or directory.', 2)
        >>> explain_run_failure(RuntimeError("shapes differ"))
        ('RuntimeError: shapes differ. Set CLIP_SUITE_DEBUG=1 to see where.', 1)
    """
    text = str(error).strip() or type(error).__name__
    if (met := met_by_worker(text)) is not None and isinstance(error, ValueError | OSError):
        said, file = met
        return (said, USER) if _is_own(file) else (f"{type(error).__name__}: {said} {HINT}", BUG)
    if isinstance(error, RuntimeError) and "loading state_dict" in text:
        return explain_state_mismatch(text), USER
    if isinstance(error, pickle.UnpicklingError) or "PytorchStreamReader" in text or _from_torch_load(error):
        return f"the checkpoint or weights file cannot be read; it is damaged or no such file: {text[:200]}", USER
    if "Does not validate against any of the Union" in text:
        said = constructor_text(text)
        return said if said.endswith(".") else f"{said} {HINT}", USER  # the suite's own messages end with a full stop
    if isinstance(error, OSError):
        return explain_os_error(error), USER
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device ran out of memory: {first_sentence(text)} Lower data.init_args.batch_size.", BUG
    if "No supported gpu backend found" in text:
        return "no GPU that torch can use was found. Take -c configs/trainer/cpu.yaml, last on the command line.", USER
    if type(error).__name__ == "MisconfigurationException" or (
        isinstance(error, ValueError) and _raised_for_user(error)
    ):
        return text, USER
    end = "" if text.endswith((".", "!", "?")) else "."
    return f"{type(error).__name__}: {text}{end} {HINT}", BUG


def met_by_worker(text: str) -> tuple[str, str] | None:
    r"""What a loader process met, out of the traceback that torch makes its message.

    Args:
        text: Message of an exception.

    Returns:
        The message of the exception itself, and the file that raised it; None for an exception of this process.

    Example:
        >>> trace = '  File "/x/datamodules/pictures.py", line 7, in f\n    raise\nValueError: a.jpg is broken.'
        >>> met_by_worker(f"Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (...):\n{trace}")
        ('a.jpg is broken.', '/x/datamodules/pictures.py')
    """
    if not re.match(r"Caught \w+ in DataLoader worker process", text):
        return None
    files = re.findall(r'^ +File "([^"]+)", line', text, re.MULTILINE)
    said = re.split(r"^[\w.]+(?:Error|Exception): ", text, flags=re.MULTILINE)[-1].strip()
    return (said, files[-1]) if files else None


def explain_os_error(error: OSError) -> str:
    """The message for a file or a disk that failed."""
    if error.errno == errno.ENOSPC:
        place = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{place}. Free some space and start again with --ckpt_path last."
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}."
    return str(error)


def explain_state_mismatch(text: str, shown: int = 3) -> str:
    """The message for a checkpoint whose weights do not belong to the model.

    Args:
        text: What torch said.
        shown: Names listed of each kind.

    Returns:
        A message with the first names and the cure.

    Example:
        >>> print(explain_state_mismatch('''Error(s) in loading state_dict for Net:
        ...     Missing key(s) in state_dict: "a.weight", "a.bias". '''))
        the checkpoint does not belong to this Net: missing a.weight, a.bias. Give --model and --model.init_args the \
values that the checkpoint was trained with; its run folder holds them in config.yaml.
    """
    owner = re.search(r"state_dict for (\w+)", text)
    parts = []
    for kind in ("missing", "unexpected"):
        found = re.search(rf"{kind.capitalize()} key\(s\) in state_dict: (.*)", text)
        names = re.findall(r'"([^"]+)"', found.group(1)) if found else []
        if names:
            rest = f" and {len(names) - shown} more" if len(names) > shown else ""
            parts.append(f"{kind} {', '.join(names[:shown])}{rest}")
    shapes = re.findall(
        r"size mismatch for ([^:]+): copying a param with shape torch\.Size\((\[.*?\])\) from checkpoint, "
        r"the shape in current model is torch\.Size\((\[.*?\])\)",
        text,
    )
    if shapes:
        rest = f" and {len(shapes) - shown} more" if len(shapes) > shown else ""
        pairs = [f"{name} {stored} in the checkpoint, {wanted} here" for name, stored, wanted in shapes[:shown]]
        parts.append(f"other shapes: {', '.join(pairs)}{rest}")
    return (
        f"the checkpoint does not belong to this {owner.group(1) if owner else 'model'}: {'; '.join(parts)}. "
        "Give --model and --model.init_args the values that the checkpoint was trained with; "
        "its run folder holds them in config.yaml."
    )


def constructor_text(text: str) -> str:
    r"""What a constructor said, out of the parser's list of everything that it tried.

    Args:
        text: What the parser said.

    Returns:
        The constructor's own message.

    Example:
        >>> constructor_text("Does not validate\nErrors:\n  - bits is 0.\n  - Expected a <class 'NoneType'>")
        'bits is 0.'
        >>> constructor_text("Does not validate\nErrors:\n  - Does not validate\n    Errors:\n      - bits is 0.")
        'bits is 0.'
    """
    tried = re.split(r"\n  - ", text.split("\nGiven value type:")[0])[1:]
    said = [entry.strip() for entry in tried if not entry.startswith(("Expected a", "Not a valid subclass"))]
    if said and said[-1].startswith("Does not validate"):  # of a class inside this one
        return constructor_text(said[-1].replace("\n    ", "\n"))
    return said[-1] if said else text


def first_sentence(text: str) -> str:
    """The first sentence of ``text``.

    Example:
        >>> first_sentence("It failed. Then more")
        'It failed.'
    """
    line = text.splitlines()[0].split(". ")[0].rstrip(".")
    return f"{line}."


def _from_torch_load(error: BaseException) -> bool:
    """Whether torch failed while it read a file; what it raises then depends on the first bytes."""
    files = [Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)]
    return "_weights_only_unpickler.py" in files


def _raised_for_user(error: ValueError) -> bool:
    """Whether the suite or Lightning raised it on purpose, rather than a library that met something unexpected."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return True
    return _is_own(frames[-1].filename)


def _is_own(file: str) -> bool:
    """Whether a file is one of the suite's or of Lightning's."""
    folders = {parent.name for parent in Path(file).parents}
    return bool(folders & {*OWN, "lightning", "cli"}) or Path(file).name == "cli.py"

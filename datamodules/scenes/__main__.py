"""``python -m datamodules.scenes``: write the generated world to disk."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from datamodules.scenes.dior_layout import write_dior
from datamodules.scenes.layouts import write_coco, write_mirflickr
from datamodules.scenes.voc_layout import write_voc

MARK = "scenes.json"  # says which world a folder holds, from before its first file


def claim(root: Path, world: dict[str, str | int]) -> None:
    """Mark a folder as that of a world; one that holds anything else would be mixed with it, and partly overwritten.

    Args:
        root: The folder; it is made.
        world: Layout, number, size and seed.

    Raises:
        ValueError: The folder holds another world, or files of something else.
    """
    mark = root / MARK
    if mark.is_file():
        if (held := json.loads(mark.read_text(encoding="utf-8"))) != world:
            raise ValueError(f"{root} holds the world {held}. Name another folder for {world}, or remove that one.")
    elif root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root} holds files, and none of a generated world. Name another folder.")
    root.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(world) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line and write the data set."""
    parser = argparse.ArgumentParser(description="Write generated scenes in the layout of a real data set.")
    parser.add_argument("layout", choices=["coco", "dior", "mirflickr", "voc"])
    parser.add_argument("root", help="folder that receives the data set")
    parser.add_argument("--num", type=int, default=10_000, help="number of images (default: 10000)")
    parser.add_argument("--size", type=int, default=96, help="side of an image in pixels (default: 96)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world (default: 0)")
    arguments = parser.parse_args()
    fewest = 3 if arguments.layout == "dior" else 2  # an image for each part
    if arguments.num < fewest or arguments.size < 16:
        parser.error(f"--num must be at least {fewest} and --size at least 16")
    settings = {name: value for name, value in vars(arguments).items() if name != "root"}
    try:
        claim(Path(arguments.root), settings)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if arguments.layout == "coco":
        num_val = max(arguments.num // 5, 1)
        write_coco(arguments.root, arguments.num - num_val, num_val, arguments.size, arguments.seed)
    elif arguments.layout == "dior":
        write_dior(arguments.root, arguments.num, arguments.size, arguments.seed)
    elif arguments.layout == "voc":
        write_voc(arguments.root, arguments.num, arguments.size, arguments.seed)
    else:
        write_mirflickr(arguments.root, arguments.num, arguments.size, arguments.seed)
    print(f"{arguments.num} scenes are in {arguments.root}")


if __name__ == "__main__":
    main()

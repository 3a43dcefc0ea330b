"""``python -m datamodules.scenes``: write the generated world to disk."""

from __future__ import annotations

import argparse

from datamodules.scenes.dior_layout import write_dior
from datamodules.scenes.layouts import write_coco, write_mirflickr
from datamodules.scenes.voc_layout import write_voc


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

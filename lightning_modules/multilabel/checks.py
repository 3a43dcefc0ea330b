"""What multi-label hashing refuses: settings that do not fit together, and weights that a figure cannot be of."""

from __future__ import annotations

from lightning_modules.multilabel.model import Head


def check_settings(
    bits: int | None,
    head: Head,
    neighbours: int,
    weights: dict[str, float],
    unfreeze_blocks: int,
    rates: tuple[float, float, float],
) -> None:
    """Refuse settings that do not fit together.

    Args:
        bits: Length of the code; None = no hash layer.
        head: The classifier.
        neighbours: K of the KNN head, and of the votes between random codes that others are compared with.
        weights: Weight of each loss term.
        unfreeze_blocks: Tower blocks that are trained.
        rates: Learning rate of the new layers, of the towers, and the lowest.

    Raises:
        ValueError: Names the setting and the cure.
    """
    if bits is not None and bits < 1:
        raise ValueError(f"bits is {bits}; a code needs at least 1 bit, and null leaves the hash layer out.")
    if head == "knn" and bits is None:
        raise ValueError("head knn compares binary codes; set bits, for example to 64.")
    if neighbours < 1:
        raise ValueError(f"knn_neighbours is {neighbours}; at least 1 neighbour must vote. Set it to 20, for example.")
    if weights["alignment"] and not unfreeze_blocks:
        raise ValueError(
            f"alignment_weight is {weights['alignment']}, but with frozen towers (unfreeze_blocks 0) the cosine of "
            "image and text direction is a constant: the term has no gradient and only shifts the loss. Set it to 0, "
            "or set unfreeze_blocks and data.init_args.live: true."
        )
    if negative := [name for name, weight in weights.items() if weight < 0]:
        raise ValueError(f"{negative[0]}_weight is {weights[negative[0]]}; a loss weight must not be negative.")
    if unfreeze_blocks < 0:
        raise ValueError(f"unfreeze_blocks is {unfreeze_blocks}; it counts blocks from the last, 0 = none.")
    lr, tower_lr, min_lr = rates
    if lr <= 0 or tower_lr <= 0 or not 0 <= min_lr <= lr:
        raise ValueError(f"lr is {lr}, tower_lr {tower_lr}, min_lr {min_lr}; above 0 and 0 <= min_lr <= lr are needed.")


def check_neighbours(neighbours: int, items: int) -> None:
    """Refuse a K for which the training items are too few, as none of them votes for itself.

    Raises:
        ValueError: Names the largest K.
    """
    if neighbours >= items:
        raise ValueError(
            f"knn_neighbours is {neighbours}; each of {items} training items needs that many others to vote. Lower "
            f"knn_neighbours to at most {items - 1}."
        )


def check_split(trained_on: str | None, split: str) -> None:
    """Refuse weights that were trained on what is to be scored.

    Args:
        trained_on: Hash of the items that the weights were trained and selected on; None = of none yet.
        split: Hash of the items that this run trains and selects on.

    Raises:
        ValueError: They differ.
    """
    if trained_on not in (None, split):
        raise ValueError(
            "The checkpoint was trained on other items than this fold's: what would be scored here may have been "
            "trained on. Give fold, num_folds, split_seed, stratified and select_fraction the values of its run."
        )

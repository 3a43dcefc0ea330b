"""CorrCLIP as a loop over regions, heads and tokens, in float64, to test against."""

from __future__ import annotations

import math

import numpy as np
from torch import nn


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.75."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def bicubic(plane: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A plane (rows, columns, C) on another grid, with steps of stored / (grid + 0.1)."""
    rows, columns = plane.shape[:2]
    found = np.zeros((*grid, plane.shape[2]))
    for i in range(grid[0]):
        for j in range(grid[1]):
            y, x = (i + 0.5) * rows / (grid[0] + 0.1) - 0.5, (j + 0.5) * columns / (grid[1] + 0.1) - 0.5
            for p in range(math.floor(y) - 1, math.floor(y) + 3):
                for q in range(math.floor(x) - 1, math.floor(x) + 3):
                    value = plane[min(max(p, 0), rows - 1), min(max(q, 0), columns - 1)]
                    found[i, j] += cubic(y - p) * cubic(x - q) * value
    return found


def bilinear(plane: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    rows, columns = plane.shape[:2]
    found = np.zeros((*grid, plane.shape[2]))
    for i in range(grid[0]):
        for j in range(grid[1]):
            y, x = max((i + 0.5) * rows / grid[0] - 0.5, 0), max((j + 0.5) * columns / grid[1] - 0.5, 0)
            for p, by_row in ((int(y), 1 - y % 1), (int(y) + 1, y % 1)):
                for q, by_column in ((int(x), 1 - x % 1), (int(x) + 1, x % 1)):
                    found[i, j] += by_row * by_column * plane[min(p, rows - 1), min(q, columns - 1)]
    return found


def nearest(plane: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    rows, columns = plane.shape
    return np.array(
        [[plane[i * rows // grid[0], j * columns // grid[1]] for j in range(grid[1])] for i in range(grid[0])]
    )


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


class NaiveCorrCLIP:
    """CorrCLIP for one image, token by token, as the method is written down."""

    def __init__(self, visual: nn.Module) -> None:
        self.w = {name: value.detach().double().numpy() for name, value in visual.state_dict().items()}
        self.heads, self.depth = visual.transformer.resblocks[0].attn.num_heads, len(visual.transformer.resblocks)

    def ln(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * self.w[f"{name}.weight"]
            + self.w[f"{name}.bias"]
        )

    def qkv(self, x, b):
        return np.split(
            self.ln(x, f"{b}.ln_1") @ self.w[f"{b}.attn.in_proj_weight"].T + self.w[f"{b}.attn.in_proj_bias"], 3, -1
        )

    def out(self, x, b):
        return x @ self.w[f"{b}.attn.out_proj.weight"].T + self.w[f"{b}.attn.out_proj.bias"]

    def mlp(self, x, b):
        x = self.ln(x, f"{b}.ln_2") @ self.w[f"{b}.mlp.c_fc.weight"].T + self.w[f"{b}.mlp.c_fc.bias"]
        x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        return x @ self.w[f"{b}.mlp.c_proj.weight"].T + self.w[f"{b}.mlp.c_proj.bias"]

    def look(self, q, k, v, seen):
        """One token's query over the keys and values of the tokens that it sees, head by head."""
        d, parts = len(q) // self.heads, []
        for h in range(self.heads):
            s = slice(h * d, (h + 1) * d)
            parts.append(softmax(k[seen][:, s] @ q[s] / math.sqrt(d)) @ v[seen][:, s])
        return np.concatenate(parts)

    def embed(self, image, own):
        kernel, positions = self.w["conv1.weight"], self.w["positional_embedding"]
        p, side = kernel.shape[-1], math.isqrt(len(positions) - 1)
        rows = [self.w["class_embedding"] + positions[0]]
        plane = positions[1:].reshape(side, side, -1)
        if own != (side, side):
            plane = bicubic(plane, own)
        for i in range(own[0]):
            for j in range(own[1]):
                patch = image[:, i * p : (i + 1) * p, j * p : (j + 1) * p]
                rows.append(np.array([(each * patch).sum() for each in kernel]) + plane[i, j])
        return self.ln(np.array(rows), "ln_pre")

    def labels(self, features, mask, grid, eps):
        from sklearn.cluster import DBSCAN

        labels = nearest(mask, grid).flatten()
        ids = sorted(set(labels.tolist()))
        if eps is not None and len(ids) > 2:
            means = unit(np.stack([features[labels == each].mean(0) for each in ids[1:]]))
            distance = np.clip((means @ means.T).max() - means @ means.T, 0, None)
            clusters = DBSCAN(eps=eps, min_samples=1, metric="precomputed").fit(distance).labels_
            renamed = {ids[0]: 0, **{each: 1 + cluster for each, cluster in zip(ids[1:], clusters, strict=True)}}
            labels = np.array([renamed[each] for each in labels.tolist()])
        return labels

    def seen(self, scores, labels, scope, unsegmented):
        """For each patch which patches it sees."""
        bare, mean, count = labels.min(), scores.mean(), len(labels)
        rule = any if unsegmented == "union" else all
        rows = []
        for i in range(count):
            rows.append(
                [
                    not scope
                    or (labels[i] == labels[j] != bare)
                    or (rule((labels[i] == bare, labels[j] == bare)) and scores[i, j] > mean)
                    for j in range(count)
                ]
            )
        return np.array(rows)

    def features(
        self, image, guide, grid, mask, alpha=1.0, beta=0.5, tau=0.25, eps=0.2, similarity="guide", scope=True,
        unsegmented="union",
    ):  # fmt: skip
        guide = unit(guide)
        labels = self.labels(guide, mask, grid, eps)
        p = self.w["conv1.weight"].shape[-1]
        own = (image.shape[1] // p, image.shape[2] // p)
        x = self.embed(image, own)
        coarse = nearest(labels.reshape(grid), own).flatten()
        tokens = dict.fromkeys(coarse.tolist(), x[0])
        low = []
        for number in range(self.depth):
            b = f"transformer.resblocks.{number}"
            q, k, v = self.qkv(x, b)
            for region, token in tokens.items():
                sees = np.concatenate([[True], coarse == region])
                token = token + self.out(self.look(self.qkv(token, b)[0], k, v, sees), b)
                tokens[region] = token + self.mlp(token, b)
            if number == self.depth - 1:
                break
            everything = np.ones(len(x), dtype=bool)
            x = x + self.out(np.array([self.look(each, k, v, everything) for each in q]), b)
            x = x + self.mlp(x, b)
            if self.depth - 2 - 4 <= number <= self.depth - 3:  # eight blocks: n = 4
                low.append(x)
        if similarity == "vanilla":
            everything = np.ones(len(x), dtype=bool)
            x = x + self.out(np.array([self.look(each, k, v, everything) for each in q]), b)
            x = self.ln(x + self.mlp(x, b), "ln_post") @ self.w["proj"]
            return bilinear(x[1:].reshape(*own, -1), grid).reshape(len(guide), -1)
        scores = guide @ guide.T
        seen = self.seen(scores, labels, scope, unsegmented)
        q, k, v, spatial = (
            bilinear(part[1:].reshape(*own, -1), grid).reshape(len(guide), -1)
            for part in (q, k, v, self.qkv(sum(low) / len(low), b)[2])
        )
        mixed = {}
        for name, values in (("main", v), ("spatial", spatial)):
            rows = []
            for i in range(len(guide)):
                if similarity.startswith("clip"):
                    ways = {"clip_qq": (q, q), "clip_qk": (q, k), "clip_vv": (v, v)}
                    queries, keys = ways[similarity]
                    rows.append(self.look(queries[i], keys, values, seen[i]))
                else:
                    logits = scores[i] / tau if similarity == "guide" else np.zeros(len(guide))
                    rows.append(softmax(logits[seen[i]]) @ values[seen[i]])
            mixed[name] = self.ln(self.out(np.array(rows), b), "ln_post")
        semantic = [self.ln(tokens[region], "ln_post") for region in nearest(coarse.reshape(own), grid).flatten()]
        return (mixed["main"] + alpha * mixed["spatial"] + beta * np.array(semantic)) @ self.w["proj"]

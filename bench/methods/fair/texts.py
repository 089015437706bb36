"""Texts as hashed words and word pairs, in three splits."""

import functools
import itertools
import re
import zlib
from collections import Counter

import numpy as np
import torch

from bench.methods.fair.data import Data
from bench.methods.fair.features import BUCKETS, Texts
from bench.methods.fair.fetch import FOLDER
from bench.methods.fair.network import Bags, wide

WORDS = 32  # per text; later ones are dropped
WIDE = "-wide"
FEWEST = 30  # texts per class; smaller classes are left out
SPLIT_SEED = 7
HELD_OUT = 0.1  # of the texts for validation, and as many for the test


def hashed(text: str) -> list[int]:
    """The buckets of the text's words and of its pairs of neighbouring words."""
    words = re.findall(r"[a-z0-9]+", text.lower())[:WORDS] or [""]
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(words)]
    return [zlib.crc32(term.encode()) % BUCKETS for term in words + pairs]


@functools.cache
def load(name: str) -> Data:
    """The data set of build/texts/NAME.tsv; the features are cached next to it. NAME-wide is the
    same for the large network.

    Raises:
        FileNotFoundError: it was not fetched.
    """
    if name.endswith(WIDE):
        return load(name.removesuffix(WIDE))._replace(network=wide)
    file = FOLDER / f"{name}.tsv"
    kept = file.with_suffix(".npz")
    if not kept.exists() or kept.stat().st_mtime < file.stat().st_mtime:
        lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
        often = Counter(label for label, _ in lines)
        names = sorted(label for label, count in often.items() if count >= FEWEST)
        number = {label: i for i, label in enumerate(names)}
        found = [(hashed(text), number[label]) for label, text in lines if label in number]
        np.savez(
            kept,
            features=np.concatenate([np.array(terms, np.int32) for terms, _ in found]),
            lengths=np.array([len(terms) for terms, _ in found]),
            labels=np.array([label for _, label in found]),
        )
    with np.load(kept) as arrays:
        features = torch.from_numpy(arrays["features"]).long()
        lengths, labels = (torch.from_numpy(arrays[x]) for x in ("lengths", "labels"))
    n = len(labels)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    out = round(HELD_OUT * n)
    starts = lengths.cumsum(0) - lengths
    parts = [
        Texts(features, starts[ids], lengths[ids], labels[ids])
        for ids in order.tensor_split([out, 2 * out])
    ]
    return Data(parts[2], parts[0], parts[1], int(labels.max()) + 1, Bags)

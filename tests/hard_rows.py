"""Logit rows that break softmax code, one family a function: (classes, generator) -> (rows, C).

Families are named, so that a failing row can be identified.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

INF = float("inf")
FLOAT32_MAX = float(np.finfo(np.float32).max)


def normal(scale: float) -> Callable:
    def build(classes: int, generator: torch.Generator) -> torch.Tensor:
        return scale * torch.randn(6, classes, generator=generator, dtype=torch.float64)

    return build


def uniform(classes, generator):
    """All signs positive, then all negative: no logit near zero to start a maximum from."""
    z = torch.rand(4, classes, generator=generator, dtype=torch.float64)
    return torch.stack([50 + 10 * z[0], -50 - 10 * z[1], 1e-3 * z[2], -1e-3 * z[3]])


def masked(classes, generator):
    """Random columns at -inf, from few to nearly all; at least one is left."""
    z = torch.randn(4, classes, generator=generator, dtype=torch.float64)
    hide = torch.rand(4, classes, generator=generator) < torch.tensor([[0.1], [0.5], [0.9], [0.99]])
    hide[torch.arange(4), torch.randint(classes, (4,), generator=generator)] = False
    return z.masked_fill(hide, -INF)


def masked_blocks(classes, generator):
    """Whole blocks at -inf: the head, the tail, all but the first or last column, the middle."""
    z = 3 * torch.randn(6, classes, generator=generator, dtype=torch.float64)
    z[0, : classes // 2] = -INF
    z[1, (classes + 1) // 2 :] = -INF
    z[2, 1:] = -INF
    z[3, :-1] = -INF
    z[4, classes // 4 : (3 * classes) // 4] = -INF
    z[5, : max(0, classes - 3)] = -INF
    return z


def confident(classes, generator):
    """One class ahead of all others by a margin from 1 to 100."""
    margins = torch.tensor([1.0, 5.0, 17.3, 40.0, 60.7, 87.0, 88.5, 95.0, 100.0]).double()
    z = -torch.rand(len(margins), classes, generator=generator, dtype=torch.float64)
    winner = torch.randint(classes, (len(margins),), generator=generator)
    z[torch.arange(len(margins)), winner] = margins
    return z


def confident_far_from_zero(classes, generator):
    """As `confident`, but z - m rounds in float32 because the logits are large."""
    return confident(classes, generator) * 1.0 + torch.linspace(-3000, 3000, 9).double()[:, None]


def tiny_tail(classes, generator):
    """All other classes at one distance: sums of individually subnormal exponentials."""
    distances = torch.tensor([60.0, 69.5, 80.1, 86.9, 87.4, 90.0, 95.3, 100.0]).double()
    z = (-distances)[:, None].repeat(1, classes)
    z[:, classes // 2] = 0.0
    return z


def ascending(classes, generator):
    """The running maximum changes at every step; small, unit and large steps."""
    z = torch.randn(3, classes, generator=generator, dtype=torch.float64).sort(1).values
    return z * torch.tensor([[0.1], [3.0], [1000.0]])


def descending(classes, generator):
    return ascending(classes, generator).flip(1)


def steep(classes, generator):
    """Steps of 30 nats up, then down: each block dwarfs all before it."""
    steps = torch.arange(classes, dtype=torch.float64)
    up = 30.0 * (steps % 128)
    return torch.stack([up, -up, 30.0 * (steps // 64 % 64), -30.0 * (steps // 64 % 64)])


def constant(classes, generator):
    """The same value in every column, including zero, subnormal, and the largest float32."""
    values = [0.0, -0.0, 1.0, -0.1, 1e4, 1e-40, -1e30, 3e38, -3e38, -FLOAT32_MAX, FLOAT32_MAX]
    values += [-float(np.log(classes)), -103.5]
    return torch.tensor(values, dtype=torch.float64)[:, None].repeat(1, classes)


def flat(classes, generator):
    """-0.1 everywhere except one 0, first, in the middle or last: rounding errors in one
    direction."""
    z = torch.full((3, classes), -0.1, dtype=torch.float64)
    z[0, 0] = z[1, classes // 2] = z[2, -1] = 0.0
    return z


def two_valued(classes, generator):
    """Many maxima tied, everything else at one distance."""
    ties = torch.rand(4, classes, generator=generator) < 0.5
    distance = torch.tensor([0.5, 10.0, 60.0, 1e4])[:, None]
    return torch.where(ties, 2.0, 2.0 - distance).double()


def very_negative(classes, generator):
    noise = torch.rand(3, classes, generator=generator, dtype=torch.float64)
    return torch.stack([-1e30 * (1 + noise[0]), -1e30 * (1 + 1e-6 * noise[1]), -1e4 - noise[2]])


def huge(classes, generator):
    """Differences that overflow float32; the loss of a label far below is +inf: invalid."""
    z = 3e38 * (2 * torch.rand(4, classes, generator=generator, dtype=torch.float64) - 1)
    z[1] = torch.where(z[1] > 0, 3e38, -3e38)
    z[2] = -FLOAT32_MAX
    z[2, -1] = FLOAT32_MAX
    z[3, : classes // 2] = -INF
    return z


def subnormal(classes, generator):
    """Logits below float32's normal range, and one ulp apart from 1."""
    z = torch.rand(2, classes, generator=generator, dtype=torch.float64)
    return torch.stack([1e-41 * z[0], 1 + 2.0**-23 * (z[1] > 0.5)])


def broken(classes, generator):
    """Invalid whatever the label: NaN of both signs, +inf, no finite logit."""
    z = torch.randn(8, classes, generator=generator, dtype=torch.float64)
    z[0, 0] = z[1, -1] = z[2, classes // 2] = torch.nan
    z[2] = -z[2]
    z[3, 0] = z[4, -1] = INF
    z[5] = -INF
    z[6] = torch.nan
    z[7, :] = INF
    return z


FAMILIES: dict[str, Callable] = {
    "scale 1e-3": normal(1e-3),
    "scale 1": normal(1.0),
    "scale 30": normal(30.0),
    "scale 1e4": normal(1e4),
    "uniform": uniform,
    "masked": masked,
    "masked blocks": masked_blocks,
    "confident": confident,
    "confident far from zero": confident_far_from_zero,
    "tiny tail": tiny_tail,
    "ascending": ascending,
    "descending": descending,
    "steep": steep,
    "constant": constant,
    "flat": flat,
    "two-valued": two_valued,
    "very negative": very_negative,
    "huge": huge,
    "subnormal": subnormal,
    "broken": broken,
}


def family(name: str, classes: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows (n, C) of one family in `dtype`, finite values clamped to the dtype's range."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + classes)
    z = FAMILIES[name](classes, generator)
    largest = torch.finfo(dtype).max
    return torch.where(z.isfinite(), z.clamp(-largest, largest), z).to(dtype)


def labels_for(logits: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Labels (n,): in turn the largest logit, a random class, the smallest finite logit."""
    n, classes = logits.shape
    z = torch.where(logits.isnan(), -INF, logits.double())
    generator = torch.Generator().manual_seed(seed + 17)
    smallest = torch.where(z == -INF, INF, z).argmin(1)
    choices = torch.stack(
        [z.argmax(1), torch.randint(classes, (n,), generator=generator), smallest]
    )
    return choices[(torch.arange(n) + seed) % 3, torch.arange(n)]


def batch(
    classes: int, dtype: torch.dtype, families=None, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Rows of many families one below another: logits (N, C), labels (N,), names (N,)."""
    names = list(FAMILIES) if families is None else families
    parts = [family(name, classes, dtype, seed) for name in names]
    logits = torch.cat(parts)
    rows = [
        f"{name} #{i}" for name, part in zip(names, parts, strict=True) for i in range(len(part))
    ]
    return logits, labels_for(logits, seed), rows

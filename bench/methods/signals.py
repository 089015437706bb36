"""mnist1d: ten one-dimensional digits, deformed (Greydanus and Kobak, arXiv 2011.14439).

Written after the published recipe and its constants: a template of 12 points is padded, stretched,
scaled and shifted within 72 points, the rest is filled with correlated noise, white noise and a
slope are added, and the result is sampled at 40 points. Only the numbers of samples are ours.
"""

import numpy as np

from emp_kernels.experiments.images import Images, normalised

TRAIN, TEST = 5_000, 10_000
TRAIN_SEED, TEST_SEED = 42, 43
PADDING = (36, 60)  # range of the number of zeros after the template
SCALE = 0.4
TRANSLATION = 48
CORRELATED, SIGMA, RADIUS = 0.25, 2.0, 8  # noise: size, Gaussian filter and where that is cut
WHITE = 2e-2
SHEAR = 0.75
LENGTH = 40
TEMPLATES = np.array(
    [
        [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
        [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
        [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
        [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
        [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
        [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
        [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
        [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
    ]
)


def mnist1d() -> Images:
    """5,000 training and 10,000 test signals as images (1, 1, 40), 10 classes, always the same."""
    train, train_labels = signals(TRAIN, TRAIN_SEED)
    test, test_labels = signals(TEST, TEST_SEED)
    return normalised("mnist1d", train, train_labels, test, test_labels, 10, 0, False)


def signals(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` signals (n, 1, 1, 40) float32 and their labels (n,), classes equally often, shuffled."""
    draws = np.random.default_rng(seed)
    templates = TEMPLATES - TEMPLATES.mean(1, keepdims=True)
    templates /= templates.std(1, keepdims=True)
    templates = (templates - templates[:, :1]) / 6  # a signal begins and ends at 0
    labels = draws.permutation(np.arange(n) % len(templates))
    found = np.stack([_deformed(templates[label], draws) for label in labels])
    return found[:, None, None].astype(np.float32), labels


def _deformed(template: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    low, high = PADDING
    padded = np.concatenate([template + 1e-8, np.zeros(draws.integers(low, high + 1))])
    signal = _resampled(padded, len(template) + high)
    signal *= 1 + SCALE * (draws.random() - 0.5)
    signal = np.roll(signal, draws.integers(TRANSLATION))
    noise = _smoothed(CORRELATED * draws.standard_normal(len(signal)))
    signal = np.where(signal != 0, signal, noise)
    signal = signal + WHITE * draws.standard_normal(len(signal))
    slope = SHEAR * (draws.random() - 0.5)
    return _resampled(signal - slope * np.linspace(-0.5, 0.5, len(signal)), LENGTH)


def _resampled(signal: np.ndarray, length: int) -> np.ndarray:
    """Linear interpolation at `length` points over the same span."""
    return np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(signal)), signal)


def _smoothed(noise: np.ndarray) -> np.ndarray:
    """Filtered by a Gaussian, mirrored at both ends."""
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    padded = np.pad(noise, RADIUS, mode="symmetric")
    return np.convolve(padded, weights / weights.sum(), mode="valid")

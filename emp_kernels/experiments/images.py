"""The image sets that experiments train on, as normalised tensors in memory."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..terminal.requirements import CommandError, require_packages

DIGITS = Path(__file__).with_name("digits.npz")
CIFAR_CLASSES = 100
TILE = 32  # side of a CIFAR image


class Images(NamedTuple):
    """A train and a test split, N and M images.

    Attributes:
        name: the name of the set.
        train_images: (N, channels, H, W) float32, each channel with mean 0 and standard deviation
            1.
        train_labels: (N,) int64 in [0, num_classes).
        test_images, test_labels: (M, ...), normalised with the training split's statistics.
        num_classes: C.
        shift: largest random shift in augmentation, in pixels.
        flip: whether augmentation mirrors images left to right.
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    num_classes: int
    shift: int
    flip: bool


def load(name: str, directory: Path | None = None) -> Images:
    """Image set `name`: "digits" (part of the package) or "cifar100" (from `directory`).

    Raises:
        CommandError: a package or a file is missing, or a file has the wrong format.
    """
    return digits() if name == "digits" else cifar100(directory)


def digits() -> Images:
    """Handwritten digits, 8x8, 10 classes: 1,297 train and 500 test images, a fixed split.

    The test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI
    Machine Learning Repository, 1998, doi:10.24432/C50P49, CC BY 4.0); the same data as in
    scikit-learn.
    """
    with np.load(DIGITS) as file:
        train, train_labels = file["train"], file["train_labels"]
        test, test_labels = file["test"], file["test_labels"]
    return normalised("digits", train, train_labels, test, test_labels, 10, 1, False)


def cifar100(directory: Path | None, *, halved: bool = True) -> Images:
    """CIFAR-100 (Krizhevsky, 2009) at 16x16, halved by averaging so that a CPU can train on it, or
    at its own 32x32.

    `directory` is ``cifar-100-python`` or its tar.gz, the folder that holds either, or a folder
    with the mosaics ``train.jpg`` and ``test.jpg`` (32x32 tiles, row-major) and ``labels.npz``.
    """
    if directory is None:
        raise CommandError("--data cifar100 needs --data-dir: the folder that holds the images")
    if not directory.exists():
        raise CommandError(f"--data-dir must exist, got {directory}")
    splits = _archive(directory) or _mosaic(directory)
    if splits is None:
        raise CommandError(
            "--data-dir must hold cifar-100-python/, cifar-100-python.tar.gz, or train.jpg, "
            f"test.jpg and labels.npz, got {directory}"
        )
    (train, train_labels), (test, test_labels) = splits
    if halved:
        train, test = _halved(train), _halved(test)
    return normalised(
        "cifar100",
        train,
        train_labels,
        test,
        test_labels,
        CIFAR_CLASSES,
        2,
        True,
    )


Split = tuple[np.ndarray, np.ndarray]  # uint8 images (N, 3, 32, 32), labels (N,)


def _archive(directory: Path) -> tuple[Split, Split] | None:
    """Both splits of the Python version's pickles, or None if there are none."""
    for folder in (directory / "cifar-100-python", directory):
        train, test = folder / "train", folder / "test"
        if train.is_file() and test.is_file():
            return _pickled(train.read_bytes()), _pickled(test.read_bytes())
    archive = directory / "cifar-100-python.tar.gz" if directory.is_dir() else directory
    if not archive.is_file():
        return None
    try:
        with tarfile.open(archive) as tar:
            splits = [_member(tar, f"cifar-100-python/{split}") for split in ("train", "test")]
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise CommandError(
            f"--data-dir must be CIFAR-100's python archive, got {archive}: {error}"
        ) from None
    return _pickled(splits[0]), _pickled(splits[1])


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is no file")
    return file.read()


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and nothing else, so that a data file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        if name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # wherever this NumPy version keeps it
        return super().find_class(module, name)


_ARRAY_PARTS = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),  # in the original archive, written by NumPy 1
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),  # bytes, as Python 3 writes them for Python 2
    }
)


def _pickled(content: bytes) -> Split:
    try:
        entries = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        entries = {key.decode() if isinstance(key, bytes) else key: entries[key] for key in entries}
        images = np.asarray(entries["data"], dtype=np.uint8).reshape(-1, 3, TILE, TILE)
        return images, np.asarray(entries["fine_labels"], dtype=np.int64)
    except Exception as error:  # unpickling arbitrary bytes can raise almost anything
        raise CommandError(f"--data-dir: not a CIFAR-100 file: {error}") from None


def _mosaic(directory: Path) -> tuple[Split, Split] | None:
    """Both splits of the mosaic layout, or None if there are none."""
    files = [directory / name for name in ("train.jpg", "test.jpg", "labels.npz")]
    if not all(file.is_file() for file in files):
        return None
    require_packages("reading train.jpg and test.jpg", "PIL")
    from PIL import Image

    try:
        labels = np.load(files[2])
        splits = []
        for file, split in zip(files, ("train", "test"), strict=False):
            with Image.open(file) as image:
                mosaic = np.asarray(image.convert("RGB"))
            down, across = mosaic.shape[0] // TILE, mosaic.shape[1] // TILE
            tiles = mosaic.reshape(down, TILE, across, TILE, 3).transpose(0, 2, 4, 1, 3)
            splits.append((tiles.reshape(-1, 3, TILE, TILE), labels[split].astype(np.int64)))
    except (OSError, ValueError, KeyError) as error:
        raise CommandError(f"--data-dir: not CIFAR-100's mosaic layout: {error}") from None
    return splits[0], splits[1]


def _halved(images: np.ndarray) -> np.ndarray:
    """Averages of 2x2 pixels: (N, 3, 32, 32) uint8 to (N, 3, 16, 16) float32."""
    n, channels, height, width = images.shape
    blocks = images.reshape(n, channels, height // 2, 2, width // 2, 2)
    return blocks.mean(axis=(3, 5), dtype=np.float32)


def normalised(
    name: str,
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    shift: int,
    flip: bool,
) -> Images:
    """Images from these splits, (N, channels, H, W) and (N,), normalised by the training split's
    statistics.

    Raises:
        CommandError: images and labels do not match, or a label is out of range.
    """
    for split, images, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if len(images) != len(labels) or len(images) == 0:
            raise CommandError(
                f"{name}: the {split} split must have one label an image, "
                f"got {len(images)} images and {len(labels)} labels"
            )
        if labels.min() < 0 or labels.max() >= classes:
            raise CommandError(f"{name}: {split} labels must be in [0, {classes})")
    axes = (0, 2, 3)
    mean = train.mean(axis=axes, keepdims=True, dtype=np.float64).astype(np.float32)
    deviation = train.std(axis=axes, keepdims=True, dtype=np.float64).astype(np.float32) + 1e-6

    def tensor(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((images.astype(np.float32) - mean) / deviation)

    return Images(
        name,
        tensor(train),
        torch.from_numpy(np.asarray(train_labels, dtype=np.int64)),
        tensor(test),
        torch.from_numpy(np.asarray(test_labels, dtype=np.int64)),
        classes,
        shift,
        flip,
    )


def augmented(
    images: torch.Tensor, shift: int, flip: bool, generator: torch.Generator
) -> torch.Tensor:
    """Images (B, channels, H, W), each shifted by up to `shift` pixels and, if `flip`, randomly
    mirrored."""
    b, _, height, width = images.shape
    down, across = torch.randint(0, 2 * shift + 1, (2, b, 1), generator=generator)
    rows, columns = down + torch.arange(height), across + torch.arange(width)
    if flip:
        mirrored = torch.rand(b, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = nn.functional.pad(images, [shift] * 4).permute(0, 2, 3, 1)
    shifted = padded[torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2).contiguous()

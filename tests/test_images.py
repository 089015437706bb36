"""The images that the demo trains on: the digits, and CIFAR-100 from the user's archive."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch

from emp_kernels.experiments import images
from emp_kernels.terminal.requirements import CommandError


def test_digits_are_a_partition_of_the_whole_set():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")  # optional package
    source = sklearn_datasets.load_digits()
    data = images.load("digits")
    assert data.train_images.shape == (1297, 1, 8, 8)
    assert data.test_images.shape == (500, 1, 8, 8)
    pixels = torch.cat([data.train_images, data.test_images]).reshape(-1, 64).double()
    labels = torch.cat([data.train_labels, data.test_labels])
    assert data.train_images.mean().abs() < 1e-5
    assert abs(data.train_images.std(correction=0) - 1) < 1e-5
    # Undo the normalisation: every source image is there once, with its label.
    low, high = pixels.min(), pixels.max()
    restored = torch.round((pixels - low) / (high - low) * 16).numpy()
    got = sorted(map(tuple, np.column_stack([restored, labels]).astype(int)))
    want = sorted(map(tuple, np.column_stack([source.data, source.target]).astype(int)))
    assert got == want


def test_digits_are_split_by_class():
    data = images.load("digits")
    train, test = (torch.bincount(labels) for labels in (data.train_labels, data.test_labels))
    assert ((test - (train + test) * 500 / 1797).abs() < 1).all()


TRAIN, TEST = 30, 20


def cifar_pixels(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    return pixels, generator.integers(0, 100, n)


class Python2Pickler(pickle._Pickler):
    """Writes bytes and str with Python 2's string opcodes, as CIFAR's own files have them."""

    def save_string(self, value) -> None:
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + len(raw).to_bytes(4, "little") + raw)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_string, str: save_string}


def python2_pickle(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    content = {"data": pixels.reshape(len(pixels), -1), "fine_labels": labels.tolist()}
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_archive(folder, pickled=python2_pickle) -> None:
    folder.mkdir(parents=True)
    (folder / "train").write_bytes(pickled(*cifar_pixels(TRAIN, 0)))
    (folder / "test").write_bytes(pickled(*cifar_pixels(TEST, 1)))


def assert_is_cifar(data: images.Images) -> None:
    """`data` holds the pixels of `cifar_pixels`, halved and normalised by the training split."""
    halved = {}
    for split, (pixels, labels), got_labels in (
        ("train", cifar_pixels(TRAIN, 0), data.train_labels),
        ("test", cifar_pixels(TEST, 1), data.test_labels),
    ):
        np.testing.assert_array_equal(got_labels.numpy(), labels)
        wide = pixels.astype(np.float64)
        rows = wide[:, :, 0::2] + wide[:, :, 1::2]
        halved[split] = (rows[..., 0::2] + rows[..., 1::2]) / 4
    mean = halved["train"].mean((0, 2, 3), keepdims=True)
    deviation = halved["train"].std((0, 2, 3), keepdims=True)
    for split, got in (("train", data.train_images), ("test", data.test_images)):
        np.testing.assert_allclose(got.numpy(), (halved[split] - mean) / deviation, atol=1e-5)


def test_cifar_archive_as_a_folder(tmp_path):
    write_archive(tmp_path / "cifar-100-python")
    assert_is_cifar(images.load("cifar100", tmp_path))
    assert_is_cifar(images.load("cifar100", tmp_path / "cifar-100-python"))


def test_cifar_at_its_own_size(tmp_path):
    write_archive(tmp_path / "cifar-100-python")
    data = images.cifar100(tmp_path, halved=False)
    train, test = (
        cifar_pixels(n, seed)[0].astype(np.float64) for n, seed in ((TRAIN, 0), (TEST, 1))
    )
    mean, deviation = (f(train, (0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    for pixels, got in ((train, data.train_images), (test, data.test_images)):
        np.testing.assert_allclose(got.numpy(), (pixels - mean) / deviation, atol=1e-5)


def test_cifar_archive_packed(tmp_path):
    write_archive(tmp_path / "cifar-100-python")
    packed = tmp_path / "packed" / "cifar-100-python.tar.gz"
    packed.parent.mkdir()
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(tmp_path / "cifar-100-python", "cifar-100-python")
    assert_is_cifar(images.load("cifar100", packed.parent))
    assert_is_cifar(images.load("cifar100", packed))


def test_cifar_archive_pickled_by_python_3(tmp_path):
    def pickled(pixels, labels):
        content = {b"data": pixels.reshape(len(pixels), -1), b"fine_labels": labels.tolist()}
        return pickle.dumps(content, protocol=2)

    write_archive(tmp_path / "cifar-100-python", pickled)
    assert_is_cifar(images.load("cifar100", tmp_path))


def test_cifar_mosaic(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")  # optional package
    labels = {}
    for split, n, across, seed in (("train", TRAIN, 10, 0), ("test", TEST, 5, 1)):
        pixels, labels[split] = cifar_pixels(n, seed)
        mosaic = np.zeros((n // across * 32, across * 32, 3), np.uint8)
        for i, tile in enumerate(pixels):
            row, column = 32 * (i // across), 32 * (i % across)
            mosaic[row : row + 32, column : column + 32] = tile.transpose(1, 2, 0)
        # Without JPEG's loss, so that pixels can be compared.
        image.fromarray(mosaic).save(tmp_path / f"{split}.jpg", format="PNG")
    np.savez(tmp_path / "labels.npz", **{k: v.astype(np.uint8) for k, v in labels.items()})
    assert_is_cifar(images.load("cifar100", tmp_path))


class Trap:
    def __reduce__(self):
        return print, ("a data file ran code",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"data": Trap(), "fine_labels": []}, protocol=2), "not part of an array"),
        (pickle.dumps({"data": np.zeros((2, 5), np.uint8)}, protocol=2), "not a CIFAR-100 file"),
        (b"no pickle", "not a CIFAR-100 file"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, capsys, content, words):
    (tmp_path / "train").write_bytes(content)
    (tmp_path / "test").write_bytes(content)
    with pytest.raises(CommandError, match=words):
        images.load("cifar100", tmp_path)
    assert "ran code" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(TRAIN - 1), "one label an image, got 30 images and 29 labels"),
        (np.full(TRAIN, 100), r"labels must be in \[0, 100\)"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, labels, words):
    pixels, _ = cifar_pixels(TRAIN, 0)
    for split in ("train", "test"):
        (tmp_path / split).write_bytes(python2_pickle(pixels, labels))
    with pytest.raises(CommandError, match=words):
        images.load("cifar100", tmp_path)


def test_a_broken_archive_is_refused(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"no archive")
    with pytest.raises(CommandError, match="must be CIFAR-100's python archive"):
        images.load("cifar100", tmp_path)

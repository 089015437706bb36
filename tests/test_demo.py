"""The demo: its images, one training run, its tables, and the command from end to end."""

import io
import json
import pickle
import statistics
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch

import emp_kernels as emp
from emp_kernels.cli import experiment, images, main, provenance, summary
from emp_kernels.cli.requirements import CommandError, require_packages

RANDOM, LFL, EMP = experiment.methods(1.0)

pytestmark = pytest.mark.usefixtures("one_thread")


def stripes(n: int = 90, classes: int = 3) -> images.Images:
    """A tiny learnable set: noisy 6x6 images with a bright row that depends on the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    pixels = torch.randn(n, 1, 6, 6, generator=generator)
    pixels[torch.arange(n), 0, 2 * labels] += 3
    return images.Images("stripes", pixels, labels, pixels, labels, classes, 1, False)


# Images


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


# One run


@pytest.mark.parametrize(("shift", "flip"), [(0, False), (1, False), (2, True), (0, True)])
def test_augmentation_shifts_and_mirrors_each_image(shift, flip):
    batch = torch.arange(40 * 2 * 5 * 4, dtype=torch.float32).reshape(40, 2, 5, 4) + 1
    out = experiment.augmented(batch, shift, flip, torch.Generator().manual_seed(3))
    assert out.shape == batch.shape
    padded = torch.nn.functional.pad(batch, [shift] * 4)
    seen = set()
    for image, source in zip(out, padded, strict=True):
        candidates = {
            (down, across, mirrored): window.flip(-1) if mirrored else window
            for down in range(2 * shift + 1)
            for across in range(2 * shift + 1)
            for mirrored in ((False, True) if flip else (False,))
            for window in [source[:, down : down + 5, across : across + 4]]
        }
        seen.update(key for key, window in candidates.items() if torch.equal(image, window))
        assert any(torch.equal(image, window) for window in candidates.values())
    assert len(seen) > 0.5 * (2 * shift + 1) ** 2 * (2 if flip else 1)


class Watched(experiment.Method):
    """A method that notes which ids each step trained, and the scores before and after it."""

    def __init__(self, method: experiment.Method) -> None:
        super().__init__(method.name, method.beta)
        object.__setattr__(self, "steps", [])

    def loss(self, logits, batch, state):
        before = state.score.clone()
        loss = super().loss(logits, batch, state)
        after = state.score.clone()
        self.steps.append((batch.ids, logits.detach(), batch.labels, before, after))
        return loss


RECIPE = experiment.Recipe(epochs=4, batch_size=16)


@pytest.mark.parametrize("method", [RANDOM, LFL, EMP], ids=lambda method: method.name)
def test_a_run_follows_the_stale_protocol(method):
    data, keep, n, kept = stripes(), 0.3, 90, 27
    watched = Watched(method)
    run = experiment.run(watched, keep, 5, data, RECIPE)

    sizes = [len(ids) for ids, *_ in watched.steps]
    assert sizes == [16, 16, 16, 16, 16, 10] + 3 * [16, 11]
    assert run.steps == len(sizes) == RECIPE.steps(n, keep)
    assert run.samples_trained == sum(sizes) == n + 3 * kept
    trained = torch.cat([ids for ids, *_ in watched.steps])
    assert torch.equal(run.state.selections, torch.bincount(trained, minlength=n).int())
    assert torch.equal(trained[:n].sort().values, torch.arange(n))

    epochs = [watched.steps[6:8], watched.steps[8:10], watched.steps[10:12]]
    drawn = [torch.cat([ids for ids, *_ in epoch]) for epoch in epochs]
    for ids, epoch in zip(drawn, epochs, strict=True):
        assert len(ids.unique()) == kept
        assert not torch.equal(ids, ids.sort().values)  # shuffled
        if method.beta is not None:
            by_score = epoch[0][3].double().argsort(descending=True, stable=True)[:kept]
            assert torch.equal(ids.sort().values, by_score.sort().values)
    if method.beta is None:
        assert len({tuple(ids.sort().values.tolist()) for ids in drawn}) == 3
        assert run.state.updates.sum() == 0
        return

    assert torch.equal(run.state.updates, run.state.selections)
    assert run.state.epoch == RECIPE.epochs
    for ids, logits, labels, before, after in watched.steps:  # only the trained are refreshed
        p = logits.double().softmax(1)
        loss = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
        want = before.double()
        want[ids] = loss - method.beta * (p * p.log()).sum(1)
        torch.testing.assert_close(after.double(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.01])
def test_steps_are_equal_for_every_method(keep):
    data = stripes()
    runs = [experiment.run(method, keep, 0, data, RECIPE) for method in (RANDOM, LFL, EMP)]
    assert len({run.steps for run in runs}) == 1
    assert len({run.samples_trained for run in runs}) == 1


def test_methods_that_keep_everything_are_the_same_run():
    data = stripes()
    runs = [experiment.run(method, 1.0, 2, data, RECIPE) for method in (RANDOM, LFL, EMP)]
    assert len({run.accuracy for run in runs}) == 1
    torch.testing.assert_close(runs[1].state.loss, runs[2].state.loss, rtol=0, atol=0)
    for run in runs:
        assert run.state.selections.tolist() == [4] * 90


def test_a_run_repeats_and_leaves_the_global_generator_alone():
    data = stripes()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = experiment.run(EMP, 0.3, 1, data, RECIPE)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other = (experiment.run(EMP, 0.3, seed, data, RECIPE) for seed in (1, 2))
    for name in ("score", "updates", "selections"):
        assert torch.equal(getattr(first.state, name), getattr(again.state, name))
        assert not torch.equal(getattr(first.state, name), getattr(other.state, name))
    assert first.accuracy == again.accuracy


def test_a_run_learns():
    run = experiment.run(EMP, 0.5, 0, stripes(), experiment.Recipe(epochs=12, batch_size=16))
    assert run.accuracy > 90


def test_accuracy_is_the_share_of_correct_images(monkeypatch):
    monkeypatch.setattr(experiment, "EVALUATION_BATCH", 7)
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 5
    want = 100 * np.mean(logits.numpy().argmax(1) == labels.numpy())
    assert experiment.accuracy(torch.nn.Identity(), logits, labels) == pytest.approx(want)


# Tables


def rows_for(methods=("random", "LFL", "EMP"), seeds=(0, 1, 2)) -> list[dict]:
    betas = {"random": None, "LFL": 0.0, "EMP": 1.0}
    common = {
        "data": "digits",
        "epochs": 3,
        "threads": 1,
        "machine": {"cpu": "a processor", "cpus": 2, "gpus": []},
        "versions": {"python": "3.11.7", "triton": None},
        "commit": "0123456789abcdef",
    }
    return [
        {
            "method": method,
            "beta": betas[method],
            "keep": keep,
            "seed": seed,
            "accuracy": 90 + 7 * keep + seed * (i + 1),
            "steps": round(1000 * keep),
            "seconds": 10 * keep + seed,
        }
        | common
        for seed in seeds
        for keep in (1.0, 0.3)
        for i, method in enumerate(methods)
    ]


def test_the_table_gives_mean_and_sample_deviation():
    rows = rows_for()
    headings, lines = summary.table(rows)
    assert headings == [
        "keep",
        "steps",
        "random",
        "loss only (LFL)",
        "EMP (β = 1)",
        "s a run, EMP",
    ]
    assert [line[:2] for line in lines] == [["1", "1,000"], ["0.3", "300"]]
    for line, keep in zip(lines, (1.0, 0.3), strict=True):
        for text, method in zip(line[2:5], ("random", "LFL", "EMP"), strict=True):
            values = [r["accuracy"] for r in rows if (r["keep"], r["method"]) == (keep, method)]
            assert text == f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
        assert line[5] == f"{10 * keep + 1:.1f}"


def test_the_table_of_a_demo_under_way():
    rows = rows_for(seeds=(0,))[:4]
    titles = {"random": "random", "LFL": "L", "EMP": "E"}
    assert summary.table(rows[:1], titles) == (
        ["keep", "steps", "random", "L", "E", "s a run, EMP"],
        [["1", "1,000", "97.0", "-", "-", "-"]],
    )
    assert summary.table(rows)[1] == [
        ["1", "1,000", "97.0", "97.0", "97.0", "10.0"],
        ["0.3", "300", "92.1", "-", "-", "-"],
    ]


def test_the_origin_names_machine_versions_commit_and_seeds():
    text = summary.origin(rows_for())
    for part in ("a processor, 2 cores", "python 3.11.7", "seeds 0, 1, 2", "commit 0123456789ab"):
        assert part in text
    assert "triton" not in text
    assert "uncommitted" not in text
    rows = [row | {"commit": "0123456789abcdef-dirty"} for row in rows_for()]
    assert "commit 0123456789ab with uncommitted changes" in summary.origin(rows)


@pytest.mark.parametrize("name", ["data", "machine", "versions", "commit", "epochs", "threads"])
def test_rows_of_several_origins_make_no_table(name):
    rows = rows_for()
    rows[-1][name] = "another"
    with pytest.raises(ValueError, match=f"rows must come from one {name}"):
        summary.markdown(rows)


# The command


def test_the_demo_from_end_to_end(tmp_path):
    for package in ("sklearn", "rich", "matplotlib"):
        pytest.importorskip(package)  # optional packages
    out = tmp_path / "new" / "folder"
    command = [sys.executable, "-m", "emp_kernels", "demo", "--epochs", "2", "--seeds", "0", "1"]
    done = subprocess.run(
        [*command, "--keep", "1,0.3", "--beta", "2", "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    runs = [(row["seed"], row["keep"], row["method"], row["beta"]) for row in rows]
    methods = (("random", None), ("LFL", 0.0), ("EMP", 2.0))
    assert runs == [(s, k, *m) for s in (0, 1) for k in (1.0, 0.3) for m in methods]
    for row in rows:
        kept = {1.0: 1297, 0.3: 389}[row["keep"]]
        assert row["samples_trained"] == 1297 + kept
        assert row["steps"] == 41 + -(-kept // 32)
        assert 10 <= row["accuracy"] <= 100
        assert row["seconds"] > 0
        assert row["machine"] == provenance.machine()
        assert row["versions"]["torch"] == torch.__version__
        assert row["versions"]["emp_kernels"] == emp.__version__
        assert (row["backend"] is None) == (row["method"] == "random")
    headings, lines = summary.table(rows)
    for cell in (*headings, *(cell for line in lines for cell in line)):
        assert cell in done.stdout
    for name in ("accuracy_against_keep", "training_counts", "loss_entropy_plane"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{name}.png" in done.stdout.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--keep", "0"], "--keep: must be a share in (0, 1], got 0"),
        (["demo", "--keep", "1.5"], "--keep: must be a share in (0, 1], got 1.5"),
        (["demo", "--keep", "nan"], "--keep: must be a share in (0, 1], got nan"),
        (["demo", "--keep", "0.5,much"], "--keep: must be a number, got 'much'"),
        (["demo", "--keep", ","], "--keep: must name at least one value"),
        (["demo", "--beta", "inf"], "--beta: must be finite, got inf"),
        (["demo", "--seeds", "-1"], "--seeds: must be an integer from 0, got '-1'"),
        (["demo", "--seeds", "0.5"], "--seeds: must be an integer from 0, got '0.5'"),
        (["demo", "--epochs", "0"], "--epochs: must be an integer from 1, got '0'"),
        (["demo", "--data", "mnist"], "--data: invalid choice: 'mnist'"),
        (["demo", "--data", "cifar100"], "--data cifar100 needs --data-dir"),
        (["demo", "--data", "cifar100", "--data-dir", "{tmp}/none"], "--data-dir must exist"),
        (["demo", "--data", "cifar100", "--data-dir", "{tmp}"], "--data-dir must hold"),
        (["demo", "--out", "{tmp}/file/folder"], "--out must be a folder to write into"),
        ([], "the following arguments are required: command"),
        (["train"], "invalid choice: 'train'"),
    ],
)
def test_wrong_arguments_are_one_clear_line(tmp_path, capsys, arguments, words):
    (tmp_path / "file").write_text("")
    try:
        status = main([argument.format(tmp=tmp_path) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr().err
    assert status in (1, 2)
    assert words in captured
    assert "Traceback" not in captured


@pytest.mark.parametrize(
    ("module", "package"),
    [("rich", "rich"), ("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")],
)
def test_a_demo_without_its_packages_says_what_to_install(monkeypatch, capsys, module, package):
    for other in {"rich", "matplotlib", "sklearn"} - {module}:
        pytest.importorskip(other)  # optional packages
    monkeypatch.setitem(sys.modules, module, None)  # cannot be found
    assert main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.err.endswith(f"; install with: pip install {package}\n")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_missing_package_is_one_line_with_its_command():
    with pytest.raises(CommandError) as error:
        require_packages("demo", "json", "no_such_package", "no_such_other")
    assert str(error.value) == (
        "demo needs no_such_package no_such_other; "
        "install with: pip install no_such_package no_such_other"
    )

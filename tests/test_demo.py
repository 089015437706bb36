"""The demo: one training run, its tables, and the command from end to end."""

import io
import json
import os
import re
import statistics
import subprocess
import sys

import numpy as np
import pytest
import torch

import emp_kernels as emp
from emp_kernels.cli import main
from emp_kernels.experiments import images, methods, provenance, summary, training
from emp_kernels.terminal.requirements import CommandError, require_packages

RANDOM, LFL, EMP = methods.demo_methods(1.0)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::emp_kernels.EMPWarning"),  # a method that scores nothing too
]


def stripes(n: int = 90, classes: int = 3) -> images.Images:
    """A tiny learnable set: noisy 6x6 images with a bright row that depends on the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    pixels = torch.randn(n, 1, 6, 6, generator=generator)
    pixels[torch.arange(n), 0, 2 * labels] += 3
    return images.Images("stripes", pixels, labels, pixels, labels, classes, 1, False)


# One run


@pytest.mark.parametrize(("shift", "flip"), [(0, False), (1, False), (2, True), (0, True)])
def test_augmentation_shifts_and_mirrors_each_image(shift, flip):
    batch = torch.arange(40 * 2 * 5 * 4, dtype=torch.float32).reshape(40, 2, 5, 4) + 1
    out = images.augmented(batch, shift, flip, torch.Generator().manual_seed(3))
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


class Watched(methods.Method):
    """A method that records the ids of each step, and the scores before and after it."""

    def __init__(self, method: methods.Method) -> None:
        super().__init__(method.name, method.beta)
        object.__setattr__(self, "steps", [])

    def loss(self, logits, batch, state):
        before = state.score.clone()
        loss = super().loss(logits, batch, state)
        after = state.score.clone()
        self.steps.append((batch.ids, logits.detach(), batch.labels, before, after))
        return loss


RECIPE = methods.Recipe(epochs=4, batch_size=16)


@pytest.mark.parametrize("method", [RANDOM, LFL, EMP], ids=lambda method: method.name)
def test_a_run_follows_the_stale_protocol(method):
    data, keep, n, kept = stripes(), 0.3, 90, 27
    watched = Watched(method)
    run = training.run(watched, keep, 5, data, RECIPE)

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
    runs = [training.run(method, keep, 0, data, RECIPE) for method in (RANDOM, LFL, EMP)]
    assert len({run.steps for run in runs}) == 1
    assert len({run.samples_trained for run in runs}) == 1


def test_methods_that_keep_everything_are_the_same_run():
    data = stripes()
    runs = [training.run(method, 1.0, 2, data, RECIPE) for method in (RANDOM, LFL, EMP)]
    assert len({run.accuracy for run in runs}) == 1
    torch.testing.assert_close(runs[1].state.loss, runs[2].state.loss, rtol=0, atol=0)
    for run in runs:
        assert run.state.selections.tolist() == [4] * 90


def test_a_run_repeats_and_leaves_the_global_generator_alone():
    data = stripes()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = training.run(EMP, 0.3, 1, data, RECIPE)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other = (training.run(EMP, 0.3, seed, data, RECIPE) for seed in (1, 2))
    for name in ("score", "updates", "selections"):
        assert torch.equal(getattr(first.state, name), getattr(again.state, name))
        assert not torch.equal(getattr(first.state, name), getattr(other.state, name))
    assert first.accuracy == again.accuracy


def test_a_run_learns():
    run = training.run(EMP, 0.5, 0, stripes(), methods.Recipe(epochs=12, batch_size=16))
    assert run.accuracy > 90


def test_accuracy_is_the_share_of_correct_images(monkeypatch):
    monkeypatch.setattr(training, "EVALUATION_BATCH", 7)
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 5
    want = 100 * np.mean(logits.numpy().argmax(1) == labels.numpy())
    assert training.accuracy(torch.nn.Identity(), logits, labels) == pytest.approx(want)


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


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_demo_fits_the_terminal(tmp_path, columns):
    """Without a terminal there is one line per run; an earlier demo's files are kept."""
    for package in ("sklearn", "rich", "matplotlib"):
        pytest.importorskip(package)  # optional packages
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "rows.jsonl").write_text("earlier\n")
    done = subprocess.run(
        [sys.executable, "-m", "emp_kernels", "demo", "--epochs", "1", "--seeds", "3", "--keep"]
        + [".5", "--out", "demo"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": str(columns)},
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("wrote ")) <= columns
    assert (tmp_path / "demo" / "rows.jsonl").read_text() == "earlier\n"
    rows = [json.loads(line) for line in (tmp_path / "demo-2" / "rows.jsonl").open()]
    for i, row in enumerate(rows):
        words = f"{i + 1}/3 {row['method']}, keep 0.5, seed 3: {row['accuracy']:.1f} %"
        assert lines.count(words) == 1
    _, (cells,) = summary.table(rows)
    for cell in cells:
        assert any(cell in line for line in lines)


def test_a_terminal_gets_a_table_and_bars(monkeypatch):
    """At any width, without a line per run; the final output has only the table."""
    console = pytest.importorskip("rich.console")
    from emp_kernels.experiments import display

    plan = [(method, 0.3, 0) for method in (RANDOM, LFL, EMP)]
    rows = [row | {"keep": 0.3, "seed": 0} for row in rows_for(seeds=(0,))[3:6]]
    for width in (40, 120):
        drawn = io.StringIO()
        terminal = console.Console(file=drawn, force_terminal=True, width=width, color_system=None)
        monkeypatch.setattr(display, "Console", lambda terminal=terminal: terminal)
        with display.Display(stripes(), RECIPE, plan) as shown:
            for i, (method, keep, seed) in enumerate(plan):
                step = shown.start(method, keep, seed)
                step()
                shown.live.refresh()
                shown.show(rows[: i + 1])
        text = re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", drawn.getvalue())
        assert "1/3 random" not in text
        assert "keep 0.3, seed 0" in text
        assert max(map(len, text.replace("\r", "\n").splitlines())) <= width
        _, (cells,) = summary.table(rows)
        for cell in cells:
            assert cell in text


def test_the_demo_from_end_to_end(tmp_path):
    for package in ("rich", "matplotlib"):
        pytest.importorskip(package)  # optional packages
    out = tmp_path / "new" / "folder"
    command = [sys.executable, "-m", "emp_kernels", "demo", "--epochs", "2", "--seeds", "0", "1"]
    done = subprocess.run(
        [*command, "--keep", "1,0.3", "--beta", "2", "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
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
        (["demo", "--keep", "0"], "--keep must be a share in (0, 1], got 0"),
        (["demo", "--keep", "1.5"], "--keep must be a share in (0, 1], got 1.5"),
        (["demo", "--keep", "nan"], "--keep must be a share in (0, 1], got nan"),
        (["demo", "--keep", "0.5,much"], "--keep must be a number, got 'much'"),
        (["demo", "--keep", ","], "--keep must name at least one value"),
        (["demo", "--beta", "inf"], "--beta must be finite, got inf"),
        (["demo", "--seeds", "-1"], "--seeds must be an integer from 0, got '-1'"),
        (["demo", "--seeds", "0.5"], "--seeds must be an integer from 0, got '0.5'"),
        (["demo", "--epochs", "0"], "--epochs must be an integer from 1, got '0'"),
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
    assert captured.startswith(f"emp_kernels{' demo' * (arguments[:1] == ['demo'])}: ")
    assert captured.count("\n") == 1


@pytest.mark.parametrize("module", ["rich", "matplotlib"])
def test_a_demo_without_its_packages_says_what_to_install(monkeypatch, capsys, module):
    for other in {"rich", "matplotlib"} - {module}:
        pytest.importorskip(other)  # optional packages
    monkeypatch.setitem(sys.modules, module, None)  # cannot be found
    assert main(["demo"]) == 2
    captured = capsys.readouterr()
    assert captured.err.endswith(f"; install with: pip install {module}\n")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_missing_package_is_one_line_with_its_command():
    with pytest.raises(CommandError) as error:
        require_packages("demo", "json", "no_such_package", "no_such_other")
    assert str(error.value) == (
        "demo needs no_such_package no_such_other; "
        "install with: pip install no_such_package no_such_other"
    )

"""``python -m emp_kernels rank``: files of every format give the same results as emp.rank of their
arrays."""

import csv
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import emp_kernels as emp
from emp_kernels import ranking
from emp_kernels.cli import main
from emp_kernels.cli.ranking import partial, progress
from emp_kernels.cli.ranking.inputs import files_of
from emp_kernels.cli.ranking.summary import Summary

N, C = 700, 6
GENERATOR = torch.Generator().manual_seed(2)
LOGITS = 3 * torch.randn(N, C, generator=GENERATOR)
LABELS = torch.randint(C, (N,), generator=GENERATOR)
LOGITS[400:500], LABELS[400:500] = LOGITS[:100].clone(), LABELS[:100].clone()  # ties


DRAW = Summary.draw


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    """Blocks that differ from the files, and no picture, which would take most of the time."""
    monkeypatch.setattr(Summary, "draw", lambda summary, path: True)
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 64 * C * 4)
    monkeypatch.setattr(ranking, "BLOCK_ROWS", 90)
    monkeypatch.chdir(tmp_path)


def safetensors_file(path, tensors):
    pytest.importorskip("safetensors.torch").save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, path
    )


def parquet_file(path, columns, **options):
    table = pytest.importorskip("pyarrow").table(columns)
    pytest.importorskip("pyarrow.parquet").write_table(table, path, **options)


def list_column(tensor, fixed):
    pyarrow = pytest.importorskip("pyarrow")
    if fixed:
        return pyarrow.FixedSizeListArray.from_arrays(tensor.flatten().numpy(), tensor.shape[1])
    return pyarrow.array(list(tensor.numpy()))


def npy_file(path, tensor, order="C"):
    np.save(path, np.asarray(tensor.numpy(), order=order))


LOGIT_FILES = {
    "npy": ("z.npy", npy_file),
    "fortran npy": ("z.npy", lambda path, z: npy_file(path, z, "F")),
    "npz": ("z.npz", lambda path, z: np.savez(path, other=np.zeros(3), logits=z.numpy())),
    "fortran npz": ("z.npz", lambda path, z: np.savez(path, z=np.asfortranarray(z.numpy()))),
    "compressed npz": ("z.npz", lambda path, z: np.savez_compressed(path, z.numpy())),
    "pt": ("z.pt", lambda path, z: torch.save(z, path)),
    "pt of a view": ("z.pt", lambda path, z: torch.save(torch.cat([z, z], 1)[:, :C], path)),
    "pt of several": ("z.pt", lambda path, z: torch.save({"logits": z, "epoch": 3}, path)),
    "old pt": ("z.pt", lambda path, z: torch.save(z, path, _use_new_zipfile_serialization=False)),
    "safetensors": (
        "z.safetensors",
        lambda path, z: safetensors_file(
            path, {"a": LABELS, "logits": z, "odd": LABELS[:3].clone()}
        ),
    ),
    "parquet": ("z.parquet", lambda path, z: parquet_file(path, {"x": list_column(z, False)})),
    "parquet of fixed lists": (
        "z.parquet",
        lambda path, z: parquet_file(path, {"x": list_column(z, True)}, row_group_size=111),
    ),
    "parquet of columns": (
        "z.parquet",
        lambda path, z: parquet_file(
            path, {"id": range(N)} | {str(c): z[:, c].numpy() for c in range(C)}, row_group_size=200
        ),
    ),
}
LABEL_FILES = {
    "npy": ("y.npy", npy_file),
    "npz": ("y.npz", lambda path, y: np.savez_compressed(path, labels=y.int().numpy(), a=1)),
    "pt": ("y.pt", lambda path, y: torch.save(y.to(torch.uint8), path)),
    "safetensors": (
        "y.safetensors",
        lambda path, y: safetensors_file(path, {"label": y.short(), "x": y}),
    ),
    "parquet": (
        "y.parquet",
        lambda path, y: parquet_file(path, {"x": np.ones(N), "y": y.numpy()}, row_group_size=99),
    ),
}


def ranked(*arguments):
    """The ids that the command writes."""
    assert main(["rank", *map(str, arguments), "--out", "out/ids.npy"]) == 0
    assert {path.name for path in Path("out").iterdir()} - {"ids.png"} == {"ids.npy"}
    ids = np.load("out/ids.npy")
    assert ids.dtype == np.int64
    return torch.from_numpy(ids)


@pytest.mark.parametrize("kind", LOGIT_FILES)
def test_files_of_logits(kind):
    name, write = LOGIT_FILES[kind]
    write(Path(name), LOGITS)
    npy_file("y.npy", LABELS)
    assert torch.equal(ranked(name, "y.npy"), emp.rank(LOGITS, LABELS).ids)


@pytest.mark.parametrize("kind", LABEL_FILES)
def test_files_of_labels(kind):
    name, write = LABEL_FILES[kind]
    npy_file("z.npy", LOGITS)
    write(Path(name), LABELS)
    want = emp.rank(LOGITS, LABELS, 0.4, per_class=True).ids
    assert torch.equal(ranked("z.npy", name, "--keep", "0.4", "--per-class"), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "npy"])
def test_dtypes(dtype, suffix):
    logits = LOGITS.to(dtype)
    if suffix == "npy" and dtype == torch.bfloat16:
        pytest.skip("NumPy has no bfloat16")
    if suffix == "pt":
        torch.save(logits, "z.pt")
    elif suffix == "npy":
        npy_file("z.npy", logits)
    else:
        safetensors_file("z.safetensors", {"z": logits})
    npy_file("y.npy", LABELS)
    assert torch.equal(ranked(f"z.{suffix}", "y.npy"), emp.rank(logits, LABELS).ids)


@pytest.mark.parametrize("by", ranking.MEASURES)
def test_options(by):
    labels = LABELS.masked_fill(torch.arange(N) % 3 == 1, -100)
    logits = LOGITS.clone()
    logits[5] = float("nan")
    npy_file("z.npy", logits)
    npy_file("y.npy", labels)
    for keep, per_class in ((0.5, False), (0.5, True), (1.0, False), (33, False)):
        options = ["--keep", keep, "--by", by, "--beta", "-2", "--ignore-index", "-100"]
        found = ranked("z.npy", "y.npy", *options, *["--per-class"] * per_class)
        named = {"by": by, "beta": -2.0, "ignore_index": -100, "per_class": per_class}
        assert torch.equal(found, emp.rank(logits, labels, keep, **named).ids)


def test_one_means_everything():
    npy_file("z.npy", LOGITS)
    npy_file("y.npy", LABELS)
    assert len(ranked("z.npy", "y.npy", "--keep", "1")) == N
    assert len(ranked("z.npy", "y.npy", "--keep", "2")) == 2
    assert len(ranked("z.npy", "y.npy", "--keep", "1e2")) == 100


def test_folders_and_patterns():
    folder = Path("shards")
    folder.mkdir()
    (folder / ".hidden.npy").write_bytes(b"")
    (folder / "README.txt").write_text("")
    cuts = [0, 130, 131, 131, 500, N]
    for i, (a, b) in enumerate(itertools.pairwise(cuts)):
        path = folder / f"z_{i}.npy"
        npy_file(path, LOGITS[a:b].half() if i == 3 else LOGITS[a:b])
    torch.save(LOGITS[:0], folder / "z_9.pt")
    for i, (a, b) in enumerate(((0, 300), (300, N))):
        npy_file(f"y_{i}.npy", LABELS[a:b])
    logits = LOGITS.clone()
    logits[131:500] = logits[131:500].half().float()
    want = emp.rank(logits, LABELS, by="el2n").ids
    assert torch.equal(ranked("shards", "y_?.npy", "--by", "el2n"), want)
    assert torch.equal(ranked("shards/z_*", "y_*.npy", "--by", "el2n"), want)
    assert [path.name for path in files_of("LOGITS", "shards")] == [
        *(f"z_{i}.npy" for i in range(5)),
        "z_9.pt",
    ]


def test_an_order_of_names_that_is_none_of_numbers_is_said(capsys):
    npy_file("y.npy", LABELS)
    for i, part in enumerate(LOGITS.split(70)):
        npy_file(f"z_{i + 1}.npy", part)  # z_10 comes before z_2
    ranked("z_*.npy", "y.npy")
    assert "in the order of names: z_10.npy before z_2.npy" in capsys.readouterr().err


def test_both_in_one_file():
    np.savez("both.npz", logits=LOGITS.numpy(), labels=LABELS.numpy())
    assert torch.equal(ranked("both.npz", "both.npz"), emp.rank(LOGITS, LABELS).ids)


@pytest.mark.parametrize("suffix", ["npy", "csv", "json", "parquet"])
@pytest.mark.parametrize("keep", [0.3, 1.0, 2])
def test_files_of_ids(suffix, keep):
    npy_file("z.npy", LOGITS)
    npy_file("y.npy", LABELS)
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    out = Path(f"ids.{suffix}")
    assert main(["rank", "z.npy", "y.npy", "--keep", str(keep), "--out", str(out)]) == 0
    if suffix == "npy":
        found = np.load(out).tolist()
    elif suffix == "csv":
        with out.open(newline="") as file:
            found = [int(row["id"]) for row in csv.DictReader(file)]
    elif suffix == "json":
        content = json.loads(out.read_text())
        assert list(content) == ["ids"]
        found = content["ids"]
    else:
        import pyarrow.parquet

        found = pyarrow.parquet.read_table(out)["id"].to_pylist()
    assert found == emp.rank(LOGITS, LABELS, keep).ids.tolist()


@pytest.mark.parametrize("suffix", ["npy", "csv", "json", "parquet"])
def test_no_rows(suffix):
    npy_file("z.npy", LOGITS[:0])
    npy_file("y.npy", LABELS[:0])
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    assert main(["rank", "z.npy", "y.npy", "--out", f"ids.{suffix}"]) == 0
    content = {
        "npy": lambda: np.load("ids.npy").tolist(),
        "csv": lambda: Path("ids.csv").read_text().splitlines()[1:],
        "json": lambda: json.loads(Path("ids.json").read_text())["ids"],
        "parquet": lambda: Path("ids.parquet").read_bytes()[4:4],
    }[suffix]()
    assert len(content) == 0


# Output


def test_the_summary_is_that_of_the_ids(capsys):
    labels = LABELS.masked_fill(LABELS == 0, -1)
    logits = LOGITS.clone()
    logits[labels.argmax()] = float("nan")
    npy_file("z.npy", logits)
    npy_file("y.npy", labels)
    ranked("z.npy", "y.npy", "--by", "margin", "--ignore-index", "-1")
    said = capsys.readouterr().out
    found = emp.rank(logits, labels, by="margin", ignore_index=-1)
    counted = int((labels >= 0).sum())
    assert said.startswith(f"kept {len(found.ids):,} of {counted:,} rows\nwith the lowest margin\n")
    assert f"\n{N - counted:,} more are ignored\n1 are invalid, never kept\n" in said
    assert f"threshold {float(found.threshold):.6g}\n" in said
    values = found.values[~found.values.isnan()].sort().values
    for share in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1):
        value = values[-1 - round((1 - share) * (len(values) - 1))]
        assert f"\n{share:>6.0%}  {float(value):.6g}\n" in said
    for c in range(1, C):
        kept, rows = int(found.kept_of_class[c]), int(found.rows_of_class[c])
        assert f"\n{c:>7} {kept:>11,} {rows:>11,} {kept / rows:>6.1%}\n" in said
    assert "\n      0 " not in said
    assert max(map(len, said.splitlines())) <= 40


def test_many_classes_are_cut_short(capsys):
    logits, labels = torch.randn(400, 90, generator=GENERATOR), torch.arange(400) % 80
    npy_file("z.npy", logits)
    npy_file("y.npy", labels)
    ranked("z.npy", "y.npy")
    table = capsys.readouterr().out.split(" share\n")[1].split("made")[0].splitlines()
    assert len(table) == 21
    assert table[10] == "    ... 60 classes between"
    shares = [float(line.rstrip("%").split()[-1]) for line in table if "..." not in line]
    assert shares == sorted(shares, reverse=True)


def test_the_picture_counts_every_row(monkeypatch):
    pytest.importorskip("matplotlib")
    from emp_kernels.cli.ranking import picture, summary

    monkeypatch.setattr(Summary, "draw", DRAW)
    seen = []
    drawn = picture.picture
    monkeypatch.setattr(picture, "picture", lambda s: seen.append((s, drawn(s))) or seen[-1][1])
    npy_file("z.npy", LOGITS)
    npy_file("y.npy", LABELS)
    found = ranked("z.npy", "y.npy")
    ((told, figure),) = seen
    values = emp.score(LOGITS, LABELS).score
    edges = np.linspace(told.low, told.high, summary.BINS + 1)
    everything, kept = (patch.get_data().values for patch in figure.axes[0].patches)
    assert everything.sum() == N
    assert kept.sum() == len(found)
    np.testing.assert_allclose(everything, np.histogram(values, edges)[0], atol=1)
    np.testing.assert_allclose(kept, np.histogram(values[found], edges)[0], atol=1)
    assert Path("out/ids.png").read_bytes().startswith(b"\x89PNG")


def test_a_line_at_times_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_A_LINE", -1)
    spans = [(10, 20), (20, 40)]
    with progress.Progress() as shown:
        assert list(shown.follow("scoring", spans, 40, 10)) == spans
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["scoring: 50 %", "scoring: 100 %"]
    assert all(re.search(r", \d:\d\d left$", line) for line in lines)


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    spans = [(0, 20), (20, 40)]
    with progress.Progress() as shown:
        assert shown.bar is not None
        for _ in shown.follow("scoring", spans, 40):
            (task,) = shown.bar.tasks
        assert (task.completed, task.total) == (40, 40)
        assert not shown.bar.tasks


def scored_files(folder, ids, values, dtype=np.float32, **columns):
    """Three files of scores, as Ray Data names and writes them."""
    Path(folder).mkdir()
    for i, rows in enumerate(np.array_split(np.arange(len(ids)), 3)):
        table = {"id": ids[rows], "score": values[rows].astype(dtype)}
        table |= {name: column[rows].astype(dtype) for name, column in columns.items()}
        parquet_file(f"{folder}/0a_{i:06}-0.parquet", table, row_group_size=70)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("keep", [0.3, 250, 1.0])
def test_files_of_scores(dtype, keep):
    """Ids that have gaps; of equal scores the lowest are kept, invalid ones never."""
    found = emp.score(LOGITS, LABELS)
    score = found.score.numpy().astype(dtype)
    score[5:9] = np.nan
    ids = np.sort(np.random.default_rng(0).permutation(9 * N)[:N])
    scored_files("scored", ids, score, dtype, loss=found.loss.numpy())
    for by, values in (("emp", score), ("loss", found.loss.numpy())):
        kept = ranked("scored", "--keep", keep, "--by", by)
        valid = int((~np.isnan(values)).sum())
        count = min(round(keep * N) if isinstance(keep, float) else keep, valid)
        order = np.argsort(-values, kind="stable")[:count]  # NaN comes last
        assert kept.tolist() == sorted(ids[order].tolist())


@pytest.mark.parametrize(
    ("ids", "arguments", "words"),
    [
        ([0, 1, 3, 2], [], "scored must hold ids that ascend from 0 on, got 2 behind 3"),
        ([0, 1, 1, 2], [], "scored must hold ids that ascend from 0 on, got 1 behind 1"),
        ([-3, 1, 2, 3], [], "scored must hold ids that ascend from 0 on, got -3 first"),
        ([0, 1, 2, 3], ["--by", "margin"], "--by must be one of emp, loss, entropy without LABELS"),
        ([0, 1, 2, 3], ["--by", "entropy"], "0.parquet must hold a column named entropy, got id, "),
        ([0, 1, 2, 3], ["--beta", "2"], "--beta needs LOGITS with LABELS"),
        ([0, 1, 2, 3], ["--per-class"], "--per-class needs LOGITS with LABELS"),
        ([0.0, 1.0, 2.0, 3.0], [], "0.parquet must hold id in integers, got"),
    ],
)
def test_faults_of_files_of_scores(ids, arguments, words, capsys):
    scored_files("scored", np.array(ids), np.ones(4))
    before = content_of(".")
    assert main(["rank", "scored", *arguments, "--out", "out/ids.npy"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("emp_kernels rank: ")
    assert words in said
    assert content_of(".") == before


def test_scores_are_in_parquet_files(capsys):
    npy_file("z.npy", LOGITS)
    assert main(["rank", "z.npy"]) == 2
    assert "z.npy must end in .parquet where LABELS are not given" in capsys.readouterr().err


# Errors


def content_of(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


def spoil(name, change):
    """Other bytes in a file."""
    Path(name).write_bytes(change(Path(name).read_bytes()))


FAULTS = {
    "nothing there": (
        ["none.npy", "y.npy"],
        None,
        "LOGITS must be a file, .*: none.npy does not exist",
    ),
    "no match": (
        ["z.npy", "e*"],
        None,
        r"LABELS must be files that exist: the pattern e\* matches",
    ),
    "an empty folder": (
        ["empty", "y.npy"],
        None,
        "LOGITS must be files: .* empty holds none of .npy",
    ),
    "another ending": (["z.txt", "y.npy"], None, "z.txt must end in one of .npy"),
    "swapped": (["y.npy", "z.npy"], None, r"y.npy must have shape \(N, C\), got \(700,\)"),
    "labels in a column": (
        ["z.npy", "y2.npy"],
        None,
        r"y2.npy must have shape \(N,\) \(as labels\[:, 0\] has\)",
    ),
    "labels of another length": (["z.npy", "y3.npy"], None, r"LABELS must have as many rows"),
    "float labels": (
        ["z.npy", "yf.npy"],
        None,
        "yf.npy must hold labels in integers, got float32",
    ),
    "wide labels": (["z.npy", "yg.npy"], None, "a dtype that torch has, got float128"),
    "words": (
        ["z.npy", "yw.npy"],
        None,
        "yw.npy must hold numbers of a dtype that torch has, got <U",
    ),
    "integer logits": (["zi.npy", "y.npy"], None, "zi.npy must hold logits in float32"),
    "a label out of range": (["z.npy", "y9.npy"], None, r"in \[0, 6\), got 9 in row 555"),
    "padding": (
        ["z.npy", "y100.npy"],
        None,
        "got -100 in row 555; --ignore-index -100 leaves such rows out",
    ),
    "an expanded pattern": (
        ["z.npy", "z.npy", "y.npy", "y2.npy"],
        None,
        "unrecognized arguments: y.npy y2.npy; put a pattern of files in quotes",
    ),
    "an unknown option": (["z.npy", "y.npy", "--best"], None, "arguments: --best; see --help"),
    "other columns": (["n", "y.npy"], None, "n/z2.npy must have the 6 columns of n/z1.npy, got 1"),
    "cut off": (["z.npy", "y.npy"], ("z.npy", lambda b: b[:-3]), "z.npy is cut off"),
    "no array": (["z.npy", "y.npy"], ("z.npy", lambda b: b[7:]), "z.npy must be an array of"),
    "objects": (["zo.npy", "y.npy"], None, "zo.npy must hold numbers of a dtype .* got object"),
    "no archive": (["z.npz", "y.npy"], ("z.npz", lambda b: b[:99]), "z.npz must be an archive"),
    "a broken archive": (
        ["z.npz", "y.npy"],
        ("z.npz", lambda b: b[:9000] + b"\xff" * 40 + b[9040:]),
        "z.npz cannot be read",
    ),
    "a broken beginning": (
        ["z.npz", "y.npy"],
        ("z.npz", lambda b: b[:200] + b"\xff" * 40 + b[240:]),
        "z.npz must be an archive of",
    ),
    "several arrays": (["z2.npz", "y.npy"], None, "one array, or one named logits, got a, b"),
    "no tensors": (["z.pt", "y.npy"], ("z.pt", lambda b: b[:99]), "z.pt must be a file of"),
    "a model": (["m.pt", "y.npy"], None, "m.pt must be a file of tensors"),
    "a list": (["l.pt", "y.npy"], None, "l.pt must hold a tensor or a mapping of tensors, got"),
    "no safetensors": (["z.safetensors", "y.npy"], None, "z.safetensors must be a file of"),
    "more rows than there are": (
        ["z.npy", "y.npy", "--keep", "701"],
        None,
        "--keep must be between 1 and the number of rows 700, got 701",
    ),
    "a number of each class": (
        ["z.npy", "y.npy", "--keep", "5", "--per-class"],
        None,
        r"--keep must be a share in \(0, 1\]",
    ),
    "another output": (["z.npy", "y.npy", "--out", "ids.txt"], None, "--out must end in one of"),
    "a folder as output": (["z.npy", "y.npy", "--out", "d.npy"], None, "--out must be a file"),
    "a file as folder": (["z.npy", "y.npy", "--out", "z.npy/i.npy"], None, "--out must be in a"),
    "its own input": (["z.npy", "y.npy", "--out", "y.npy"], None, "--out must be none of the"),
    "among its input": (["s", "y.npy", "--out", "s/i.npy"], None, "--out must be outside of"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_sentence_and_nothing_is_written(fault, capsys):
    arguments, change, words = FAULTS[fault]
    npy_file("z.npy", LOGITS)
    npy_file("zi.npy", LABELS[:, None])
    np.save("zo.npy", np.array([[None]]), allow_pickle=True)
    np.savez_compressed("z.npz", z=LOGITS.numpy())
    np.savez("z2.npz", a=LOGITS.numpy(), b=LABELS.numpy())
    torch.save(LOGITS, "z.pt")
    torch.save(torch.nn.Linear(2, 2), "m.pt")
    torch.save([LOGITS], "l.pt")
    Path("z.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{]")
    Path("z.txt").write_text("")
    for folder in ("empty", "d.npy", "s", "n"):
        Path(folder).mkdir()
    npy_file("n/z1.npy", LOGITS)
    npy_file("n/z2.npy", LOGITS[:, :1])
    npy_file("s/z.npy", LOGITS)
    npy_file("y.npy", LABELS)
    npy_file("y2.npy", LABELS[:, None])
    npy_file("y3.npy", LABELS[1:])
    npy_file("yf.npy", LABELS.float())
    np.save("yg.npy", LABELS.numpy().astype(np.longdouble))
    np.save("yw.npy", LABELS.numpy().astype(str))
    npy_file("y100.npy", LABELS.index_fill(0, torch.tensor([555]), -100))
    npy_file("y9.npy", LABELS.index_fill(0, torch.tensor([555, 600]), 9))
    if change is not None:
        spoil(*change)
    before = content_of(".")
    assert main(["rank", *arguments]) == 2
    said = capsys.readouterr()
    assert re.fullmatch(rf"emp_kernels rank: .*{words}.*\n", said.err), said.err
    assert said.out == ""
    assert content_of(".") == before


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": [[1.0, 2.0], [3.0]]}, "lists of one length, got several"),
        ({"x": [[1.0, 2.0], None]}, "a value in every row, got nulls"),
        ({"x": [1.0, 2.0]}, "a column of lists, named logits .*, got x"),
        ({"x": [[1.0], [2.0]], "z": [[1.0], [2.0]]}, "a column of lists, named logits .*x, z"),
    ],
)
def test_faults_of_parquet_files(columns, words, capsys):
    parquet_file("z.parquet", columns)
    npy_file("y.npy", LABELS[:2] * 0)
    before = content_of(".")
    assert main(["rank", "z.parquet", "y.npy"]) == 2
    assert re.fullmatch(rf"emp_kernels rank: z.parquet .*{words}\n", capsys.readouterr().err)
    assert content_of(".") == before
    Path("z.parquet").write_bytes(b"PAR1")
    assert main(["rank", "z.parquet", "y.npy"]) == 2
    assert "z.parquet must be a Parquet file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keep", "0"], "--keep must be a share in (0, 1] or a number of rows from 2 on, got 0"),
        (["--keep", "1.5"], "from 2 on, got 1.5"),
        (["--keep", "nan"], "from 2 on, got nan"),
        (["--keep", "inf"], "from 2 on, got inf"),
        (["--keep", "some"], "--keep must be a number, got 'some'"),
        (["--by", "forgetting"], "--by: invalid choice: 'forgetting'"),
        (["--ignore-index", "1.5"], "--ignore-index must be an integer, got '1.5'"),
        (["--beta", "nan"], "--beta must be finite"),
    ],
)
def test_wrong_options(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["rank", "z.npy", "y.npy", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("emp_kernels rank: ")
    assert words in said
    assert said.count("\n") == 1


def test_the_help_names_no_default_that_is_none(capsys):
    with pytest.raises(SystemExit):
        main(["rank", "--help"])
    said = capsys.readouterr().out
    assert "(default: 0.3)" in said
    assert "None" not in said
    assert "False" not in said


def test_a_folder_that_was_made_is_named(capsys):
    npy_file("z.npy", LOGITS)
    npy_file("y.npy", LABELS)
    ranked("z.npy", "y.npy")
    assert "\nmade the folder out\nwrote out/ids.npy\n" in capsys.readouterr().out
    ranked("z.npy", "y.npy")
    assert "made the folder" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["z.parquet", "y.npy"], "pyarrow"),
        (["z.npy", "y.npy", "--out", "i.parquet"], "pyarrow"),
    ],
)
def test_a_missing_reader_is_named_with_its_command(arguments, module, monkeypatch, capsys):
    npy_file("z.npy", LOGITS)
    npy_file("y.npy", LABELS)
    Path("z.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)  # cannot be found
    assert main(["rank", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"needs {module}; install with: pip install {module}\n")
    assert said.count("\n") == 1


def test_it_needs_no_optional_package():
    npy_file("z.npy", LOGITS)
    npy_file("y.npy", LABELS)
    block = (
        "import sys\n"
        "for name in ('rich', 'matplotlib', 'pyarrow', 'safetensors', 'pandas', 'tqdm'):\n"
        "    sys.modules[name] = None\n"
        "from emp_kernels.cli import main\n"
        "raise SystemExit(main(['rank', 'z.npy', 'y.npy']))"
    )
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("matplotlib; install with: pip install matplotlib\n")
    assert np.load("ids.npy").tolist() == emp.rank(LOGITS, LABELS).ids.tolist()


# Interrupted runs


class Stopped(BaseException):
    """Simulates a SIGKILL: nothing is cleaned up."""


@pytest.fixture
def blocks(monkeypatch):
    """Limits the number of blocks a run may score, as if it were killed then, and counts them."""
    counted = {"left": 10**9, "scored": 0}
    scored = ranking.keys_of

    def one(*arguments):
        if counted["left"] == 0:
            raise Stopped
        counted["left"] -= 1
        counted["scored"] += 1
        return scored(*arguments)

    monkeypatch.setattr(ranking, "keys_of", one)
    return counted


@pytest.mark.parametrize("left", [0, 1, 6, 10])
@pytest.mark.parametrize("torn", [0, 3])
def test_a_stopped_run_goes_on(left, torn, blocks, capsys):
    npy_file("z.npy", LOGITS)
    npy_file("y.npy", LABELS)
    blocks["left"] = left
    with pytest.raises(Stopped):
        ranked("z.npy", "y.npy")
    file = Path("out/ids.npy.partial")
    with file.open("ab") as content:
        content.write(b"\x7f" * torn)  # of a value that was not written whole
    blocks.update(left=10**9, scored=0)
    ids = ranked("z.npy", "y.npy", "--keep", 0.7)  # another share of the same values
    assert blocks["scored"] == -(-N // 64) - left
    assert torch.equal(ids, emp.rank(LOGITS, LABELS, 0.7).ids)
    assert (f"{left * 64:,} rows were scored before" in capsys.readouterr().err) == (left > 0)


@pytest.mark.parametrize("change", ["logits", "labels", "by", "ignore"])
def test_what_belongs_to_another_run_is_not_taken(change, blocks):
    npy_file("z.npy", LOGITS)
    npy_file("y.npy", LABELS)
    blocks["left"] = 5
    with pytest.raises(Stopped):
        ranked("z.npy", "y.npy")
    blocks.update(left=10**9, scored=0)
    logits, labels, options, named = LOGITS, LABELS, [], {}
    if change == "logits":
        npy_file("z.npy", logits := LOGITS.flip(0))
    elif change == "labels":
        npy_file("y.npy", labels := LABELS.flip(0))
    elif change == "by":
        options, named = ["--by", "loss"], {"by": "loss"}
    else:
        options, named = ["--ignore-index", "3"], {"ignore_index": 3}
    ids = ranked("z.npy", "y.npy", *options)
    assert blocks["scored"] == -(-N // 64)
    assert torch.equal(ids, emp.rank(logits, labels, **named).ids)


def test_a_run_that_is_interrupted_says_how_far_it_came(monkeypatch, capsys):
    npy_file("z.npy", LOGITS)
    npy_file("y.npy", LABELS)
    append = partial.Partial.append

    def interrupted(self, keys):
        append(self, keys)
        if self.rows == 128:
            raise KeyboardInterrupt

    monkeypatch.setattr(partial.Partial, "append", interrupted)
    assert main(["rank", "z.npy", "y.npy"]) == 130
    said = capsys.readouterr()
    assert "128 of 700 rows are scored; the same command goes on from there" in said.err
    assert {path.name for path in Path().iterdir()} == {"z.npy", "y.npy", "ids.npy.partial"}


def test_earlier_ids_stay_until_the_new_ones_are_whole(monkeypatch):
    npy_file("z.npy", LOGITS)
    npy_file("y.npy", LABELS)
    ids = ranked("z.npy", "y.npy")
    before = Path("out/ids.npy").read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    assert main(["rank", "z.npy", "y.npy", "--out", "out/ids.npy", "--keep", "0.5"]) == 1
    assert Path("out/ids.npy").read_bytes() == before
    assert not Path("out/ids.npy.new").exists()
    assert np.load("out/ids.npy").tolist() == ids.tolist()


def test_two_runs_do_not_write_one_file(capsys):
    npy_file("z.npy", LOGITS)
    npy_file("y.npy", LABELS)
    other = partial.Partial(Path("ids.npy.partial"), {"by": "other"}, torch.int32)
    assert main(["rank", "z.npy", "y.npy"]) == 1
    assert "ids.npy.partial is being written by another process" in capsys.readouterr().err
    other.close(finished=True)
    assert main(["rank", "z.npy", "y.npy"]) == 0


@pytest.mark.parametrize("suffix", ["npy", "pt", "safetensors"])
def test_memory_does_not_grow_with_the_files(suffix):
    """400 MB of logits with less than half of that memory besides the package's own."""
    rows, classes = 1_000_000, 100
    if suffix == "npy":
        np.lib.format.open_memmap("z.npy", "w+", np.float32, (rows, classes)).flush()
    elif suffix == "pt":
        torch.save(torch.zeros(rows, classes), "z.pt")
    else:
        safetensors_file("z.safetensors", {"z": torch.zeros(rows, classes)})
    np.save("y.npy", np.zeros(rows, np.int64))
    program = (
        "import resource, sys\n"
        "from emp_kernels.cli import main\n"
        "import matplotlib.figure, pyarrow.parquet, torch\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"assert main(['rank', 'z.{suffix}', 'y.npy', '--keep', '0.5']) == 0\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(grown)"
    )
    for package in ("matplotlib", "pyarrow"):
        pytest.importorskip(package)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 200_000  # KiB
    assert np.array_equal(np.load("ids.npy"), np.arange(rows // 2))

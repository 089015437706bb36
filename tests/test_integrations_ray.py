"""Ray Data: scores as of one process, and the exact top k of files whose scores nobody collects."""

import logging
import shutil

import numpy as np
import pytest
import torch

import emp_kernels as emp
from emp_kernels.cli import main

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "ray[data]"')
pytest.importorskip("ray.data")
from emp_kernels.integrations import ray as on_ray  # noqa: E402

N, C, D = 900, 7, 4
GENERATOR = torch.Generator().manual_seed(0)
HIDDEN = (2 * torch.randn(N, 3, D, generator=GENERATOR)).round()  # of which many are equal
LABELS = torch.randint(C, (N, 3), generator=GENERATOR)
LABELS[torch.rand(N, 3, generator=GENERATOR) < 0.3] = -100
LABELS[:20] = -100
HIDDEN[50:55] = torch.nan
WEIGHT = torch.randn(C, D, generator=GENERATOR)


class InProcess:
    """What `select` needs of a Dataset, over tables in this process: quick, for many cases."""

    def __init__(self, tables, work=None):
        self.tables, self.work = tables, work

    def map_batches(self, function, *, fn_kwargs, batch_size, batch_format):
        assert batch_format == "pyarrow"
        pieces = [
            table.slice(i, batch_size)
            for table in self.tables
            for i in range(0, max(1, len(table)), batch_size)
        ]
        return InProcess([function(piece, **fn_kwargs) for piece in pieces])

    def select_columns(self, names):
        return InProcess([table.select(names) for table in self.tables])

    def columns(self):
        return self.tables[0].column_names

    def schema(self):
        return type("Schema", (), {"base_schema": self.tables[0].schema})

    def iter_batches(self, *, batch_size, batch_format):
        assert (batch_size, batch_format) == (None, "numpy")
        yield from self.tables


@pytest.fixture
def in_process(monkeypatch):
    """Small pieces; the blocks of a data set as tables of one process."""
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(on_ray.ray.data, "Dataset", InProcess)
    monkeypatch.setattr(on_ray, "ROWS_AT_ONCE", 70)

    def made(ids, values, blocks=5, name="score"):
        parts = np.array_split(np.arange(len(ids)), blocks)
        tables = [{"id": ids[rows], name: values[rows], "x": -ids[rows]} for rows in parts]
        return InProcess([pyarrow.table(table) for table in tables])

    return made


def highest(ids, values, keep):
    """Ids of the rows to keep, by one stable sort: the lowest ids of equal scores, NaN never."""
    order = np.argsort(ids)
    valid = order[~np.isnan(values[order])]
    count = max(1, round(keep * len(ids))) if isinstance(keep, float) else keep
    chosen = valid[np.argsort(-values[valid], kind="stable")][:count]
    return np.sort(ids[chosen])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("kind", ["spread", "tied", "alike", "special"])
@pytest.mark.parametrize("large", [1, 10**11])
def test_the_exact_top_k(in_process, dtype, kind, large):
    rng = np.random.default_rng(1)
    ids = rng.permutation(3 * N)[:N] * large
    values = rng.standard_normal(N)
    if kind == "tied":
        values = (2 * values).round()
    elif kind == "alike":
        values = np.zeros(N)
    elif kind == "special":
        values = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], N)
    values = values.astype(dtype)
    for keep in (0.3, 1, 333, N, 1.0):
        kept = on_ray.select(in_process(ids, values), keep)
        found = [table["id"].to_numpy() for table in kept.rows.tables]
        others = [table["x"].to_numpy() for table in kept.rows.tables]
        want = highest(ids, values, keep)
        assert np.array_equal(np.sort(np.concatenate(found)), want)
        assert np.array_equal(np.concatenate(others), -np.concatenate(found))
        assert kept.num_kept == len(want)
        assert kept.num_invalid == np.isnan(values).sum()
        if len(want):
            assert kept.threshold == values[np.isin(ids, want)].min()


def test_rows_that_are_not_there(in_process):
    nothing = in_process(np.zeros(0, np.int64), np.zeros(0, np.float32), 1)
    kept = on_ray.select(nothing, 0.3)
    assert kept.num_kept == sum(map(len, kept.rows.tables)) == 0
    invalid = in_process(np.arange(9), np.full(9, np.nan, np.float32))
    kept = on_ray.select(invalid, 4)
    assert (kept.num_kept, kept.num_invalid) == (0, 9)
    assert np.isnan(kept.threshold)
    assert sum(map(len, kept.rows.tables)) == 0


@pytest.mark.parametrize(
    ("ids", "values", "keep", "error", "words"),
    [
        (np.arange(9) - 3, np.ones(9), 0.3, ValueError, "ids must be at least 0, got -3"),
        (np.arange(9.0), np.ones(9), 0.3, TypeError, "id must be a column of integers, got float"),
        (np.arange(9), np.arange(9), 0.3, TypeError, "score must be a column of floats, got int"),
        (np.arange(9), np.ones(9), 10, ValueError, "keep must be between 1 and the number of rows"),
        (np.arange(9), np.ones(9), 1.5, ValueError, "keep must be in"),
    ],
)
def test_what_select_refuses(in_process, ids, values, keep, error, words):
    with pytest.raises(error, match=f"select: {words}"):
        on_ray.select(in_process(ids, values), keep)
    if error is ValueError:
        with pytest.raises(
            ValueError, match="select: dataset must have the column loss, got id, s"
        ):
            on_ray.select(in_process(ids, values), 0.3, by="loss")
        with pytest.raises(TypeError, match=r"select: dataset must be a ray.data.Dataset, got int"):
            on_ray.select(3, 0.3)


def made():
    head = torch.nn.Linear(D, C, bias=False)
    head.weight.data = WEIGHT
    return (lambda batch: torch.tensor(batch["hidden"]).view(-1, 3, D)), head


def test_a_batch_is_scored_as_by_one_call():
    batch = {"id": np.arange(N), "hidden": HIDDEN.flatten(1).numpy(), "labels": LABELS.numpy()}
    sequences = on_ray.Scorer(made, ignore_index=-100)(batch)
    tokens = emp.score_linear(HIDDEN, WEIGHT, LABELS, ignore_index=-100).score
    counted = LABELS != -100
    rows = counted.any(1).nonzero()[:, 0]
    want = torch.where(counted, tokens, 0).sum(1)[rows] / counted.sum(1)[rows]
    assert sequences["id"].tolist() == rows.tolist()
    invalid = torch.isin(rows, torch.arange(50, 55))  # no token of theirs is valid
    assert torch.equal(torch.from_numpy(sequences["score"]).isnan(), invalid)
    np.testing.assert_allclose(sequences["score"], want.masked_fill(invalid, torch.nan), rtol=1e-5)

    logits = HIDDEN[:, 0] @ WEIGHT.t()
    labels = LABELS[:, 0]
    batch |= {"y": labels.numpy(), "labels": None}
    scorer = on_ray.Scorer(lambda: (lambda batch: logits, None), "id", "y", 0.5, -100)
    scores, rows = emp.score(logits, labels, beta=0.5, ignore_index=-100), labels != -100
    found = scorer(batch)
    for name in ("score", "loss", "entropy"):
        np.testing.assert_array_equal(found[name], getattr(scores, name)[rows])
    with pytest.raises(TypeError, match="write_scores: y must be a column of integers, got float"):
        scorer(batch | {"y": labels.double().numpy()})


@pytest.fixture(scope="module")
def cluster():
    options = {"include_dashboard": False, "log_to_driver": False, "num_cpus": 2}
    ray.init(**options, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_files_are_written_in_order_and_the_command_takes_them(tmp_path):
    """On Ray itself, on this machine; ids that are not those of the rows' places."""
    ids = torch.arange(N) * 3
    rows = {"id": ids.numpy(), "hidden": HIDDEN.flatten(1).numpy(), "labels": LABELS.numpy()}
    blocks = [
        {name: column[i : i + 130] for name, column in rows.items()} for i in range(0, N, 130)
    ]
    dataset = ray.data.from_items(
        [{k: v[i] for k, v in block.items()} for block in blocks for i in range(len(block["id"]))],
        override_num_blocks=6,
    )
    path = tmp_path / "scores"
    for wrong, words in (({"id_column": "key"}, "the column key"), ({"actors": 0}, "at least 1")):
        with pytest.raises(ValueError, match=f"write_scores: .*{words}"):
            on_ray.write_scores(dataset, made, str(path), **wrong)
    scores = on_ray.write_scores(
        dataset, on_this_machine(), str(path), ignore_index=-100, batch_size=100
    )
    want = on_ray.Scorer(made, ignore_index=-100)(rows)
    keep = 0.4
    kept = on_ray.select(scores, keep)
    found = np.sort(kept.rows.to_pandas()["id"].to_numpy())
    assert np.array_equal(found, highest(want["id"], want["score"], keep))
    assert kept.num_invalid == np.isnan(want["score"]).sum() > 0
    out = tmp_path / "ids.npy"
    assert main(["rank", str(path), "--keep", str(keep), "--out", str(out)]) == 0
    assert np.array_equal(np.load(out), found)
    with pytest.raises(ValueError, match="already exist"):
        on_ray.write_scores(dataset, on_this_machine(), str(path), ignore_index=-100)
    shutil.rmtree(path)


def on_this_machine():
    """`made` as something that Ray sends whole: its workers cannot import this file."""
    weight, width = WEIGHT.clone(), D

    def make():
        head = torch.nn.Linear(*weight.shape[::-1], bias=False)
        head.weight.data = weight
        return (lambda batch: torch.tensor(batch["hidden"]).view(-1, 3, width)), head

    make.__module__ = "__main__"
    return make

"""rank keeps the same rows as select on all values, for every measure and block size."""

import warnings

import numpy as np
import pytest
import torch

import emp_kernels as emp
from emp_kernels import ranking

N, C = 1000, 7


def batch(dtype=torch.float32, n=N, classes=C):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, classes, generator=generator).to(dtype)
    labels = torch.randint(classes, (n,), generator=generator)
    logits[n // 2 :] = logits[: n - n // 2]  # so that values tie
    labels[n // 2 :] = labels[: n - n // 2]
    return logits, labels


def measured(logits, labels, by, **options):
    """Values with the highest first, from the public functions on all rows."""
    if by == "el2n":
        return emp.sample_statistics(logits, labels, **options).el2n
    if by == "margin":
        return -emp.sample_statistics(logits, labels, **options).margin
    scores = emp.score(logits, labels, **options)
    return getattr(scores, "score" if by == "emp" else by)


@pytest.fixture(params=[(1 << 24, 1 << 20), (7 * 4 * 64, 50)], ids=["one block", "small blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_BYTES", request.param[0])
    monkeypatch.setattr(ranking, "BLOCK_ROWS", request.param[1])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("by", ranking.MEASURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_ids_are_those_of_select(by, dtype):
    logits, labels = batch(dtype)
    values = measured(logits, labels, by)
    for keep in (0.3, 1.0, 0.0001, 1, 333, N):
        found = emp.rank(logits, labels, keep, by=by)
        want = emp.select(values, keep)
        assert torch.equal(found.ids, want)
        natural = -values if by == "margin" else values
        assert torch.equal(found.values, natural)
        last = natural[want].max() if by == "margin" else natural[want].min()
        assert found.threshold == last
        assert found.threshold.shape == ()
        assert torch.equal(found.rows_of_class, torch.bincount(labels, minlength=C))
        assert torch.equal(found.kept_of_class, torch.bincount(labels[want], minlength=C))
        assert found.num_invalid == 0


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("by", ranking.MEASURES)
def test_rows_that_do_not_count(by):
    logits, labels = batch()
    labels[::5] = -100
    logits[3] = float("nan")
    logits[4, labels[4]] = -float("inf")
    logits[6] = -float("inf")
    logits[10] = float("nan")  # not read, for it is ignored
    invalid = torch.tensor([3, 4, 6])
    counted = (labels != -100).nonzero()[:, 0]
    values = measured(logits[counted], labels[counted], by)
    values[torch.isin(counted, invalid)] = float("nan")
    for keep in (0.3, 0.99, 1.0, 400, N):
        found = emp.rank(logits, labels, keep, by=by, ignore_index=-100)
        most = len(counted) - len(invalid)
        count = min(most, keep if isinstance(keep, int) else round(keep * len(counted)))
        assert torch.equal(found.ids, counted[emp.select(values, count)])
        assert found.num_invalid == 3
        assert found.values[invalid].isnan().all()
        assert found.values[labels == -100].isnan().all()
        assert found.rows_of_class.sum() == len(counted)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("by", ["emp", "margin"])
def test_the_share_of_each_class(by):
    logits, labels = batch()
    labels[labels == 5] = 4  # a class without rows
    logits[labels == 2] = float("nan")  # one without valid rows
    logits[(labels == 3).nonzero()[:9, 0]] = float("nan")
    found = emp.rank(logits, labels, 0.99, by=by, per_class=True)
    values, kept = measured(logits, labels, by), []
    values[values.isinf() | logits.isnan().any(1)] = float("nan")
    for c in range(C):
        rows = (labels == c).nonzero()[:, 0]
        valid = rows[~values[rows].isnan()]
        count = min(len(valid), max(1, round(0.99 * len(rows)))) if len(rows) else 0
        assert found.kept_of_class[c] == count
        if count == 0:
            assert found.threshold[c].isnan()
            continue
        kept.append(valid[emp.select(values[valid], count)])
        last = values[kept[-1]].min()
        assert found.threshold[c] == (-last if by == "margin" else last)
    assert torch.equal(found.ids, torch.cat(kept).sort().values)


@pytest.mark.parametrize("per_class", [False, True])
def test_a_ranking_is_shown_without_its_elements(per_class):
    found = emp.rank(*batch(), keep=0.3, per_class=per_class)
    threshold = "<(7,), float32, cpu>" if per_class else repr(found.threshold)
    assert repr(found) == (
        f"Ranking(ids=<{len(found.ids)} of 1000, int64, cpu>, values=<(1000,), float32, cpu>, "
        f"threshold={threshold}, rows_of_class=<(7,), int64, cpu>, "
        "kept_of_class=<(7,), int64, cpu>, num_invalid=tensor(0))"
    )


def test_beta_weighs_the_memory_term():
    logits, labels = batch()
    want = emp.select(emp.score(logits, labels, beta=-3.0).score, 0.3)
    assert torch.equal(emp.rank(logits, labels, beta=-3.0).ids, want)
    assert not torch.equal(emp.rank(logits, labels).ids, want)


def test_mapped_files_are_taken_without_a_warning(tmp_path):
    logits, labels = batch()
    np.save(tmp_path / "logits.npy", logits.numpy())
    np.save(tmp_path / "labels.npy", labels.numpy().astype(np.uint8))
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("logits", "labels")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = emp.rank(*mapped, 0.2)
    for ours, theirs in zip(found, emp.rank(logits, labels, 0.2), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("per_class", [False, True])
def test_no_rows(per_class):
    found = emp.rank(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), per_class=per_class)
    assert len(found.ids) == len(found.values) == 0
    assert found.threshold.isnan().all()
    assert found.rows_of_class.tolist() == found.kept_of_class.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"logits": [[1.0]]}, TypeError, "logits must be a tensor, a NumPy array, .*got list"),
        ({"labels": [0] * N}, TypeError, "labels must be a tensor, a NumPy array, .*got list"),
        ({"logits": torch.zeros(2, 3, 4)}, ValueError, "labels must have the leading shape"),
        ({"labels": torch.zeros(N, 1).long()}, ValueError, r"labels.squeeze\(-1\)"),
        ({"labels": torch.zeros(N)}, TypeError, "labels must have an integer dtype"),
        ({"keep": 0.0}, ValueError, r"keep must be in \(0, 1\]"),
        ({"keep": N + 1}, ValueError, f"keep must be between 1 and the number of rows {N}"),
        ({"keep": True}, TypeError, "keep must be a float"),
        ({"keep": 5, "per_class": True}, ValueError, "keep must be a share .* with per_class"),
        ({"by": "forgetting"}, ValueError, "by must be one of emp, loss, entropy, el2n, margin"),
        ({"by": 3}, TypeError, "by must be a str, got int"),
        ({"beta": float("nan")}, ValueError, "beta must be finite"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be an int"),
    ],
)
def test_wrong_arguments(changes, error, words):
    logits, labels = batch()
    with pytest.raises(error, match=f"^rank: .*{words}"):
        emp.rank(**{"logits": logits, "labels": labels} | changes)


@pytest.mark.usefixtures("blocks")
def test_a_label_out_of_range_is_named_by_its_row():
    logits, labels = batch()
    labels[777] = 9
    with pytest.raises(ValueError, match=r"^rank: labels must be in \[0, 7\), got 9 in row 777$"):
        emp.rank(logits, labels)


def test_sequences_of_tokens_are_no_rows():
    logits = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"rank: logits must have shape \(N, C\), got \(2, 3, 4\)"):
        emp.rank(logits, torch.zeros(2, 3, dtype=torch.int64))

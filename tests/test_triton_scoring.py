"""The scoring kernels in Triton's interpreter, both regimes, on rows that break softmax code."""

import math
import os

import hard_rows
import numpy as np
import oracle
import pytest
import torch
from test_loss import true_gradient
from test_scoring import assert_scores
from test_statistics import assert_statistics

import emp_kernels as emp

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_triton_interpreter.py"
    ),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),  # NaN in the interpreter
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning"),
]
INF = float("inf")


@pytest.fixture
def launch():
    from emp_kernels.kernels import launch

    return launch


@pytest.fixture
def cut(launch, monkeypatch):
    """Makes launches use a plan given by name, whatever the shape."""
    from emp_kernels.kernels.plan import Plan

    def use(**changes):
        plan = Plan(True, 1, 1, 16, 2, True, 1)._replace(**changes)
        monkeypatch.setattr(launch, "plan_of", lambda *shape: plan)

    return use


# One row whole in registers: every width of vector, ragged rows (257 and up), a block +- 1.
ROWS = [
    (1, torch.float32), (2, torch.bfloat16), (7, torch.float32), (10, torch.float16),
    (31, torch.bfloat16), (32, torch.float32), (33, torch.float32), (128, torch.bfloat16),
    (129, torch.float16), (257, torch.bfloat16), (259, torch.float32), (600, torch.bfloat16),
]  # fmt: skip


@pytest.mark.parametrize(("classes", "dtype"), ROWS)
def test_rows(classes, dtype):
    logits, labels, names = hard_rows.batch(classes, dtype, seed=classes)
    truth = oracle.statistics(logits, labels)
    assert_scores(emp.score(logits, labels, backend="triton"), truth, names=names)
    assert_statistics(emp.sample_statistics(logits, labels, backend="triton"), truth, names)


STREAM_FAMILIES = ["scale 30", "masked blocks", "confident", "tiny tail", "steep", "broken"]


@pytest.mark.parametrize(
    ("classes", "dtype", "parts"),
    [
        (64, torch.float32, 1), (65, torch.bfloat16, 1), (95, torch.float32, 2),
        (97, torch.float16, 4), (300, torch.float32, 2), (301, torch.bfloat16, 4),
    ],
)  # fmt: skip
def test_stream(classes, dtype, parts, cut):
    cut(pieces=parts, compensated=dtype != torch.bfloat16)
    families = STREAM_FAMILIES if parts == 1 else ["masked blocks", "tiny tail"]
    logits, labels, names = hard_rows.batch(classes, dtype, families, seed=classes)
    truth = oracle.statistics(logits, labels)
    assert_scores(emp.score(logits, labels, backend="triton"), truth, names=names)
    assert_statistics(emp.sample_statistics(logits, labels, backend="triton"), truth, names)


def test_what_parts_leave_is_float32_under_every_default_dtype(cut):
    cut(pieces=2)
    logits, labels, _ = hard_rows.batch(95, torch.float32, ["scale 30"], seed=1)
    want = emp.score(logits, labels, backend="triton")
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = emp.score(logits, labels, backend="triton")
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)


def test_stream_is_taken_for_many_classes(launch):
    logits = torch.randn(2, 8200).bfloat16()
    labels = torch.tensor([0, 8199])
    truth = oracle.statistics(logits, labels)
    assert_scores(emp.score(logits, labels, backend="triton"), truth)
    statistics = emp.sample_statistics(logits, labels, backend="triton")
    assert_statistics(statistics, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_within_8_ulp_at_scale_1(dtype):
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 10, 100, 1000):
        logits = torch.randn(128, classes, generator=generator).to(dtype)
        labels = torch.randint(classes, (128,), generator=generator)
        labels[::3] = logits[::3].float().argmax(1)
        truth = oracle.statistics(logits, labels)
        got = emp.score(logits, labels, backend="triton")
        for field in ("loss", "entropy"):
            assert oracle.ulps(getattr(got, field), getattr(truth, field)).max() <= 8


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("layout", ["row stride", "offset", "groups", "inner stride", "transposed"])
def test_layouts(layout, stream, cut):
    """Strided and shifted views score as their contiguous copies, and are not written to."""
    if stream:
        cut()
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(4, 6, 300, generator=generator)
    view = {
        "row stride": base[0, :, 7:264],
        "offset": base.view(-1)[3 : 3 + 4 * 259].view(4, 259),
        "groups": base[:, 1:4, :257],
        "inner stride": base[0, :, ::2],
        "transposed": base[:, :, :5].permute(2, 0, 1)[..., :3].permute(1, 0, 2),
    }[layout]
    labels = torch.randint(view.shape[-1], view.shape[:-1], generator=generator)
    before = base.clone()
    got = emp.score(view, labels, backend="triton")
    flat = view.reshape(-1, view.shape[-1])
    assert got.loss.shape == labels.shape
    assert_scores(got, oracle.statistics(flat, labels.reshape(-1)))
    assert torch.equal(base, before)


@pytest.mark.parametrize("stream", [False, True])
def test_ignored_rows(stream, cut):
    if stream:
        cut(pieces=2)
    logits = torch.randn(7, 70)
    logits[2] = torch.nan
    labels = torch.tensor([0, 69, -100, 5, -100, 1, 2], dtype=torch.int32)
    truth = oracle.statistics(logits, labels, ignore_index=-100)
    assert_scores(emp.score(logits, labels, ignore_index=-100, backend="triton"), truth)
    got = emp.sample_statistics(logits, labels, ignore_index=-100, backend="triton")
    assert_statistics(got, truth)


@pytest.mark.parametrize("stream", [False, True])
def test_ignored_rows_are_not_read(stream, cut, launch):
    """An ignored row's label would read at a wild address, and so would its logits."""
    if stream:
        cut()
    rows = launch.rows_of(torch.randn(3, 70))._replace(row_stride=1 << 50, count=3)
    labels = torch.tensor([4, 9, 9])
    values = launch.score(rows, labels, 1.0, 9).values
    np.testing.assert_array_equal(values[0, 1:], [-INF, -INF])
    assert values[0, 0].isfinite()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.uint64])
def test_a_label_out_of_range_makes_its_row_invalid(dtype, stream, cut, launch):
    """As on CUDA, where there is no error: the out-of-range logit is not read."""
    if stream:
        cut(pieces=2)
    wild = {torch.int64: [70, -1, 1 << 62], torch.uint8: [70, 255, 99]}.get(dtype)
    wild = wild or [70, (1 << 64) - 1, 1 << 63]
    labels = torch.tensor([3, *wild, 69], dtype=dtype)
    logits = torch.randn(5, 70)
    rows = launch.rows_of(logits)
    scored = launch.score(rows, labels, 1.0, None, count=True)
    values, work = scored.values, scored.work
    assert values[0].isnan().tolist() == [False, True, True, True, False]
    assert values[1:3, 1:4].isnan().all()
    torch.testing.assert_close(values[3], logits.logsumexp(1))
    assert work[0] == 3
    ignored = launch.score(rows, labels, 1.0, -1).values  # -1 is no uint64
    assert (ignored[0, 2] == -INF) == (dtype == torch.int64)


@pytest.mark.parametrize("shape", [(2, 0), (2, 3, 0), (2, 1, 3, 0)])
def test_no_classes(shape):
    labels = torch.full(shape[:-1], -100)
    got = emp.score(torch.zeros(shape), labels, ignore_index=-100, backend="triton")
    assert got.score.shape == labels.shape
    assert (got.score == -torch.inf).all()
    with pytest.raises(ValueError, match=r"labels must be in \[0, 0\)"):
        emp.score(torch.zeros(shape), labels, backend="triton")


def test_beta_and_empty():
    logits, labels = torch.randn(5, 9), torch.arange(5)
    got = emp.score(logits, labels, beta=-2.5, backend="triton")
    assert_scores(got, oracle.statistics(logits, labels), beta=-2.5)
    for shape in [(0, 9), (2, 0, 9)]:
        got = emp.score(torch.empty(shape), torch.empty(shape[:-1]).long(), backend="triton")
        assert got.score.shape == shape[:-1]


@pytest.mark.parametrize(
    ("classes", "dtype"), [(5, torch.float32), (64, torch.bfloat16), (5000, torch.float16)]
)
def test_cross_entropy(classes, dtype):
    """Loss and gradient as torch's in float64; rows that are not trained on get zero."""
    generator = torch.Generator().manual_seed(classes)
    logits = (4 * torch.randn(6, classes, generator=generator)).to(dtype).requires_grad_()
    with torch.no_grad():
        logits[1] = torch.nan
        logits[2, 3] = 40.0
    labels = torch.randint(classes, (6,), generator=generator)
    labels[2], labels[4] = 3, -100
    rows = torch.tensor([0, 2, 5])
    loss = emp.cross_entropy(logits, labels, rows=rows, ignore_index=-100, backend="triton")
    loss.backward()
    exact = logits.detach().double().requires_grad_()
    want = torch.nn.functional.cross_entropy(exact[rows], labels[rows])
    want.backward()
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=0)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=1e-7)
    assert logits.grad[2, 3] != 0 or dtype != torch.float32
    assert (logits.grad[[1, 3, 4]] == 0).all()


@pytest.mark.parametrize(
    ("classes", "dtype", "parts"),
    [
        (7, torch.float32, 0),
        (70, torch.bfloat16, 0),
        (150, torch.float32, 1),
        (97, torch.float16, 2),
    ],
)
def test_shards_of_rows(classes, dtype, parts, cut):
    """Scores merged from the sums of two shards, and the gradient of each; ignored rows are 0."""
    from emp_kernels.backends import load
    from emp_kernels.distributed import columns, vocab_parallel

    triton, families = load("triton"), ["scale 30", "masked blocks", "tiny tail", "broken"]
    logits, labels, names = hard_rows.batch(classes, dtype, families, seed=classes)
    truth = oracle.statistics(logits, labels)
    if parts:
        cut(pieces=parts, compensated=dtype == torch.float32)
    middle = classes // 3
    shards = [(logits[:, :middle], labels), (logits[:, middle:], labels - middle)]
    m, u, t, z_y = torch.stack([triton.row_sums(*shard, None) for shard in shards], 1).double()
    sums = (*columns.merged(m, u, t), columns.found(z_y))
    scored = vocab_parallel._scored(sums, None, 1.0, torch.float32, labels.shape)
    assert_scores(scored.scores, truth, names=names)

    assert scored.scores.loss[logits.isnan().any(1)].isnan().all()

    scales = torch.linspace(-2, 2, len(labels)).masked_fill(~torch.from_numpy(truth.valid), 0.0)
    forward = scored.scores.loss, scored.above, scales, scored.maximum
    gradients = [triton.cross_entropy_backward(*shard, *forward) for shard in shards]
    whole = torch.cat(gradients, 1)
    assert not whole[~truth.valid].any()
    chosen = torch.from_numpy(truth.valid)
    want = torch.from_numpy(true_gradient(logits[chosen], labels[chosen], scales[chosen]))
    torch.testing.assert_close(
        whole[chosen].double(), want, rtol=2e-5 + torch.finfo(dtype).eps, atol=1e-6
    )
    labels[::2] = -100
    sums = triton.row_sums(logits[:, :middle], labels, -100)
    assert not sums[:, ::2].any()
    nowhere = triton.row_sums(logits[:1, :middle], torch.tensor([classes]), None)
    assert nowhere[3].isnan().all()


@pytest.mark.parametrize("name", ["triton", "reference"])
def test_a_row_without_a_loss_has_no_gradient(name):
    """As for a label out of range, which is not an error on a GPU."""
    from emp_kernels.backends import load

    backend, truth = load(name), load("reference")
    torch.manual_seed(4)
    logits, labels = torch.randn(5, 7), torch.tensor([0, 7, -1, 3, 9])
    loss = torch.nn.functional.cross_entropy(logits, labels.clamp(0, 6), reduction="none")
    loss[[1, 2, 4]], lse = math.nan, logits.logsumexp(1)
    scales = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0])
    got = backend.cross_entropy_backward(logits, labels, loss, lse, scales)
    assert got[1:3].isnan().all()
    assert not got[4].any()  # not trained
    want = torch.autograd.functional.vjp(
        lambda z: torch.nn.functional.cross_entropy(z, labels[[0, 3]], reduction="none"),
        logits[[0, 3]],
        scales[[0, 3]],
    )[1]
    torch.testing.assert_close(got[[0, 3]], want)
    hidden, weight = torch.randn(5, 3), torch.randn(7, 3)
    linear = [hidden, weight, labels, None, loss, lse, scales, (True, True, False)]
    by_hidden, by_weight, _ = backend.linear_cross_entropy_backward(*linear)
    assert by_hidden[1:3].isnan().all()
    assert by_weight.isnan().all()
    assert not by_hidden[4].any()
    linear[4:7] = loss[[0, 3]], lse[[0, 3]], scales[[0, 3]]
    linear[0], linear[2] = hidden[[0, 3]], labels[[0, 3]]
    want = truth.linear_cross_entropy_backward(*linear)[0]
    torch.testing.assert_close(by_hidden[[0, 3]], want)


def test_operators_results_share_no_memory():
    """As required by torch.compile; the backend's own results share one allocation."""
    logits, labels = torch.randn(5, 9), torch.zeros(5, dtype=torch.int64)
    state = emp.EMPState(5)
    fields = [getattr(state, name) for name in emp.ops.STATE_FIELDS]
    operators = torch.ops.emp_kernels
    for results in (
        operators.score(logits, labels, 1.0, None, "triton"),
        operators.sample_statistics(logits, labels, None, "triton"),
        operators.score_and_select(logits, labels, *fields, 1.0, 0.5, None, None, None, "triton"),
    ):
        assert len({tensor.untyped_storage().data_ptr() for tensor in results}) == len(results)


def test_what_a_gpu_flushes_is_nothing():
    """A scaled exponential that is no normal number belongs to a term that, 2^18 times and with
    its factor in the entropy, rounds to no subnormal either; and -inf's is 0 on every engine."""
    from emp_kernels.kernels import numerics

    scale, floor = numerics.LOG2_SCALE.value, numerics.FLOOR.value
    lowest = -(126 + scale) * np.log(2)  # below, 2^scale exp(d) < 2^-126
    assert floor < lowest
    assert 2**18 * -lowest * np.exp(lowest) < 2.0**-149
    assert np.exp(floor) * 2**scale < 2.0**-150
    largest = 2**18 * 2.0**scale
    assert largest * 2.0**scale < 2.0**127  # sums, rescaled, and squares

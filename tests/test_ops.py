"""The operators for torch.compile: opcheck, and the public functions in one graph."""

import pytest
import torch
from torch.library import opcheck

import emp_kernels as emp
from emp_kernels import ops

OPERATORS = torch.ops.emp_kernels


def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 7, generator=generator)
    return logits, torch.randint(7, (20,), generator=generator)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_opcheck(backend):
    logits, labels = batch()
    opcheck(OPERATORS.score.default, (logits, labels, 0.5, None, backend))
    opcheck(OPERATORS.sample_statistics.default, (logits, labels, 4, backend))
    scores, ignored = logits[:, 0].contiguous(), labels == 3
    for keep in ((None, 7), (0.3, None)):
        opcheck(OPERATORS.select.default, (scores, *keep, backend))
    for keep in ((0.3, None), (None, 4)):
        opcheck(OPERATORS.select_counted.default, (scores, ignored, *keep, backend))


def test_opcheck_of_what_a_loss_writes_and_checks():
    state, ids = emp.EMPState(9), torch.tensor([3, 1, 4])
    scores = emp.score(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    fields = [getattr(state, name) for name in ops.STATE_FIELDS]
    opcheck(OPERATORS.update_state.default, (*fields, ids, *scores[:3], "EMPState.update"))
    opcheck(OPERATORS.positions.default, (torch.tensor([0, 2]), 5, "cross_entropy"))


@pytest.mark.parametrize("keep", [(0.3, None), (None, 4)])
@pytest.mark.parametrize("ids", [None, torch.arange(20).flip(0)])
def test_opcheck_of_the_main_call(keep, ids):
    logits, labels = batch()
    state = emp.EMPState(20)
    for fields in (
        [getattr(state, name) for name in ops.STATE_FIELDS],
        [None] * len(ops.STATE_FIELDS),
    ):
        for ignore_index in (None, 3):
            arguments = (logits, labels, *fields, 1.0, *keep, ids, ignore_index, None)
            opcheck(OPERATORS.score_and_select.default, arguments)


def test_the_state_is_declared_as_written():
    schema = OPERATORS.score_and_select.default._schema
    written = {a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write}
    assert written == set(ops.STATE_FIELDS)


def test_one_graph():
    """Forward pass, scores, selection and the kept rows' loss, differentiated."""
    torch._dynamo.reset()
    logits, labels = batch()
    layer = torch.nn.Linear(7, 7)

    def step(x, y):
        z = layer(x)
        scores = emp.score(z, y, beta=0.5, ignore_index=-100)
        statistics = emp.sample_statistics(z, y)
        kept = emp.select(scores.score, 0.4)
        return torch.nn.functional.cross_entropy(z[kept], y[kept]), scores, statistics, kept

    want = step(logits, labels)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(logits, labels)
    torch.testing.assert_close(got, want)
    gradients = []
    for loss in (got[0], want[0]):
        layer.zero_grad()
        loss.backward()
        gradients.append(layer.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("ignore_index", [None, 3])
def test_the_main_call_in_one_graph(ignore_index, with_ids):
    torch._dynamo.reset()
    logits, labels = batch()
    ids = torch.randint(20, (20,), generator=torch.Generator().manual_seed(1)) if with_ids else None
    states = [emp.EMPState(20, beta=0.7) for _ in range(2)]
    compiled = torch.compile(emp.score_and_select, fullgraph=True, backend="aot_eager")
    for call, state in zip((emp.score_and_select, compiled), states, strict=True):
        for _ in range(2):
            result = call(logits, labels, state, 0.3, indices=ids, ignore_index=ignore_index)
        if call is emp.score_and_select:
            want = result
    torch.testing.assert_close(result, want)
    for name in ops.STATE_FIELDS:
        assert torch.equal(getattr(states[0], name), getattr(states[1], name)), name
    assert states[1].clock == 2


def test_sizes_and_options_may_be_dynamic():
    torch._dynamo.reset()

    def step(logits, labels, beta, keep):
        scores = emp.score(logits, labels, beta=beta)
        kept = emp.select(scores.score, keep)
        return scores, kept, emp.gather({"z": logits, "more": [labels]}, kept)

    compiled = torch.compile(step, dynamic=True, fullgraph=True, backend="aot_eager")
    logits, labels = batch()
    for n, beta, keep in ((20, 0.5, 0.3), (7, 0.7, 0.9), (6, 0.9, 3), (5, 1.1, 2)):
        arguments = logits[:n], labels[:n], beta, keep
        torch.testing.assert_close(compiled(*arguments), step(*arguments))


@pytest.mark.parametrize("keep", [0.3, 5])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_selection_among_counted_rows_in_one_graph(keep, dynamic):
    torch._dynamo.reset()

    def step(logits, labels, keep):
        scores = emp.score(logits, labels, ignore_index=3)
        kept = emp.select(scores.score, keep, ignored=labels == 3)
        return kept, logits[kept].sum()

    compiled = torch.compile(step, dynamic=dynamic, fullgraph=True, backend="aot_eager")
    logits, labels = batch()
    for n in (20, 9):
        want = step(logits[:n], labels[:n], keep)
        torch.testing.assert_close(compiled(logits[:n], labels[:n], keep), want)
        assert not (labels[:n][want[0]] == 3).any()


def test_gather_in_one_graph_is_differentiable():
    torch._dynamo.reset()
    logits, labels = batch()
    indices = torch.tensor([3, 0, 3], dtype=torch.int32)
    gradients = []
    for gather in (emp.gather, torch.compile(emp.gather, fullgraph=True, backend="aot_eager")):
        leaf = logits.clone().requires_grad_()
        rows, same = gather((leaf, labels), indices)
        assert torch.equal(same, labels[[3, 0, 3]])
        rows.square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_inductor():
    torch._dynamo.reset()
    logits, labels = batch()
    got = torch.compile(lambda z, y: emp.score(z * 2, y).score + 1, fullgraph=True)(logits, labels)
    torch.testing.assert_close(got, emp.score(logits * 2, labels).score + 1)


def test_an_index_below_0_is_an_error_in_a_compiled_gather():
    """Inductor's index_select would count it from the end."""
    torch._dynamo.reset()
    logits, _ = batch()
    indices = torch.tensor([3, 0, 3])
    gather = torch.compile(emp.gather, fullgraph=True)
    assert torch.equal(gather(logits, indices), logits[indices])
    for bad in (-1, len(logits), -len(logits) - 1):
        indices[1] = bad
        with pytest.raises((RuntimeError, IndexError), match=r"out of (bounds|range)"):
            gather(logits, indices)


def test_eager_calls_take_no_operator(monkeypatch):
    """The direct path: the dispatcher's boundary costs more than a small batch."""
    monkeypatch.setattr(ops, "score", None)
    monkeypatch.setattr(ops, "select", None)
    logits, labels = batch()
    emp.select(emp.score(logits, labels).score, 3)

"""Tracers: each public function is recorded as an operator or raises a clear error, and never
records a result of the example."""

import warnings
from inspect import isclass
from operator import attrgetter

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torch_calls import public_names

import emp_kernels as emp

N, C, D = 12, 7, 5
STATE = emp.EMPState(N)
IDS = torch.randperm(N, generator=torch.Generator().manual_seed(3))
OPTIONS = {"temperature": 2.0, "softcap": 20.0}
# Of logits z (N, C), labels y (N,), hidden h (N, D) and weight w (C, D).
OPERATORS = {
    "score": [lambda z, y, h, w: emp.score(z, y), lambda z, y, h, w: emp.score(z, y, **OPTIONS)],
    "sample_statistics": [lambda z, y, h, w: emp.sample_statistics(z, y, ignore_index=2)],
    "select": [lambda z, y, h, w: emp.select(z[:, 0], 0.3), lambda z, y, h, w: emp.select(w[0], 2)],
    "gather": [lambda z, y, h, w: emp.gather({"z": z, "more": [h]}, y)],
    "score_and_select": [
        lambda z, y, h, w: emp.score_and_select(z, y, None, 0.3, ignore_index=2),
        lambda z, y, h, w: emp.score_and_select(z, y, STATE, 4, indices=IDS),
    ],
    "score_linear": [lambda z, y, h, w: emp.score_linear(h, w, y, ignore_index=2)],
    "cross_entropy": [
        lambda z, y, h, w: emp.cross_entropy(z, y, weight=z[0].exp(), label_smoothing=0.1),
        lambda z, y, h, w: emp.cross_entropy(z, y, STATE, indices=IDS, z_loss=0.1, **OPTIONS),
        lambda z, y, h, w: emp.cross_entropy(z, y, rows=y, reduction="none", ignore_index=2),
        lambda z, y, h, w: emp.cross_entropy(z, z.softmax(-1)),
        lambda z, y, h, w: emp.cross_entropy(
            z, y, rows=emp.score_and_select(z, y, None, 0.5), sample_weight=h[:, 0].abs()
        ),
    ],
    "log_prob_and_entropy": [
        lambda z, y, h, w: emp.log_prob_and_entropy(z, y, temperature=h[:, 0].exp())
    ],
    "linear_cross_entropy": [
        lambda z, y, h, w: emp.linear_cross_entropy(h, w, y, bias=z[0], z_loss=0.1, **OPTIONS),
        lambda z, y, h, w: emp.linear_cross_entropy(h, w, y, label_smoothing=0.1, rows=y),
        lambda z, y, h, w: emp.linear_cross_entropy(
            h, w, y, rows=emp.score_and_select(h @ w.t(), y, None, 0.5)
        ),
    ],
    "linear_log_prob_and_entropy": [
        lambda z, y, h, w: emp.linear_log_prob_and_entropy(h, w, y, ignore_index=2)
    ],
}
ERRORS = {
    "score_contrastive": [lambda z, y, h, w: emp.score_contrastive(h, h + 1)],
    "score_and_select": [
        lambda z, y, h, w: emp.score_and_select(z.view(3, 4, C), y.view(3, 4), None, 0.3, per="row")
    ],
    "rank": [lambda z, y, h, w: emp.rank(z, y, 0.3)],
    "distributed.select": [lambda z, y, h, w: emp.distributed.select(z[:, 0], 0.3)],
    "distributed.score_vocab_parallel": [
        lambda z, y, h, w: emp.distributed.score_vocab_parallel(z, y, vocab_start=0, group=None)
    ],
}
WITHOUT_TENSORS = {f"distributed.{name}" for name in ("initialised", "ranks", "sync")}


def named(table):
    return [
        pytest.param(name, function, id=f"{name} {i}")
        for name, functions in table.items()
        for i, function in enumerate(functions)
    ]


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def exported(function, inputs):
    return torch.export.export(Module(function), inputs, strict=False).module()


def compiled(function, inputs):
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)


def made_fx(mode):
    return lambda function, inputs: make_fx(function, tracing_mode=mode)(*inputs)


def jit_traced(function, inputs):
    def leaves(*inputs):
        return tuple(pytree.tree_leaves(function(*inputs)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(leaves, inputs)


WAYS = {
    "make_fx real": made_fx("real"),
    "make_fx symbolic": made_fx("symbolic"),
    "export": exported,
    "compile": compiled,
}


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    z, h, w = (torch.randn(*shape, generator=generator) for shape in ((N, C), (N, D), (C, D)))
    return z, torch.randint(C, (N,), generator=generator), h, w


def run(function, inputs):
    """Its result, and what it left in a state that was never written."""
    STATE.load_state_dict(emp.EMPState(N).state_dict())
    with torch.no_grad():
        result = function(*inputs)
    held = {
        name: tensor.clone()
        for name, tensor in STATE.state_dict().items()
        if name != "version" and isinstance(tensor, torch.Tensor)
    }
    return pytree.tree_leaves(result), held


def test_every_public_function_is_here():
    names = {name for name in public_names() if not isclass(attrgetter(name)(emp))}
    assert {*OPERATORS, *ERRORS, *WITHOUT_TENSORS} == names


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "function"), named(OPERATORS))
def test_a_recording_is_of_its_inputs(name, function, way):
    """Recorded with one batch and run with another, it gives the call's results and updates."""
    first, second = batch(0), batch(1)
    if way == "make_fx symbolic" and "STATE" in function.__code__.co_names:
        with pytest.raises(RuntimeError, match=f"^{name}: state must be recorded with its memory"):
            WAYS[way](function, first)
        return
    recorded = WAYS[way](function, first)
    for got, want in zip(run(recorded, second), run(function, second), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("way", ["make_fx real", "make_fx symbolic", "export"])
@pytest.mark.parametrize(("name", "function"), named(ERRORS))
def test_what_has_no_operator_is_an_error(name, function, way):
    with pytest.raises(RuntimeError, match=rf"^{name}: tensors must lie in memory"):
        WAYS[way](function, batch(0))


@pytest.mark.parametrize(("name", "function"), named(OPERATORS) + named(ERRORS))
def test_jit_trace_is_refused(name, function):
    with pytest.raises(
        RuntimeError, match=r"^[a-z_.]+: must be recorded by .* got torch.jit.trace"
    ):
        jit_traced(function, batch(0))


@pytest.mark.parametrize("transform", ["vmap", "grad"])
@pytest.mark.parametrize(("name", "function"), named(OPERATORS) + named(ERRORS))
def test_transforms_say_what_to_do_instead(name, function, transform):
    inputs = batch(0)

    def objective(*inputs):
        found = pytree.tree_leaves(function(*inputs))
        return sum(x.sum() for x in found if x.is_floating_point())

    if transform == "vmap":

        def call():
            return torch.func.vmap(objective)(*(x.expand(2, *x.shape) for x in inputs))
    else:

        def call():
            z, y, h, w = inputs
            return torch.func.grad(lambda z, h, w: objective(z, y, h, w), (0, 1, 2))(z, h, w)

    if name == "gather" and transform == "grad":
        ones = torch.zeros(N).index_add_(0, inputs[1], torch.ones(N))
        for found in call()[:2]:
            assert torch.equal(found, ones[:, None].expand_as(found))
        return
    with pytest.raises(TypeError, match=r"must lie in memory \(call outside of torch.func"):
        call()


def test_a_call_on_constants_within_a_transform():
    """What a transform does not follow is right in it, or an error before anything is written."""
    state = emp.EMPState(4)
    logits = torch.randn(4, 3, requires_grad=True)
    labels = torch.arange(4) % 3
    found = torch.func.grad(lambda x: x * state.select(0.5).sum())(torch.ones(()))
    assert found == state.select(0.5).sum()
    with pytest.raises(TypeError, match=r"^cross_entropy: .*torch.func"):
        torch.func.grad(lambda x: x * emp.cross_entropy(logits, labels, state))(torch.ones(()))
    assert not state.updates.any()


def test_a_recorded_call_checks_values():
    """Ids out of range in the call, not in the example: our error, before anything is written."""
    z, y, h, w = batch(0)
    function = OPERATORS["cross_entropy"][2]
    for way in WAYS.values():
        recorded = way(function, (z, y, h, w))
        for bad in (-1, N):
            with pytest.raises(ValueError, match=rf"^cross_entropy: .*got {bad}"):
                recorded(z, y.clone().index_fill_(0, torch.tensor([4]), bad), h, w)


@pytest.mark.parametrize("product", [False, True])
def test_what_a_selection_lends_is_not_read(product):
    """Of logits that are gone the loss is still known, and its gradient is that of the logits."""
    z, y, h, w = batch(0)

    def loss(z, h, w, selection):
        if product:
            return emp.linear_cross_entropy(h, w, y, rows=selection)
        return emp.cross_entropy(z, y, rows=selection)

    torch._dynamo.reset()
    one_graph = torch.compile(loss, backend="aot_eager", fullgraph=True)
    selection = emp.score_and_select(h @ w.t() if product else z, y, None, 0.5)
    outcomes = []
    for function in (loss, one_graph):
        leaves = [x.clone().requires_grad_() for x in (z, h, w)]
        result = function(*leaves, selection)
        used = leaves[1:] if product else leaves[:1]
        outcomes.append((result.detach(), *torch.autograd.grad(result, used)))
    torch.testing.assert_close(*outcomes)
    gone = [torch.full_like(x, torch.nan) for x in (z, h, w)]
    torch.testing.assert_close(one_graph(*gone, selection), outcomes[0][0])

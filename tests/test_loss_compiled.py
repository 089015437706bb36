"""The losses under torch.compile, without a graph break, and as operators."""

import pytest
import torch
from test_loss_options import ALONE, TOGETHER, make, name_of

import emp_kernels as emp

CASES = [{}, ALONE[0], {"temperature": "random"}, *TOGETHER[-2:]]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outcome(function, logits, labels, options):
    leaf = logits.clone().requires_grad_()
    result = function(leaf, labels, options)
    (gradient,) = torch.autograd.grad(result, leaf)
    return result.detach(), gradient


@pytest.mark.parametrize("asked", CASES, ids=name_of)
def test_cross_entropy_in_one_graph(asked, backend):
    """Forward and backward, of batches of several sizes."""

    def loss(z, labels, options):
        return emp.cross_entropy(z * 2, labels, backend=backend, **options) + 1

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (16, 9):
        logits, labels, options = make(n, 7, asked)
        for got, want in zip(
            outcome(compiled, logits, labels, options),
            outcome(loss, logits, labels, options),
            strict=True,
        ):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_rows_and_ignored_labels_in_one_graph(reduction, backend):
    rows = torch.tensor([0, 5, 5, 3, 8])

    def loss(z, labels, options):
        return emp.cross_entropy(
            z, labels, rows=rows, ignore_index=-1, reduction=reduction, backend=backend, **options
        )

    logits, labels, options = make(16, 7, {"label_smoothing": 0.1, "weight": "random"})
    labels[5] = -1
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for got, want in zip(
        outcome(compiled, logits, labels, options),
        outcome(loss, logits, labels, options),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_log_prob_and_entropy_in_one_graph(backend):
    def objective(z, labels, options):
        found = emp.log_prob_and_entropy(z, labels, backend=backend, ignore_index=-1, **options)
        return (found.log_prob + 0.1 * found.entropy).sum() + found.lse.square().sum()

    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (16, 9):
        logits, labels, options = make(n, 7, {"temperature": "random", "softcap": 5.0})
        labels[3] = -1
        for got, want in zip(
            outcome(compiled, logits, labels, options),
            outcome(objective, logits, labels, options),
            strict=True,
        ):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reuses", [False, True])
@pytest.mark.parametrize("kind", ["logits", "plain", "product"])
def test_operators(kind, reuses):
    logits, labels, options = make(6, 5, {"temperature": "random", "weight": "random"})
    inputs, product, plain = [logits.requires_grad_()], kind == "product", kind == "plain"
    if product:
        inputs = [torch.randn(6, 3).requires_grad_(), torch.randn(5, 3).requires_grad_(), None]
    operators = torch.ops.emp_kernels
    terms_of, gradient_of = operators.row_terms, operators.row_terms_backward
    if product:
        terms_of, gradient_of = operators.linear_terms, operators.linear_terms_backward
    asked = (1.0, options["temperature"], 4.0, not reuses)  # reused terms know no other targets
    if plain:
        asked = (1.0, None, None, False)
    asked += (None, None, 0.0, 0.0) if reuses or plain else (options["weight"], None, 0.0, 0.02)
    with torch.no_grad():
        terms = list(terms_of(*inputs, labels, *asked, [], False, None, "loss", None))
    reused = terms[:3] if reuses else []
    terms = terms[:3] if reuses or plain else terms
    torch.library.opcheck(terms_of, (*inputs, labels, *asked, reused, plain, None, "loss", None))
    one = torch.ones(6)
    wanted = [True] if not product else [True, False, False]
    for by in ((one, one, one, one), (one, None, None, one)):
        constants = [x if x is None else x.detach() for x in inputs]
        arguments = (*constants, labels, terms, *by, *asked, wanted, "loss", None)
        torch.library.opcheck(gradient_of, arguments)


def test_scores_of_adjusted_logits_in_one_graph(backend):
    logits, labels, options = make(16, 7, {"temperature": "random", "softcap": 5.0})

    def score(z):
        return emp.score(z, labels, backend=backend, **options)

    compiled = torch.compile(score, backend="aot_eager", fullgraph=True)
    for got, want in zip(compiled(logits), score(logits), strict=True):
        torch.testing.assert_close(got, want)

"""Under activation checkpointing code runs twice; the state counts it once."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import emp_kernels as emp

N, C = 12, 7
LABELS = torch.arange(N) % C
IDS = torch.arange(20, 20 - N, -1)
SENTENCES = torch.tensor([4, 0, 2])


def loss_of_all(logits, state, backend):
    return emp.cross_entropy(logits, LABELS, state, indices=IDS, backend=backend), []


def loss_of_some_that_count(logits, state, backend):
    rows = torch.tensor([1, 3, 8])
    loss = emp.cross_entropy(
        logits, LABELS, state, indices=IDS, rows=rows, ignore_index=3, backend=backend
    )
    return loss, []


def selection_then_loss(logits, state, backend):
    found = emp.score_and_select(logits, LABELS, state, 0.5, indices=IDS, backend=backend)
    loss = emp.cross_entropy(logits, LABELS, rows=found.indices, backend=backend)
    return loss, [found.indices, found.threshold, found.num_invalid, *found.scores]


def selection_of_tokens(per):
    def train(logits, state, backend):
        tokens, labels = logits.view(3, 4, C), LABELS.view(3, 4)
        ids = SENTENCES if per == "sequence" else IDS
        found = emp.score_and_select(
            tokens, labels, state, 0.5, indices=ids, per=per, ignore_index=2, backend=backend
        )
        return emp.cross_entropy(logits, LABELS, backend=backend), [found.indices, *found.scores]

    return train


def update(logits, state, backend):
    scores = emp.score(logits, LABELS, beta=state.beta, backend=backend)
    with torch.no_grad():
        state.update(IDS, scores)
    return emp.cross_entropy(logits, LABELS, backend=backend), list(scores)


WAYS = {
    "every row": loss_of_all,
    "some rows": loss_of_some_that_count,
    "selection": selection_then_loss,
    "update": update,
    **{f"tokens, {per}": selection_of_tokens(per) for per in ("all", "row", "sequence")},
}


def trained(way, backend, run):
    """What three steps leave: (losses and what was found, gradients, state)."""
    torch.manual_seed(0)
    layer, state = torch.nn.Linear(5, C), emp.EMPState(24, beta=0.5)
    found, calls = {False: [], True: []}, []

    def forward(inputs):
        again = torch._C._current_graph_task_id() != -1
        calls.append(again)
        loss, results = WAYS[way](layer(inputs), state, backend)
        found[again].append([loss.detach().clone(), *(x.clone() for x in results)])
        return loss

    losses = []
    for step in range(3):
        inputs = torch.randn(N, 5, generator=torch.Generator().manual_seed(step))
        loss = run(forward, inputs.requires_grad_())
        losses.append(loss.detach())
        loss.backward()
        losses.append(inputs.grad)
        with torch.no_grad():
            for weights in layer.parameters():
                weights -= 0.1 * weights.grad
    return losses, [p.grad for p in layer.parameters()], state.state_dict(), found, calls


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_step_is_counted_once(way, reentrant, backend):
    want = trained(way, backend, lambda forward, inputs: forward(inputs))
    got = trained(
        way,
        backend,
        lambda forward, inputs: checkpoint(forward, inputs, use_reentrant=reentrant),
    )
    assert equal(got[0], want[0])
    assert equal(got[1], want[1])
    assert got[2].keys() == want[2].keys()
    for name, value in want[2].items():
        same = torch.equal(got[2][name], value) if torch.is_tensor(value) else got[2][name] == value
        assert same, name
    assert int(got[2]["clock"]) == 3
    assert want[4] == [False] * 3
    assert got[4] == [False, True] * 3  # it did run again
    for first, expected in zip(got[3][False], want[3][False], strict=True):
        assert equal(first, expected)
    if reentrant:  # the other kind stops where it has what it needs
        for first, second in zip(got[3][False], got[3][True], strict=True):
            assert equal(first, second)
    if way.startswith(("selection", "tokens")):
        assert got[2]["selections"].sum() > 0


def test_the_state_is_written_again_after_the_backward_pass():
    state = emp.EMPState(N)
    logits = torch.randn(N, C, requires_grad=True)
    emp.cross_entropy(logits, LABELS, state).backward()
    emp.cross_entropy(logits, LABELS, state).backward()
    assert state.updates.tolist() == [2] * N
    assert int(state.clock) == 2


def test_wrong_ids_of_a_recomputation_are_those_of_the_first_run():
    """They are refused before there is anything to recompute."""
    state = emp.EMPState(N)
    before = copy.deepcopy(state.state_dict())
    logits = torch.randn(N, C, requires_grad=True)
    with pytest.raises(ValueError, match=r"indices must be in \[0, 12\), got 20 at position 0"):
        checkpoint(lambda z: loss_of_all(z, state, None)[0], logits, use_reentrant=True)
    assert equal([before["score"], before["clock"]], [state.score, state.clock])

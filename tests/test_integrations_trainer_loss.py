"""Language models in EMPTrainerMixin: which tokens and sequences are trained, with which loss."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from trainers import causal_model, texts, trainer_of

import emp_kernels as emp
from emp_kernels.integrations.transformers import EMPTrainerMixin


class PruningTrainer(EMPTrainerMixin, transformers.Trainer):
    pass


ALL = {"train_sampling_strategy": "sequential", "num_train_epochs": 1}


def made(folder, model=None, *, arguments=None, **options):
    model = causal_model() if model is None else model
    return trainer_of(
        *(PruningTrainer, folder, model, texts()), arguments=ALL | (arguments or {}), **options
    )


def batch_of(model, rows):
    """Logits (B, T, C) and shifted labels (B, T) of some of the texts, by torch, in float64."""
    data = texts()
    inputs = {k: torch.stack([data[i][k] for i in rows]) for k in data[0]}
    labels = inputs.pop("labels")
    logits = model(**inputs).logits.double()
    return logits, F.pad(labels[:, 1:], (0, 1), value=-100)


def scores_of(logits, labels, beta=1.0):
    """Loss and score (B, T) by torch, in float64; -inf where nothing is predicted."""
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    loss = loss.view_as(labels)
    return loss, torch.where(labels != -100, loss + beta * entropy, -torch.inf)


def confident(model):
    """The model with larger logits, whose entropies differ."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    return model


class Gradients(transformers.TrainerCallback):
    """The model's gradients before each step."""

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **options):
        self.found.append([p.grad.clone() for p in model.parameters()])


def expected(model, batches, keep_tokens, beta=1.0):
    """Loss and gradients of one step: of each batch the mean over its selected tokens, weighted by
    the batch's share of the step's tokens."""
    model = model.double()
    made = [batch_of(model, rows) for rows in batches]
    total = sum(int((labels != -100).sum()) for _, labels in made)
    loss = 0.0
    for logits, labels in made:
        losses, scores = scores_of(logits, labels, beta)
        counted = int((labels != -100).sum())
        kept = scores.flatten().sort(stable=True, descending=True).indices
        kept = kept[: max(1, round(keep_tokens * counted))]
        loss = loss + losses.flatten()[kept].mean() * counted / total
    loss.backward()
    return loss.item(), [p.grad.float() for p in model.parameters()]


@pytest.mark.parametrize("materialise", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("keep_tokens", [None, 0.4, 0.03])
@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_the_step_is_that_of_the_tokens_with_the_highest_scores(
    tmp_path, kind, keep_tokens, accumulate, materialise
):
    """Loss and every gradient of the first step, against float64."""
    arguments = {"gradient_accumulation_steps": accumulate, "max_steps": 1, "max_grad_norm": 0}
    dropout = {} if kind == "Llama" else {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    gradients = Gradients()
    trainer, recorder = made(
        *(tmp_path, confident(causal_model(kind, **dropout))),
        arguments=arguments,
        callbacks=[gradients],
        keep_tokens=keep_tokens,
        materialise_logits=materialise,
        beta=0.5,
    )
    trainer.train()
    batches = [range(8 * i, 8 * i + 8) for i in range(accumulate)]
    model = confident(causal_model(kind, **dropout))
    loss, want = expected(model, batches, keep_tokens or 1.0, beta=0.5)
    assert recorder.losses[0][1] == pytest.approx(loss, rel=1e-5)
    for found, wanted in zip(gradients.found[0], want, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"materialise_logits": False}, {"keep_tokens": 0.2}])
def test_the_state_keeps_each_sequences_mean_over_the_tokens_that_count(tmp_path, options):
    trainer, _ = made(tmp_path, arguments={"learning_rate": 0.0}, keep=0.5, beta=0.7, **options)
    trainer.train()
    logits, labels = batch_of(causal_model(), range(40))
    losses, scores = scores_of(logits, labels, beta=0.7)
    counted = labels != -100
    mean = torch.where(counted, scores, 0.0).sum(1) / counted.sum(1)
    state = trainer.emp_state
    torch.testing.assert_close(state.score.double(), mean.detach(), rtol=1e-5, atol=1e-6)
    mean = torch.where(counted, losses, 0.0).sum(1) / counted.sum(1)
    torch.testing.assert_close(state.loss.double(), mean.detach(), rtol=1e-5, atol=1e-6)


def test_tokens_alone_leave_all_sequences(tmp_path):
    trainer, _ = made(tmp_path, keep_tokens=0.5, arguments={"num_train_epochs": 3})
    trainer.train()
    assert (trainer.emp_state.updates == 3).all()


def test_sequences_are_pruned_over_epochs(tmp_path):
    """The second epoch trains the half with the highest means after the first."""
    trainer, _ = made(tmp_path, arguments={"num_train_epochs": 2, "learning_rate": 0.0}, keep=0.5)
    trainer.train()
    logits, labels = batch_of(causal_model(), range(40))
    _, scores = scores_of(logits, labels)
    counted = labels != -100
    mean = torch.where(counted, scores, 0.0).sum(1) / counted.sum(1)
    highest = mean.sort(descending=True).indices[:20]
    want = torch.ones(40, dtype=torch.int32)
    want[highest] += 1
    assert torch.equal(trainer.emp_state.updates, want)
    assert torch.equal(trainer.emp_state.selections, want)
    assert trainer.state.global_step == 5 + 3


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ({}, {}),
        ({"tie_word_embeddings": True}, {"gradient_accumulation_steps": 2}),
        ({}, {"label_smoothing_factor": 0.2}),
        ({}, {"bf16": True}),
        ({}, {"gradient_checkpointing": True}),
    ],
)
def test_without_logits_it_trains_as_with_them(tmp_path, model, arguments):
    arguments = arguments | {"num_train_epochs": 2}
    options = {"arguments": arguments, "keep": 0.5, "keep_tokens": 0.6}
    shapes = []

    def note(module, given, outputs):
        if module.training:
            shapes.append(tuple(outputs.logits.shape[:2]))

    with_logits, want = made(tmp_path, causal_model(**model), **options)
    with_logits.train()
    made_of = causal_model(**model)
    made_of.register_forward_hook(note)
    without, found = made(tmp_path, made_of, materialise_logits=False, **options)
    without.train()
    tolerance = 1e-2 if "bf16" in arguments else 1e-5
    assert [x for _, x in found.losses] == pytest.approx([x for _, x in want.losses], rel=tolerance)
    assert {length for _, length in shapes} == {1}  # one position of each sequence
    if "bf16" not in arguments:
        for ours, theirs in zip(
            without.model.parameters(), with_logits.model.parameters(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert without.evaluate(texts(10))["eval_loss"] == pytest.approx(
        with_logits.evaluate(texts(10))["eval_loss"], rel=tolerance
    )


def test_a_head_that_does_more_than_multiply_is_refused(tmp_path):
    model = causal_model("Gemma2", head_dim=8, final_logit_softcapping=2.0, sliding_window=8)
    trainer, _ = made(tmp_path, model, materialise_logits=False)
    with pytest.raises(ValueError, match="materialise_logits must be True for a model that change"):
        trainer.train()


def test_a_head_that_is_no_linear_layer_is_refused(tmp_path):
    model = causal_model()
    model.lm_head = torch.nn.Sequential(torch.nn.Linear(16, 40))
    trainer, _ = made(tmp_path, model, materialise_logits=False)
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Linear, got Sequential"):
        trainer.train()


def test_a_batch_without_tokens_to_train_does_not_stop_the_selection(tmp_path):
    data = texts(16)
    for row in data[:8]:
        row["labels"] = torch.full((12,), -100)
    trainer, recorder = trainer_of(
        *(PruningTrainer, tmp_path, causal_model(), data),
        arguments=ALL | {"gradient_accumulation_steps": 2},
        keep_tokens=0.5,
    )
    trainer.train()
    assert torch.isfinite(torch.tensor(recorder.losses[0][1]))
    assert trainer.emp_state.updates.tolist() == [0] * 8 + [1] * 8


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
@pytest.mark.parametrize("empty", [0, 8])
def test_accumulated_batches_of_which_one_has_no_tokens_are_as_in_the_stock_trainer(
    tmp_path, kind, empty
):
    """The first batch, too, from which the loss cannot tell what the model divides by."""
    losses = []
    for trainer_type, options in ((transformers.Trainer, {}), (PruningTrainer, {"keep": 1.0})):
        data = texts(32)
        for row in data[empty : empty + 8]:
            row["labels"] = torch.full((12,), -100)
        trainer, recorder = trainer_of(
            *(trainer_type, tmp_path / trainer_type.__name__, causal_model(kind), data),
            arguments=ALL | {"gradient_accumulation_steps": 2},
            **options,
        )
        trainer.train()
        losses.append([loss for _, loss in recorder.losses])
    assert len(losses[0]) == 2
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("options", [{}, {"keep_tokens": 0.5}, {"materialise_logits": False}])
def test_samples_that_a_collator_joins_keep_their_own_scores(tmp_path, options):
    """Without padding, all samples of a batch stand in one row (1, T)."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 12, (20,), generator=generator).tolist()
    data = [
        {"input_ids": torch.randint(3, 40, (n,), generator=generator).tolist()} for n in lengths
    ]
    trainer, _ = trainer_of(
        *(PruningTrainer, tmp_path, causal_model(), data),
        arguments=ALL | {"learning_rate": 0.0},
        data_collator=transformers.DataCollatorWithFlattening(),
        **options,
    )
    trainer.train()
    model = causal_model()
    for i, row in enumerate(data):
        tokens = torch.tensor(row["input_ids"])
        scores = emp.score(model(tokens[None]).logits[0, :-1], tokens[1:])
        assert float(trainer.emp_state.score[i]) == pytest.approx(float(scores.score.mean()), 1e-5)


def test_masked_language_models_are_not_shifted(tmp_path):
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertForMaskedLM(config)
    data = texts(8)
    inputs = {k: torch.stack([row[k] for row in data]) for k in data[0]}
    labels = inputs.pop("labels")
    with torch.no_grad():
        logits = model(**inputs).logits.double()
    want, scores = scores_of(logits, labels)
    trainer, recorder = trainer_of(PruningTrainer, tmp_path, model, data, arguments=ALL)
    trainer.train()
    counted = labels != -100
    assert recorder.losses[0][1] == pytest.approx(want[counted].mean().item(), rel=1e-5)
    mean = torch.where(counted, scores, 0.0).sum(1) / counted.sum(1)
    torch.testing.assert_close(trainer.emp_state.score.double(), mean, rtol=1e-5, atol=1e-6)

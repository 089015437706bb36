"""The Trainer's options under EMPTrainerMixin, against the stock Trainer at keep 1; or refused."""

import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from trainers import causal_model, classifier, sentences, texts, trainer_of
from transformers.trainer_utils import HPSearchBackend

import emp_kernels as emp
from emp_kernels.integrations import trainer_options
from emp_kernels.integrations.transformers import CHECKPOINT, EMPTrainerMixin


class PruningTrainer(EMPTrainerMixin, transformers.Trainer):
    pass


class Plain(torch.nn.Module):
    """A model whose forward takes no loss arguments, and calls its labels `targets`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.head = torch.nn.Embedding(30, 16), torch.nn.Linear(16, 3)

    def forward(self, input_ids, labels=None, targets=None):
        logits = self.head(self.embed(input_ids).mean(1))
        labels = targets if labels is None else labels
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def focal(outputs, labels, num_items_in_batch=None):
    losses = F.cross_entropy(outputs["logits"], labels, reduction="none")
    return ((1 - torch.exp(-losses)) * losses).sum() / num_items_in_batch


def t5():
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=40,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
        )
    )


def keep_all_columns(items):
    """A collator that uses the column `weight` if present."""
    batch = transformers.default_data_collator([dict(x) for x in items])
    batch.pop("weight", None)
    return batch


# What differs from a plain training of two epochs: TrainingArguments, the rest of the Trainer's
# arguments, the model, the data.
OPTIONS = {
    "nothing": {},
    "accumulation": {"arguments": {"gradient_accumulation_steps": 3}},
    "accumulation, a model without loss arguments": {
        "arguments": {"gradient_accumulation_steps": 3},
        "model": Plain,
    },
    "label smoothing": {"arguments": {"label_smoothing_factor": 0.2}},
    "label smoothing, accumulation": {
        "arguments": {"label_smoothing_factor": 0.2, "gradient_accumulation_steps": 2}
    },
    "compute_loss_func": {"options": {"compute_loss_func": focal}},
    "compute_loss_func, accumulation": {
        "options": {"compute_loss_func": focal},
        "arguments": {"gradient_accumulation_steps": 2},
        "model": Plain,
    },
    "unused columns": {"data": lambda: sentences(text="words")},
    "unused columns that are kept": {
        "arguments": {"remove_unused_columns": False},
        "data": lambda: sentences(weight=torch.tensor(2.0)),
        "options": {"data_collator": keep_all_columns},
    },
    "key label": {"data": lambda: sentences(key="label")},
    "key label_ids": {"data": lambda: sentences(key="label_ids")},
    "label_names": {
        "arguments": {"label_names": ["targets"]},
        "data": lambda: sentences(key="targets"),
        "model": Plain,
    },
    "1.3 epochs": {"arguments": {"num_train_epochs": 1.3}},
    "2.1 epochs": {"arguments": {"num_train_epochs": 2.1, "gradient_accumulation_steps": 2}},
    "0.4 epochs": {"arguments": {"num_train_epochs": 0.4}},
    "max_steps": {"arguments": {"max_steps": 17}},
    "drop_last": {"arguments": {"dataloader_drop_last": True}},
    "workers": {"arguments": {"dataloader_num_workers": 2, "num_train_epochs": 2}},
    "bf16": {"arguments": {"bf16": True}},
    "activation checkpointing": {"arguments": {"gradient_checkpointing": True}},
    "warm-up ratio and weight decay": {"arguments": {"warmup_steps": 0.3, "weight_decay": 0.1}},
    "causal": {"model": causal_model, "data": texts},
    "causal, accumulation": {
        "model": causal_model,
        "data": texts,
        "arguments": {"gradient_accumulation_steps": 2},
    },
    "causal, whose loss_type is not known": {
        "model": lambda: causal_model("GPT2", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
        "data": texts,
        "arguments": {"gradient_accumulation_steps": 2},
    },
    "causal, label smoothing": {
        "model": causal_model,
        "data": texts,
        "arguments": {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2},
    },
    "encoder and decoder": {
        "model": t5,
        "data": texts,
        "arguments": {"gradient_accumulation_steps": 2},
    },
    "a mixture of experts": {
        "model": lambda: causal_model(
            "Mixtral", num_local_experts=2, output_router_logits=True, router_aux_loss_coef=0.5
        ),
        "data": texts,
    },
}


def run(cls, folder, case, **ours):
    """Losses, learning rates, step counts, the columns that the model saw, and its parameters."""
    torch.manual_seed(1)
    model = case.get("model", classifier)()
    columns = []

    def note(module, arguments, given):
        if module.training:
            columns.append(sorted(set(given) - {"labels", "num_items_in_batch"}))

    model.register_forward_pre_hook(note, with_kwargs=True)
    trainer, recorder = trainer_of(
        cls,
        folder,
        model,
        case.get("data", sentences)(),
        arguments={"train_sampling_strategy": "sequential", "num_train_epochs": 2}
        | case.get("arguments", {}),
        **case.get("options", {}),
        **ours,
    )
    result = trainer.train()
    state = trainer.state
    counts = {
        "steps": (state.global_step, state.max_steps, state.num_train_epochs),
        "logged": [step for step, _ in recorder.losses],
        "epoch": state.epoch,
        "rates": recorder.rates,
        "columns": columns,
    }
    losses = [loss for _, loss in recorder.losses] + [result.training_loss]
    return trainer, counts, losses


@pytest.mark.parametrize("name", OPTIONS)
def test_at_keep_1_an_option_acts_as_in_the_stock_trainer(tmp_path, name):
    case = OPTIONS[name]
    theirs, want_counts, want = run(transformers.Trainer, tmp_path / "stock", case)
    ours, counts, losses = run(PruningTrainer, tmp_path / "ours", case, keep=1.0)
    if name == "encoder and decoder":  # made of the labels, which the stock model does itself
        assert [set(found) - {"decoder_input_ids"} for found in counts.pop("columns")] == [
            set(found) for found in want_counts.pop("columns")
        ]
    assert counts == want_counts
    tolerance = 1e-2 if name == "bf16" else 1e-5
    assert losses == pytest.approx(want, rel=tolerance)
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    assert int(ours.emp_state.updates.sum()) > 0
    assert ours.compute_loss_func is case.get("options", {}).get("compute_loss_func")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arguments": {"train_sampling_strategy": "group_by_length"}},
         "train_sampling_strategy must be random or sequential, got group_by_length"),
        ({"arguments": {"max_steps": 9}, "sampler_options": {"anneal_epochs": 1}},
         "max_steps must be -1 with anneal_epochs"),
        ({"keep_tokens": 0.5, "compute_loss_func": focal},
         "keep_tokens must be None with a compute_loss_func, got 0.5"),
        ({"sampler_options": {"sampling": "importance"}},
         "sampling must be one without weights, got 'importance'"),
        ({"keep_tokens": 60}, r"keep_tokens must be a share in \(0, 1\] or None, got 60$"),
        ({"materialise_logits": False, "compute_loss_func": focal},
         "materialise_logits must be True with compute_loss_func, got False"),
    ],
)  # fmt: skip
def test_what_would_be_dropped_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"EMPTrainerMixin: {message}"):
        trainer_of(PruningTrainer, tmp_path, classifier(), sentences(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep_tokens": 0.5}, "keep_tokens must be None where each sample has one label"),
        ({"materialise_logits": False}, "materialise_logits must be True where each sample has on"),
    ],
)
def test_options_of_tokens_are_refused_for_a_classifier(tmp_path, change, message):
    trainer, _ = trainer_of(PruningTrainer, tmp_path, classifier(), sentences(), **change)
    with pytest.raises(ValueError, match=f"EMPTrainerMixin: {message}"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_several_gpus_in_one_process_are_refused(tmp_path):
    trainer, _ = trainer_of(PruningTrainer, tmp_path, classifier(), sentences())
    trainer.args._n_gpu = 2
    with pytest.raises(ValueError, match="n_gpu must be 1"):
        trainer.get_train_dataloader()


@pytest.mark.parametrize("labels", [1, 3])
def test_regression_and_multi_label_problems_are_refused(tmp_path, labels):
    data = [x | {"labels": torch.ones(labels) if labels > 1 else torch.tensor(0)}
            for x in sentences()]  # fmt: skip
    problem = "multi_label_classification" if labels > 1 else "regression"
    model = classifier(num_labels=labels, problem_type=problem)
    trainer, _ = trainer_of(PruningTrainer, tmp_path, model, data)
    with pytest.raises(ValueError, match="labels must be classes, of which there are two or more"):
        trainer.train()


@pytest.mark.parametrize("own", [None, lambda outputs, labels, num_items_in_batch: outputs["own"]])
def test_a_model_with_another_loss_is_refused_unless_it_is_passed(tmp_path, own):
    class Weighted(Plain):
        def forward(self, input_ids, labels=None):
            logits = self.head(self.embed(input_ids).mean(1))
            weight = torch.tensor([1.0, 20.0, 1.0])
            own = logits.square().mean()
            if labels is None:
                return {"logits": logits, "own": own}
            loss = F.cross_entropy(logits, labels, weight, reduction="sum") / len(logits)
            return {"loss": loss, "logits": logits, "own": own}

    options = {} if own is None else {"compute_loss_func": own}
    trainer, recorder = trainer_of(PruningTrainer, tmp_path, Weighted(), sentences(), **options)
    if own is None:
        with pytest.raises(ValueError, match="the model's loss must be the mean cross-entropy"):
            trainer.train()
    else:
        trainer.train()
        assert recorder.losses[0][1] < 1


def test_labels_of_several_names_are_refused(tmp_path):
    data = [x | {"start": x["labels"], "end": x["labels"]} for x in sentences()]
    data = [{k: v for k, v in x.items() if k != "labels"} for x in data]
    arguments = {"label_names": ["start", "end"]}
    trainer, _ = trainer_of(PruningTrainer, tmp_path, classifier(), data, arguments=arguments)
    with pytest.raises(ValueError, match="must hold 'labels', or one of label_names"):
        trainer.train()


def test_sequence_labels_of_an_unknown_model_need_to_be_told(tmp_path):
    class Unknown(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = causal_model()

        def forward(self, input_ids, attention_mask, labels=None):
            return self.inner(input_ids, attention_mask, labels=labels)

    trainer, _ = trainer_of(PruningTrainer, tmp_path, Unknown(), texts())
    with pytest.raises(ValueError, match="causal must be True or False"):
        trainer.train()
    case = {"model": Unknown, "data": texts}
    _, want_counts, want = run(transformers.Trainer, tmp_path / "stock", case)
    _, counts, losses = run(PruningTrainer, tmp_path / "ours", case, keep=1.0, causal=True)
    assert counts == want_counts
    assert losses == pytest.approx(want, rel=1e-5)


def test_a_trainer_with_a_loss_of_its_own_is_refused(tmp_path):
    class Own(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs)["loss"]

    class Pruning(EMPTrainerMixin, Own):
        pass

    trainer, _ = trainer_of(Pruning, tmp_path, classifier(), sentences())
    message = (
        r"must call the Trainer's compute_loss_func, got .*Own.*pass that as compute_loss_func"
    )
    with pytest.raises(RuntimeError, match=message):
        trainer.train()


def test_a_loss_that_passes_by_the_mixin_is_told_of_once(tmp_path):
    class Own(PruningTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            inputs.pop("sample_ids")
            return model(**inputs)["loss"]

    trainer, _ = trainer_of(Own, tmp_path, classifier(), sentences())
    message = r"Own\.compute_loss does not call super\(\).*pass your own loss as compute_loss_func"
    with pytest.warns(emp.EMPWarning, match=message) as told:
        trainer.train()
    assert [x.category for x in told].count(emp.EMPWarning) == 1
    assert trainer.state.global_step == 7 + 2 + 2 + 2


def test_a_training_set_of_another_size_is_refused(tmp_path):
    trainer, _ = trainer_of(PruningTrainer, tmp_path, classifier(), sentences())
    trainer.train_dataset = sentences(40)
    with pytest.raises(ValueError, match="must be of the emp_state's 50 samples, got 40"):
        trainer.train()


def test_pruned_epochs_fill_max_steps(tmp_path):
    """Epochs are shorter than the first, so that it takes more of them."""
    trainer, recorder = trainer_of(
        PruningTrainer, tmp_path, classifier(), sentences(), keep=0.3, arguments={"max_steps": 17}
    )
    trainer.train()
    assert trainer.state.global_step == 17 == len(recorder.losses)
    assert trainer.state.num_train_epochs == 6  # 7 + 2 + 2 + 2 + 2 + 2
    assert recorder.rates[-1] == pytest.approx(1e-3 / 17)


def test_a_fraction_of_the_last_epoch_is_of_the_pruned_one(tmp_path):
    trainer, _ = trainer_of(
        *(PruningTrainer, tmp_path, classifier(), sentences()),
        keep=0.8,
        arguments={"num_train_epochs": 2.5},
    )
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == 7 + 5 + 3


# -- where checkpoints lie -------------------------------------------------------------------------


def test_a_checkpoint_follows_an_output_folder_that_changes(tmp_path):
    arguments = {"save_strategy": "epoch", "num_train_epochs": 2}
    trainer, _ = trainer_of(
        *(PruningTrainer, tmp_path / "first", classifier(), sentences()), arguments=arguments
    )
    trainer.args.output_dir = str(tmp_path / "second")
    trainer.train()
    assert not list((tmp_path / "first").rglob(CHECKPOINT))
    found = sorted(x.parent.name for x in (tmp_path / "second").rglob(CHECKPOINT))
    assert found == ["checkpoint-7", "checkpoint-9"]
    trainer.save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model" / CHECKPOINT).exists()


def test_trials_of_a_search_begin_anew_and_keep_their_checkpoints(tmp_path, monkeypatch):
    """Each trial has a model of its own, and so its scores begin as they were given."""
    # What reads a trial's parameters wants one of the search packages; none is installed.
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    trainer, recorder = trainer_of(
        *(PruningTrainer, tmp_path, None, sentences()),
        model_init=lambda trial: classifier(),
        arguments={"save_strategy": "epoch", "num_train_epochs": 2},
    )
    trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: trial.params
    losses = []
    for number, batch in enumerate((8, 8, 16)):
        params = {"per_device_train_batch_size": batch}
        trainer.train(trial=types.SimpleNamespace(number=number, params=params))
        losses.append(list(recorder.losses))
        recorder.losses.clear()
        assert int(trainer.emp_state.updates.sum()) == 50 + 15
    assert losses[0] == losses[1]
    found = sorted(str(x.parent.relative_to(tmp_path)) for x in tmp_path.rglob(CHECKPOINT))
    steps = {0: (7, 9), 1: (7, 9), 2: (4, 5)}
    assert found == [f"run-{n}/checkpoint-{step}" for n in steps for step in steps[n]]


# -- the private methods ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", trainer_options.PRIVATE)
def test_the_private_methods_are_those_of_the_tested_version(name):
    assert callable(getattr(transformers.Trainer, name))


def test_the_version_that_an_error_asks_for_is_the_pinned_one():
    pins = (Path(__file__).parent.parent / "constraints.txt").read_text()
    assert f"\ntransformers=={trainer_options.TESTED} " in pins


@pytest.mark.parametrize("name", trainer_options.PRIVATE)
def test_a_trainer_without_a_private_method_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.delattr(transformers.Trainer, name)
    with pytest.raises(RuntimeError, match=rf"the Trainer must have {name}\(.*pip install"):
        trainer_of(PruningTrainer, tmp_path, classifier(), sentences())


def test_a_private_method_with_other_parameters_is_refused(tmp_path):
    class Changed(transformers.Trainer):
        def _run_epoch(self, epoch, plan):
            raise AssertionError

    class Pruning(EMPTrainerMixin, Changed):
        pass

    with pytest.raises(RuntimeError, match=r"must have _run_epoch\(epoch, train_dataloader"):
        trainer_of(Pruning, tmp_path, classifier(), sentences())


def test_a_trainer_that_counts_other_values_is_refused(tmp_path):
    class Changed(transformers.Trainer):
        def set_initial_training_values(self, args, dataloader):
            return super().set_initial_training_values(args, dataloader)[:-1]

    class Pruning(EMPTrainerMixin, Changed):
        pass

    trainer, _ = trainer_of(Pruning, tmp_path, classifier(), sentences())
    with pytest.raises(RuntimeError, match="set_initial_training_values of 7 values"):
        trainer.train()

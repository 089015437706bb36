"""EMPTrainerMixin in the real Trainer: what it trains, for how many steps, and how it resumes."""

import logging

import pytest
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback

import emp_kernels as emp
from emp_kernels.integrations.transformers import EMPTrainerMixin, IdCollator

transformers.logging.set_verbosity(logging.ERROR)


class PruningTrainer(EMPTrainerMixin, transformers.Trainer):
    pass


class Recorder(TrainerCallback):
    """Every training loss, and the state after it."""

    def __init__(self):
        self.losses = []

    def on_log(self, args, state, control, logs=None, **options):
        if "loss" in logs:
            self.losses.append((state.global_step, logs["loss"]))


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **options):
        if state.global_step == self.step:
            raise Killed


def data(n=50):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 30, (n, 6), generator=generator)
    return [{"input_ids": row, "labels": row.sum() % 3} for row in tokens]


def trainer_of(folder, cls=PruningTrainer, **options):
    torch.manual_seed(1)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=3,
        )
    )
    callbacks = [Recorder(), *options.pop("callbacks", [])]
    ours = {
        name: options.pop(name)
        for name in ("keep", "sampler_options", "emp_state", "train_dataset", "data_collator")
        if name in options
    }
    arguments = transformers.TrainingArguments(
        folder,
        **{
            "per_device_train_batch_size": 8,
            "num_train_epochs": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "learning_rate": 1e-3,
            "dataloader_pin_memory": False,
        }
        | options,
    )
    ours.setdefault("train_dataset", data())
    return cls(model, arguments, callbacks=callbacks, **ours), callbacks[0]


def test_it_trains_what_the_sampler_selects(tmp_path):
    trainer, recorder = trainer_of(tmp_path, keep=0.4, sampler_options={"anneal_epochs": 1})
    trainer.train()
    # 50 samples, then twice 20, then 50, in batches of 8
    assert trainer.state.global_step == trainer.state.max_steps == 7 + 3 + 3 + 7
    assert len(recorder.losses) == 20
    assert set(trainer.lr_scheduler.get_last_lr()) == {0.0}  # the schedule ends with the training
    state = trainer.emp_state
    assert state.epoch == 4
    assert int(state.selections.sum()) == int(state.updates.sum()) == 140
    assert int(state.clock) == 20
    assert state.diagnostics().windows[:, 0].tolist() == [1.0, 0.4, 0.4, 1.0]


def test_without_pruning_it_trains_as_the_trainer_does(tmp_path):
    """The same losses as transformers' own, from the same order of the same samples."""
    ours, recorder = trainer_of(tmp_path, keep=1.0, num_train_epochs=2)
    ours.train()

    class Plain(transformers.Trainer):
        def _get_train_sampler(self, dataset=None):
            return emp.EMPSampler(emp.EMPState(50), 1.0, seed=42)

    theirs, want = trainer_of(tmp_path, Plain, num_train_epochs=2)
    theirs.train()
    assert [s for s, _ in recorder.losses] == [s for s, _ in want.losses]
    for (_, mine), (_, other) in zip(recorder.losses, want.losses, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)


def test_gradient_accumulation_counts_the_short_epochs(tmp_path):
    trainer, _ = trainer_of(tmp_path, keep=0.4, gradient_accumulation_steps=2)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == 4 + 2 + 2 + 2
    assert int(trainer.emp_state.updates.sum()) == 50 + 3 * 20


@pytest.mark.parametrize("saved_at", [2, 7, 8, 10, 11])
def test_it_resumes_in_mid_epoch_bit_for_bit(tmp_path, saved_at):
    """Dropout included; checkpoints in the warm-up, at an epoch's last step, and behind it."""
    whole, want = trainer_of(tmp_path / "whole", keep=0.4)
    whole.train()
    options = {"keep": 0.4, "save_strategy": "steps", "save_steps": saved_at}
    killed, before = trainer_of(tmp_path / "killed", callbacks=[Kill(saved_at + 1)], **options)
    with pytest.raises(Killed):
        killed.train()
    resumed, after = trainer_of(tmp_path / "killed", **options)
    resumed.train(resume_from_checkpoint=True)
    assert before.losses[:saved_at] + after.losses == want.losses
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name in ("score", "updates", "seen_at", "epoch"):
        ours, theirs = (trainer.emp_state.state_dict()[name] for trainer in (resumed, whole))
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def test_evaluation_is_the_trainers_own(tmp_path):
    trainer, _ = trainer_of(tmp_path, num_train_epochs=1)
    trainer.train()
    before = trainer.emp_state.updates.clone()
    assert trainer.evaluate(data(10))["eval_loss"] > 0
    assert torch.equal(trainer.emp_state.updates, before)


def test_the_collator_keeps_ids():
    collate = IdCollator(lambda items: {"x": torch.stack(items)})
    batch = collate([(5, torch.ones(2)), (2**40, torch.zeros(2))])
    assert batch["sample_ids"].tolist() == [5, 2**40]
    assert batch["sample_ids"].dtype == torch.int64
    assert batch["x"].shape == (2, 2)
    assert "sample_ids" not in collate([torch.ones(2)])


def test_ids_missing_from_the_batch(tmp_path):
    trainer, _ = trainer_of(tmp_path)
    trainer.data_collator = lambda items: transformers.default_data_collator([x for _, x in items])
    with pytest.raises(ValueError, match=r"EMPTrainerMixin: a training batch must hold"):
        trainer.train()


def test_a_checkpoint_of_another_size(tmp_path):
    trainer, _ = trainer_of(tmp_path, num_train_epochs=1, save_strategy="epoch")
    trainer.train()
    other, _ = trainer_of(tmp_path, train_dataset=data(40), num_train_epochs=2)
    with pytest.raises(ValueError, match=r"num_samples must be this state's 40, got 50"):
        other.train(resume_from_checkpoint=True)

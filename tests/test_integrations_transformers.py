"""EMPTrainerMixin in the real Trainer: what it trains, for how many steps, and how it resumes."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from trainers import causal_model, classifier, sentences, texts, trainer_of
from transformers import TrainerCallback

import emp_kernels
from emp_kernels.integrations.transformers import CHECKPOINT, EMPTrainerMixin, IdCollator


class PruningTrainer(EMPTrainerMixin, transformers.Trainer):
    pass


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **options):
        if state.global_step == self.step:
            raise Killed


def made(folder, cls=PruningTrainer, data=None, callbacks=(), arguments=None, **options):
    data = sentences() if data is None else data
    return trainer_of(
        *(cls, folder, classifier(), data), callbacks=callbacks, arguments=arguments, **options
    )


def test_it_trains_what_the_sampler_selects(tmp_path):
    trainer, recorder = made(tmp_path, keep=0.4, sampler_options={"anneal_epochs": 1})
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


def test_gradient_accumulation_counts_the_short_epochs(tmp_path):
    trainer, _ = made(tmp_path, keep=0.4, arguments={"gradient_accumulation_steps": 2})
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == 4 + 2 + 2 + 2
    assert int(trainer.emp_state.updates.sum()) == 50 + 3 * 20


def states_equal(ours, theirs):
    one, other = ours.emp_state.state_dict(), theirs.emp_state.state_dict()
    for name in one:
        assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])), name


@pytest.mark.parametrize(
    ("saved_at", "arguments"),
    [
        *((step, {}) for step in (2, 7, 8, 10, 11)),
        *((step, {"gradient_accumulation_steps": 2}) for step in (3, 4, 5)),
        (5, {"dataloader_num_workers": 1, "num_train_epochs": 2}),
        (9, {"dataloader_drop_last": True}),
    ],
)
def test_it_resumes_in_mid_epoch_bit_for_bit(tmp_path, saved_at, arguments):
    """Dropout included; checkpoints in the warm-up, at an epoch's last step, and behind it."""
    whole, want = made(tmp_path / "whole", keep=0.4, arguments=arguments)
    whole.train()
    options = {"arguments": {"save_strategy": "steps", "save_steps": saved_at} | arguments}
    killed, before = made(tmp_path / "killed", keep=0.4, callbacks=[Kill(saved_at + 1)], **options)
    with pytest.raises(Killed):
        killed.train()
    resumed, after = made(tmp_path / "killed", keep=0.4, **options)
    resumed.train(resume_from_checkpoint=True)
    assert before.losses[:saved_at] + after.losses == want.losses
    assert resumed.state.epoch == whole.state.epoch
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    states_equal(resumed, whole)


@pytest.mark.parametrize("batches", [(8, 4, 5), (8, 6, 5), (8, 6, 7)])
def test_it_resumes_with_other_batches(tmp_path, batches):
    """Twice killed in the first epoch, each time with another batch size: each id once."""
    for size, stop in zip(batches, (2, 4, None), strict=True):
        arguments = {"per_device_train_batch_size": size, "num_train_epochs": 1}
        arguments |= {"save_strategy": "steps", "save_steps": 2}
        trainer, _ = made(tmp_path, callbacks=[Kill(stop)], arguments=arguments)
        with pytest.raises(Killed) if stop else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=stop != 2)
    assert trainer.emp_state.updates.tolist() == [1] * 50
    assert trainer.emp_state.selections.tolist() == [1] * 50
    assert trainer.emp_state.epoch == trainer.state.epoch == 1


@pytest.mark.parametrize(
    ("before", "saved_at", "after", "steps"),
    [
        # 50 samples in batches of 8, then three times 20: 7 + 3 + 3 + 3 steps, accumulated
        # 4 + 2 + 2 + 2
        ({}, 7, {"gradient_accumulation_steps": 2}, 7 + 2 + 2 + 2),
        ({}, 3, {"gradient_accumulation_steps": 2}, 3 + 2 + 2 + 2 + 2),  # 26 samples are left
        ({"gradient_accumulation_steps": 2}, 2, {}, 2 + 3 + 3 + 3 + 3),
        ({}, 8, {"per_device_train_batch_size": 5}, 8 + 3 + 4 + 4),
        ({"max_steps": 10}, 8, {"num_train_epochs": 4}, 7 + 3 + 3 + 3),
        ({"gradient_accumulation_steps": 2}, 4, {"max_steps": 17}, 17),  # 13 of 3 an epoch
    ],
)
def test_a_training_resumed_with_other_steps_trains_all_that_is_left(
    tmp_path, before, saved_at, after, steps
):
    saving = {"save_strategy": "steps", "save_steps": saved_at}
    killed, _ = made(tmp_path, keep=0.4, callbacks=[Kill(saved_at)], arguments=saving | before)
    with pytest.raises(Killed):
        killed.train()
    resumed, recorder = made(tmp_path, keep=0.4, arguments=saving | after)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == resumed.state.max_steps == steps
    assert [step for step, _ in recorder.losses] == list(range(saved_at + 1, steps + 1))
    assert set(resumed.lr_scheduler.get_last_lr()) == {0.0}
    if "max_steps" not in after:
        epochs = after.get("num_train_epochs", 4)
        assert resumed.state.epoch == resumed.emp_state.epoch == epochs
        drawn = 50 + 20 * (epochs - 1)
        assert int(resumed.emp_state.updates.sum()) == drawn
        assert int(resumed.emp_state.selections.sum()) == drawn


def test_ignore_data_skip_begins_the_epoch_anew(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1}
    killed, _ = made(tmp_path, callbacks=[Kill(2)], arguments=options)
    with pytest.raises(Killed):
        killed.train()
    resumed, _ = made(tmp_path, arguments=options | {"ignore_data_skip": True, "max_steps": 9})
    resumed.train(resume_from_checkpoint=True)
    assert sorted(resumed.emp_state.updates.tolist()) == [1] * 34 + [2] * 16


def test_a_causal_model_resumes_too(tmp_path):
    options = {"keep": 0.5, "keep_tokens": 0.6, "materialise_logits": False}
    arguments = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 6}
    whole, want = trainer_of(
        *(PruningTrainer, tmp_path / "whole", causal_model(), texts()),
        arguments=arguments,
        **options,
    )
    whole.train()
    resumed, after = trainer_of(
        *(PruningTrainer, tmp_path / "again", causal_model(), texts()),
        arguments=arguments,
        **options,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert after.losses == want.losses[6:]
    states_equal(resumed, whole)


def test_two_ranks_resume_where_they_were(tmp_path):
    here = Path(__file__).parent
    path = os.pathsep.join([str(Path(emp_kernels.__file__).parent.parent), str(here)])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(here / "trainer_on_ranks.py"), str(tmp_path)),
        ],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # 40 sequences, then twice 20, in batches of 4, two a step
    for rank in (0, 1):
        assert f"rank {rank}: 11 steps, 80 updates" in done.stdout


def test_a_folder_without_scores_is_refused(tmp_path):
    options = {"save_strategy": "epoch", "num_train_epochs": 1}
    trainer, _ = made(tmp_path, arguments=options)
    trainer.train()
    (tmp_path / "checkpoint-7" / CHECKPOINT).unlink()
    other, _ = made(tmp_path, arguments=options)
    with pytest.raises(ValueError, match=f"must be a folder with {CHECKPOINT}, got .*checkpoint-7"):
        other.train(resume_from_checkpoint=True)


def test_evaluation_is_the_trainers_own(tmp_path):
    trainer, _ = made(tmp_path, arguments={"num_train_epochs": 1})
    trainer.train()
    before = trainer.emp_state.updates.clone()
    assert trainer.evaluate(sentences(10))["eval_loss"] > 0
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] > 0
    assert torch.equal(trainer.emp_state.updates, before)


def test_the_collator_keeps_ids():
    collate = IdCollator(lambda items: {"x": torch.stack(items)})
    batch = collate([(5, torch.ones(2)), (2**40, torch.zeros(2))])
    assert batch["sample_ids"].tolist() == [5, 2**40]
    assert batch["sample_ids"].dtype == torch.int64
    assert batch["x"].shape == (2, 2)
    assert "sample_ids" not in collate([torch.ones(2)])


def test_the_collator_keeps_the_lengths_of_what_it_joins():
    def join(items):
        return {"input_ids": torch.cat([torch.tensor(x["input_ids"]) for x in items])[None]}

    collate = IdCollator(join)
    batch = collate([(5, {"input_ids": [1, 2, 3]}), (7, {"input_ids": [4]})])
    assert batch["sample_ids"].tolist() == [5, 7]
    assert batch["sample_lengths"] == [3, 1]
    assert "sample_lengths" not in collate([(5, {"input_ids": [1, 2, 3]})])


def test_ids_missing_from_the_batch(tmp_path):
    class Replacing(PruningTrainer):
        def get_train_dataloader(self):
            return self.get_test_dataloader(self.train_dataset)

    trainer, _ = made(tmp_path, Replacing)
    with pytest.raises(ValueError, match=r"EMPTrainerMixin: a training batch must hold"):
        trainer.train()


def test_a_checkpoint_of_another_size(tmp_path):
    trainer, _ = made(tmp_path, arguments={"num_train_epochs": 1, "save_strategy": "epoch"})
    trainer.train()
    other, _ = made(tmp_path, data=sentences(40), arguments={"num_train_epochs": 2})
    with pytest.raises(ValueError, match=r"num_samples must be this state's 40, got 50"):
        other.train(resume_from_checkpoint=True)

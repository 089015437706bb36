"""EMPTrainerMixin in TRL's SFTTrainer: packing, completions, selected tokens."""

import logging
import warnings

import pytest
import torch
import transformers
from trainers import ARGUMENTS, Recorder, causal_model

import emp_kernels as emp
from emp_kernels.integrations.transformers import CHECKPOINT, EMPTrainerMixin

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
datasets = pytest.importorskip("datasets", reason="TRL's datasets is not installed")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
WORDS = [f"w{i}" for i in range(30)]


@pytest.fixture(autouse=True)
def in_tests(monkeypatch):
    """Disables TRL's telemetry in tests."""
    monkeypatch.setenv("CI", "1")


class PruningTrainer(EMPTrainerMixin, trl.SFTTrainer):
    pass


def tokenizer():
    """Words by their number, made here."""
    ends = ["<pad>", "<s>", "</s>", "<unk>"]
    words = {word: i for i, word in enumerate(ends + WORDS)}
    model = tokenizers.models.WordLevel(words, unk_token="<unk>")
    plain = tokenizers.Tokenizer(model)
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def rows(n=24, completions=False):
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(n):
        length = int(torch.randint(5, 12, (), generator=generator))
        words = [WORDS[i] for i in torch.randint(0, 30, (length,), generator=generator)]
        if completions:
            found.append({"prompt": " ".join(words[:3]) + " ", "completion": " ".join(words[3:])})
        else:
            found.append({"text": " ".join(words)})
    return datasets.Dataset.from_list(found)


KINDS = {
    "padded": ({}, {}),
    "completions": ({"completion_only_loss": True}, {"completions": True}),
    "packed": ({"packing": True, "max_length": 24}, {}),
    "packed, wrapped": ({"packing": True, "max_length": 16, "packing_strategy": "wrapped"}, {}),
    "without padding": ({"padding_free": True, "max_length": None}, {}),
}


def made(cls, folder, kind, *, arguments=None, **options):
    chosen, data = KINDS[kind]
    recorder = Recorder()
    given = ARGUMENTS | {"per_device_train_batch_size": 4, "num_train_epochs": 2, "bf16": False}
    given |= {"gradient_checkpointing": False, "train_sampling_strategy": "sequential"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = cls(
            model=causal_model(),
            args=trl.SFTConfig(str(folder), **(given | chosen | (arguments or {}))),
            train_dataset=rows(**data),
            processing_class=tokenizer(),
            callbacks=[recorder],
            **options,
        )
    logging.getLogger("trl").setLevel(logging.ERROR)
    return trainer, recorder


@pytest.mark.parametrize(("materialise", "accumulate"), [(True, 1), (False, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_at_keep_1_it_trains_as_sft_does(tmp_path, kind, materialise, accumulate):
    arguments = {"gradient_accumulation_steps": accumulate}
    theirs, want = made(trl.SFTTrainer, tmp_path / "stock", kind, arguments=arguments)
    theirs.train()
    ours, found = made(
        *(PruningTrainer, tmp_path / "ours", kind),
        arguments=arguments,
        keep=1.0,
        materialise_logits=materialise,
    )
    ours.train()
    assert [step for step, _ in found.losses] == [step for step, _ in want.losses]
    assert [x for _, x in found.losses] == pytest.approx([x for _, x in want.losses], rel=1e-5)
    assert found.rates == want.rates
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert ours.emp_state.updates.tolist() == [2] * len(ours.train_dataset)
    counted, expected = (
        [logs["num_tokens"] for logs in trainer.state.log_history if "loss" in logs]
        for trainer in (ours, theirs)
    )
    assert counted == expected


@pytest.mark.parametrize("materialise", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_keeps_the_mean_of_its_tokens(tmp_path, kind, materialise):
    trainer, _ = made(
        *(PruningTrainer, tmp_path, kind),
        arguments={"learning_rate": 0.0},
        keep=0.5,
        keep_tokens=0.5,
        materialise_logits=materialise,
    )
    trainer.train()
    model = causal_model()
    collate = trainer.data_collator
    for i, row in enumerate(trainer.train_dataset):
        kept = {k: v for k, v in row.items() if k in ("input_ids", "labels", "seq_lengths")}
        batch = collate([kept])
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits  # a cache would let documents see others
        scores = emp.score(logits[0, :-1], labels[0, 1:], ignore_index=-100).score
        want = float(scores[scores > -torch.inf].mean())
        assert float(trainer.emp_state.score[i]) == pytest.approx(want, rel=1e-5)
    rest = len(trainer.train_dataset)
    assert sorted(trainer.emp_state.updates.tolist()) == [1] * (rest - round(rest / 2)) + [2] * (
        round(rest / 2)
    )


def test_the_model_runs_once_a_batch(tmp_path):
    """SFTTrainer's own way with a compute_loss_func runs it once more for its metrics."""
    trainer, _ = made(PruningTrainer, tmp_path, "padded", arguments={"num_train_epochs": 1})
    calls = []
    trainer.model.model.register_forward_hook(lambda *given: calls.append(1))
    trainer.train()
    assert len(calls) == trainer.state.global_step == 6


def test_it_resumes_and_evaluates(tmp_path):
    options = {"keep": 0.5, "keep_tokens": 0.5}
    arguments = {"save_strategy": "steps", "save_steps": 7}
    whole, want = made(PruningTrainer, tmp_path / "whole", "packed", arguments=arguments, **options)
    whole.args.save_steps = 1
    whole.train()
    assert (tmp_path / "whole" / "checkpoint-1" / CHECKPOINT).exists()
    resumed, after = made(PruningTrainer, tmp_path / "again", "packed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert after.losses == want.losses[1:]
    assert torch.equal(resumed.emp_state.score, whole.emp_state.score)
    metrics = resumed.evaluate(rows(8))
    assert metrics["eval_loss"] > 0


def test_label_smoothing_is_that_of_sft(tmp_path):
    arguments = {"label_smoothing_factor": 0.2}
    theirs, want = made(trl.SFTTrainer, tmp_path / "stock", "completions", arguments=arguments)
    theirs.train()
    ours, found = made(
        *(PruningTrainer, tmp_path / "ours", "completions"),
        arguments=arguments,
        keep=1.0,
        materialise_logits=False,
    )
    ours.train()
    assert [x for _, x in found.losses] == pytest.approx([x for _, x in want.losses], rel=1e-5)


def test_another_loss_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="loss_type must be 'nll', got 'dft'"):
        made(PruningTrainer, tmp_path, "padded", arguments={"loss_type": "dft"})

"""Selection from batches of candidates in trainers' loops, compared with a loop written by hand."""

import itertools
from typing import NamedTuple

import pytest
import torch

import emp_kernels as emp
from emp_kernels.integrations.candidates import best_of, filled_up, looking, narrowed, to_look_at


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_the_highest_scores_are_kept_one_of_so_many():
    scores = torch.tensor([0.5, 3.0, float("nan"), 2.0, -torch.inf, 4.0, 1.0, 2.0])
    assert best_of(scores, 4).tolist() == [1, 5]
    assert best_of(scores, 2).tolist() == [1, 3, 5, 7]
    assert best_of(scores[:3], 8).tolist() == [1]
    assert best_of(scores[:1], 1).tolist() == [0]


def test_those_are_looked_at_whose_scores_are_old():
    state = emp.EMPState(6)
    for ids in ([0, 1], [2], [3, 1]):  # ages: 2, 0, 1, 0, never, never
        state.update(torch.tensor(ids), emp.Scores(*(torch.tensor([1.0] * len(ids)),) * 4))
    ids = torch.tensor([5, 3, 0, 2])
    assert to_look_at(state, ids, 0).tolist() == [0, 2, 3]
    assert to_look_at(state, ids, 1).tolist() == [0, 2]
    assert to_look_at(state, ids, 2).tolist() == [0]
    assert to_look_at(state, ids[1:], 2).tolist() == [1]  # none is: the oldest
    scores = filled_up(state, ids, torch.tensor([0, 2]), torch.tensor([7.0, -torch.inf]))
    assert scores.tolist() == [7.0, 1.0, -torch.inf, 1.0]


def test_batches_are_narrowed_in_their_own_shape():
    x, rows = torch.arange(8.0).reshape(4, 2), torch.tensor([1, 3])
    batch = {"x": x, "two": (x, [x, x]), "pair": Pair(x, x[:, 0]), "n": 4, "text": list("abcd")}
    found = narrowed("f", batch, rows, 4)
    assert torch.equal(found["x"], x[rows])
    assert torch.equal(found["two"][1][1], x[rows])
    assert isinstance(found["pair"], Pair)
    assert torch.equal(found["pair"].y, x[rows, 0])
    assert found["n"] == 4
    assert found["text"] == ["b", "d"]
    assert torch.equal(narrowed("f", torch.tensor(3), rows, 4), torch.tensor(3))
    for wrong in (x[:3], [1, 2, 3], {"x": x[None]}):
        with pytest.raises(ValueError, match="f: with candidates every"):
            narrowed("f", wrong, rows, 4)


def test_looking_leaves_each_part_in_its_mode():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(3))
    model[1].eval()

    def look():
        with looking(model):
            assert not model[0].training
            assert not torch.is_grad_enabled()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        look()
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def by_hand(model, forward, rows_of, state, sampler, size, times, steps, *, seeds, max_age=None):
    """SGD on the highest 1 / times of each batch of candidates; the losses and what was trained."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses, trained, epoch = [], [], iter(sampler)
    for step in range(steps):
        ids = list(itertools.islice(epoch, size * times))
        if len(ids) < size * times:
            more = iter(sampler)  # the next epoch, unless its last batch was short
            epoch, ids = more, ids or list(itertools.islice(more, size * times))
        ids = torch.tensor(ids)
        inputs, labels = rows_of(ids)
        model.eval()
        with torch.no_grad():
            keep = max(1, round(len(ids) / times))
            if max_age is None:
                logits = forward(model, inputs)
                kept = emp.score_and_select(logits, labels, state, keep, indices=ids).indices
            else:
                age = state.age()[ids]
                old = ((age < 0) | (age > max_age)).nonzero()[:, 0]
                old = old if len(old) else age.argmax()[None]
                state.update(ids[old], emp.score(forward(model, inputs[old]), labels[old]))
                kept = emp.select(state.score[ids], keep)
        model.train()
        torch.manual_seed(seeds(step, ids[kept]))
        logits = forward(model, inputs[kept])
        loss = emp.cross_entropy(
            logits, labels[kept], state, indices=ids[kept], reduction="sum"
        ) / len(kept)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        trained.append(ids[kept].tolist())
    return losses, trained


# --- Hugging Face ------------------------------------------------------------------------------


def hugging_face(folder, callbacks=(), cls=None, **options):
    pytest.importorskip("transformers")
    import transformers
    from trainers import classifier, sentences, trainer_of
    from transformers import TrainerCallback

    from emp_kernels.integrations.transformers import EMPTrainerMixin

    class Seeded(TrainerCallback):  # dropout's generator, at each step
        def on_step_begin(self, args, state, control, **options):
            torch.manual_seed(state.global_step)

    class PruningTrainer(EMPTrainerMixin, transformers.Trainer):
        pass

    given = {
        "per_device_train_batch_size": 5,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    }
    given |= options.pop("arguments", {})
    return trainer_of(
        *(cls or PruningTrainer, folder, options.pop("model", None) or classifier(), sentences()),
        callbacks=[Seeded(), *callbacks],
        arguments=given,
        **({"candidates": 4} | options),
    )


@pytest.mark.parametrize("max_age", [None, 0, 9, 1000])
def test_the_trainer_equals_a_loop_by_hand(tmp_path, max_age):
    from trainers import classifier, sentences

    trainer, recorder = hugging_face(tmp_path, max_age=max_age)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == 4 * 3  # of 20, 20 and 10
    state, data = emp.EMPState(50), sentences()
    tokens = torch.stack([row["input_ids"] for row in data])
    labels = torch.stack([row["labels"] for row in data])
    sampler = emp.EMPSampler(state, 1.0, epochs=4, seed=42)
    model = classifier()
    losses, trained = by_hand(
        model,
        lambda model, inputs: model(input_ids=inputs).logits,
        lambda ids: (tokens[ids], labels[ids]),
        *(state, sampler, 5, 4, 12),
        seeds=lambda step, ids: step,
        max_age=max_age,
    )
    assert [len(ids) for ids in trained] == [5, 5, 2] * 4
    assert torch.equal(trainer.emp_state.updates, state.updates)
    close = {"rtol": 1e-5, "atol": 1e-6}  # the Trainer sums losses in another order
    torch.testing.assert_close([loss for _, loss in recorder.losses], losses, **close)
    for ours, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **close)
    for name in ("score", "loss", "entropy"):
        torch.testing.assert_close(getattr(trainer.emp_state, name), getattr(state, name), **close)


def test_the_trainer_accumulates_what_is_trained(tmp_path):
    """With two batches per step, both are selected by the weights at its beginning."""
    trainer, recorder = hugging_face(
        tmp_path, arguments={"gradient_accumulation_steps": 2, "num_train_epochs": 1}
    )
    trainer.train()
    assert trainer.state.global_step == 2
    updates = trainer.emp_state.updates
    assert int(updates.sum()) == 50 + 12
    assert set(updates.tolist()) == {1, 2}
    for (_, loss), batches in zip(recorder.losses, (2, 1), strict=True):
        assert 0.8 < loss / batches < 1.4  # the mean over what is trained, not over the candidates


@pytest.mark.parametrize(("saved_at", "max_age"), [(2, None), (3, None), (4, None), (4, 9)])
def test_the_trainer_resumes_among_candidates(tmp_path, saved_at, max_age):
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_step_begin(self, args, state, control, **options):
            if state.global_step == saved_at + 1:
                raise KeyboardInterrupt

    whole, want = hugging_face(tmp_path / "whole", max_age=max_age)
    whole.train()
    options = {"arguments": {"save_strategy": "steps", "save_steps": saved_at}}
    options["max_age"] = max_age
    killed, before = hugging_face(tmp_path / "killed", [Kill()], **options)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed, after = hugging_face(tmp_path / "killed", **options)
    resumed.train(resume_from_checkpoint=True)
    assert before.losses[:saved_at] + after.losses == want.losses
    for name, value in whole.emp_state.state_dict().items():
        found = torch.as_tensor(resumed.emp_state.state_dict()[name])
        assert torch.equal(found, torch.as_tensor(value)), name


def test_the_trainer_chooses_sequences_of_a_language_model(tmp_path):
    """The same sequences, by their mean score over counted tokens, with and without materialised
    logits."""
    from trainers import causal_model, texts, trainer_of

    states = []
    for materialise in (True, False):
        trainer, _ = hugging_face(tmp_path / str(materialise), model=causal_model())
        trainer = trainer_of(
            *(type(trainer), tmp_path / str(materialise), causal_model(), texts()),
            arguments={"num_train_epochs": 1},
            candidates=5,
            materialise_logits=materialise,
        )[0]
        trainer.train()
        states.append(trainer.emp_state)
        assert trainer.state.global_step == 1
        assert trainer.emp_state.updates.tolist().count(2) == 8
    assert torch.equal(states[0].updates, states[1].updates)
    fresh, data = causal_model().eval(), texts()
    tokens, labels = (torch.stack([row[key] for row in data]) for key in ("input_ids", "labels"))
    mask = torch.stack([row["attention_mask"] for row in data])
    with torch.no_grad():
        logits = fresh(input_ids=tokens, attention_mask=mask).logits
    kept = emp.score_and_select(
        logits[:, :-1], labels[:, 1:], None, keep=8, ignore_index=-100, per="sequence"
    ).indices
    assert (states[0].updates == 2).nonzero()[:, 0].tolist() == kept.tolist()


@pytest.mark.parametrize(
    ("error", "candidates", "message"),
    [(TypeError, 4.0, "candidates must be an int"), (ValueError, 0, "must be at least 1, got 0")],
)
def test_the_trainer_refuses_other_candidates(tmp_path, error, candidates, message):
    with pytest.raises(error, match=message):
        hugging_face(tmp_path, candidates=candidates)


@pytest.mark.parametrize(
    ("error", "age", "message"),
    [
        (TypeError, 4.0, "max_age must be an int"),
        (ValueError, -1, "max_age must be at least 0, got -1"),
    ],
)
def test_the_trainer_refuses_other_ages(tmp_path, error, age, message):
    with pytest.raises(error, match=message):
        hugging_face(tmp_path, max_age=age)


def test_the_trainer_keeps_all_only_with_candidates(tmp_path):
    assert hugging_face(tmp_path, candidates=1)[0]._keep == 0.3
    assert hugging_face(tmp_path, candidates=2)[0]._keep == 1.0
    assert hugging_face(tmp_path, candidates=2, keep=0.5)[0]._keep == 0.5


# --- Lightning ---------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def lightning_parts(
    folder, kill_at=None, save_every=None, workers=0, logits_of=None, wide=4, max_age=None
):
    """A trainer, its module and loader, the state, and the pairs that are its data."""
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint

    from emp_kernels.integrations.lightning import EMPCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Dropout(0.3))
            self.losses, self.trained = [], []

        def forward(self, inputs):
            return self.layer(inputs)

        def training_step(self, batch, step):
            if self.global_step == kill_at:
                raise Killed
            ids, (inputs, labels) = batch
            torch.manual_seed(int(ids[0]))  # dropout
            loss = emp.cross_entropy(self(inputs), labels, state, indices=ids, reduction="sum")
            loss = loss / len(ids)
            self.losses.append(loss.item())
            self.trained.append(ids.tolist())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    torch.manual_seed(0)
    inputs = torch.randn(50, 6)
    labels = (inputs[:, 0] > 0).long()
    state = emp.EMPState(50)
    sampler = emp.EMPSampler(state, 1.0, epochs=3)
    data = emp.IndexedDataset(list(zip(inputs, labels, strict=True)))
    callbacks = [EMPCallback(state, sampler, candidates=4, max_age=max_age, logits_of=logits_of)]
    if save_every:
        every = {"every_n_train_steps": save_every, "save_top_k": -1}
        callbacks.append(ModelCheckpoint(folder, "{step}", **every))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=callbacks,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=bool(save_every),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader = torch.utils.data.DataLoader(
        data, batch_size=5 * wide, sampler=sampler, num_workers=workers
    )
    return trainer, Module(), loader, state, (inputs, labels)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("max_age", [None, 0, 5, 1000])
def test_lightning_equals_a_loop_by_hand(tmp_path, max_age):
    trainer, module, loader, state, (inputs, labels) = lightning_parts(tmp_path, max_age=max_age)
    other = type(module)()
    other.load_state_dict(module.state_dict())
    trainer.fit(module, loader)
    theirs = emp.EMPState(50)
    losses, trained = by_hand(
        other,
        lambda model, x: model(x),
        lambda ids: (inputs[ids], labels[ids]),
        *(theirs, emp.EMPSampler(theirs, 1.0), 5, 4, 9),
        seeds=lambda step, ids: int(ids[0]),
        max_age=max_age,
    )
    assert [len(ids) for ids in trained] == [5, 5, 2] * 3
    assert (module.trained, module.losses) == (trained, losses)
    assert torch.equal(module.layer[0].weight, other.layer[0].weight)
    assert torch.equal(state.score, theirs.score)
    assert torch.equal(state.updates, theirs.updates)
    assert "training_step" not in vars(module)  # it is as it was


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("kill_at", "workers"), [(2, 0), (3, 0), (4, 1)])
def test_lightning_resumes_among_candidates(tmp_path, kill_at, workers):
    trainer, whole, loader, want, _ = lightning_parts(tmp_path / "whole")
    trainer.fit(whole, loader)
    trainer, killed, loader, *_ = lightning_parts(tmp_path, kill_at, 1, workers)
    with pytest.raises(Killed):
        trainer.fit(killed, loader)
    trainer, resumed, loader, state, _ = lightning_parts(tmp_path, workers=workers)
    trainer.fit(resumed, loader, ckpt_path=str(tmp_path / f"step={kill_at}.ckpt"))
    assert killed.trained[:kill_at] + resumed.trained == whole.trained
    assert killed.losses[:kill_at] + resumed.losses == whole.losses
    assert torch.equal(state.score, want.score)
    assert torch.equal(state.updates, want.updates)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_lightning_asks_for_the_logits_of_other_batches(tmp_path):
    asked = []

    def logits_of(module, batch):
        asked.append((module.training, torch.is_grad_enabled()))
        ids, (inputs, labels) = batch
        return ids, module(inputs), labels

    trainer, module, loader, *_ = lightning_parts(tmp_path, logits_of=logits_of)
    trainer.fit(module, loader)
    assert asked == [(False, False)] * 9
    assert module.training

    trainer, module, loader, *_ = lightning_parts(tmp_path)
    loader.collate_fn = lambda items: {"ids": torch.tensor([i for i, _ in items])}
    with pytest.raises(ValueError, match=r"a batch must be ids, \(inputs, labels\), or logits_of"):
        trainer.fit(module, loader)
    trainer, module, other, *_ = lightning_parts(tmp_path, logits_of=logits_of, max_age=3)
    other.collate_fn = loader.collate_fn
    with pytest.raises(ValueError, match="with max_age a batch must begin with its ids, got dict"):
        trainer.fit(module, other)

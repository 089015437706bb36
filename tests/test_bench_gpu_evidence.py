"""`make evidence-gpu` where there is no GPU: all of it in little, in one piece and in many."""

import json

import pytest
import torch

import emp_kernels as emp
from bench.methods.gpu import __main__ as running
from bench.methods.gpu import networks, plan, report, sets, tasks
from bench.methods.gpu.training import Training

CPU = torch.device("cpu")
COMPARED = ("study", "method", "rate", "seed", "split", "accuracy", "macro_f1", "steps")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    running.main(["--rows", str(tmp_path)])
    assert "no CUDA GPU here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def in_pieces(folder, steps=()):
    given = ["--toy", "--seconds", "60", "--rows", str(folder), "--kept", str(folder / "kept")]
    for count in steps:
        running.main([*given, "--steps", str(count)])
    running.main(given)
    lines = (folder / "evidence-gpu.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_pieces_give_the_rows_of_one(tmp_path, monkeypatch, capsys):
    few = {name: study._replace(choices=study.choices[:2]) for name, study in plan.TOY.items()}
    few["glosses-1"] = few["glosses-1"]._replace(rates=(1e-3,))
    del few["resnet18-200"]
    monkeypatch.setattr(plan, "TOY", few)
    monkeypatch.setattr(running, "CALIBRATION", 0.1)
    monkeypatch.setattr(tasks, "PROBE_STEPS", 30)
    whole = in_pieces(tmp_path / "whole")
    assert "every run is there" in capsys.readouterr().out
    parts = in_pieces(tmp_path / "parts", (5, 17, 0))
    said = capsys.readouterr().out
    assert "stopped after step 5 of crossover-24, full, rate 0.1" in said
    assert "ms a step of full data" in said
    assert [[row[name] for name in COMPARED] for row in parts] == [
        [row[name] for name in COMPARED] for row in whole
    ]
    assert {row["study"] for row in whole} >= {"crossover-24", "simclr-100", "resnet50-30"}
    assert not list((tmp_path / "parts/kept").iterdir())
    for row in whole:
        study = few[row["study"]]
        if row["split"] == "test" and len(study.rates) > 1:
            tried = {
                other["rate"]: other["accuracy"]
                for other in whole
                if (other["study"], other["method"], other["split"])
                == (row["study"], row["method"], "validation")
            }
            assert tried[row["rate"]] == max(tried.values())


@pytest.mark.parametrize("choice", plan.CHOICES, ids=lambda choice: choice.name)
def test_a_training_goes_on_bit_for_bit(tmp_path, choice):
    known = sets.toys(CPU)
    task = known["fast-resnet"]
    whole = Training(task, choice, 14, 0.1, 3)
    while not whole.done:
        whole.advance()
    part = Training(task, choice, 14, 0.1, 3)
    for _ in range(6):
        part.advance()
    part.save(tmp_path / "run.pt")
    rest = Training(task, choice, 14, 0.1, 3)
    rest.load(tmp_path / "run.pt")
    while not rest.done:
        rest.advance()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name
    for name in ("score", "updates", "selections"):
        assert torch.equal(getattr(whole.state, name), getattr(rest.state, name)), name


def test_candidates_are_the_hardest_of_what_was_looked_at():
    known = sets.toys(CPU)
    training = Training(known["fast-resnet"], plan.TWO, 10, 0.1, 0)
    seen = []

    def loss(model, ids, weights, state, own=training.task.loss):
        seen.append((ids, state.score.clone()))
        return own(model, ids, weights, state)

    training.task.loss = loss
    training.advance()
    ((ids, scores),) = seen
    drawn = list(emp.EMPSampler(emp.EMPState(60), 1.0, seed=0))[:32]
    want = torch.tensor(drawn)[scores[drawn].topk(16).indices]
    assert sorted(ids.tolist()) == sorted(want.tolist())


def test_the_rate_rises_and_falls():
    known = sets.toys(CPU)
    training, rates = Training(known["fast-resnet"], plan.FULL, 40, 0.5, 0), []
    while not training.done:
        training.advance()
        rates.append(training.optimizer.param_groups[0]["lr"])
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4:] == pytest.approx([0.5 * (40 - i) / 36 for i in range(4, 40)])


def test_the_contrastive_loss_is_what_is_scored():
    known = sets.toys(CPU)
    task = known["simclr"]
    model, _ = task.begin(0)
    state, ids = emp.EMPState(60), torch.arange(16)
    torch.manual_seed(1)
    loss = task.loss(model, ids, torch.ones(16), state)
    assert loss.item() == pytest.approx(state.loss[:16].mean().item(), rel=1e-5)
    assert loss.requires_grad
    torch.manual_seed(1)
    doubled = task.loss(model, ids, torch.full((16,), 2.0), state)
    assert doubled.item() == pytest.approx(2 * loss.item(), rel=1e-5)


def test_images_are_shifted_and_mirrored():
    image = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1)
    torch.manual_seed(0)
    found = tasks.shifted(image)
    padded = torch.nn.functional.pad(image[0], (4,) * 4)
    crops = {
        tuple(way.flatten().tolist())
        for top in range(9)
        for left in range(9)
        for crop in [padded[:, top : top + 8, left : left + 8]]
        for way in (crop, crop.flip(2))
    }
    shown = {tuple(one.flatten().tolist()) for one in found}
    assert shown <= crops
    assert len(shown) > 80


def test_networks_are_those_of_their_names():
    def size(network):
        return sum(value.numel() for value in network.parameters())

    with torch.device("meta"):
        eighteen, fifty = (sets.NETWORKS[name](100) for name in ("resnet18", "resnet50"))
    assert size(eighteen) == 11_220_132  # as published for CIFAR-100
    assert size(fifty) == 23_705_252
    small = networks.fast_resnet(4, 5)
    assert small(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert small.features(torch.randn(2, 3, 32, 32)).shape == (2, small.size)


def test_the_table_compares_the_same_seeds():
    rows = []
    for method, seeds, accuracy in (("full", 3, 70.0), ("2x candidates by EMP", 2, 71.0)):
        for seed in range(seeds):
            ends = {"accuracy": accuracy + seed * (accuracy - 69), "macro_f1": 50.0}
            own = {"study": "glosses-1", "method": method, "seed": seed, "split": "test"}
            rows.append(own | ends | {"seconds": 12.0, "commit": "a" * 40, "device": "a GPU"})
    rows[0]["versions"] = {"torch": "2.13.0"}
    lines = report.table(rows).splitlines()
    assert lines[2] == "| glosses-1 | full | 3 | 71.0 | 50.0 | 12 | – | – |"
    # gains of 1 and 2: mean 1.5, deviation .7071, t of one degree 12.706
    assert "| glosses-1 | 2x candidates by EMP | 2 | 72.0 | 50.0 | 12 | +1.50 ± 6.35 |" in lines[3]
    assert lines[-1] == f"a GPU; torch 2.13.0; commit {'a' * 12}."

"""SimCLR pre-training with EMP pruning, then a linear probe, against random and loss-only
selection.

    python examples/simclr.py                      # handwritten digits
    python examples/simclr.py --data-dir DIR       # CIFAR-100 at 16x16, from your own folder
    python examples/simclr.py --quick              # a few steps, to check that it runs

No label is used before the probe. Each epoch after the first trains on the 30 % of the images with
the highest contrastive scores; a score is refreshed when its image is trained. Prints a table and
writes simclr.jsonl and, if matplotlib is installed, simclr.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import emp_kernels as emp
from emp_kernels.experiments import provenance
from emp_kernels.experiments.images import Images, augmented, load

TEMPERATURE, HIDDEN_TEMPERATURE = 0.2, 0.1
BATCH_SIZE, RATE, WIDTH = 128, 2e-3, 32
# Method name, weight of the memory term, and share of the images per epoch.
METHODS = {
    "everything": (0.0, 1.0),
    "random": (0.0, 0.3),
    "loss only": (0.0, 0.3),
    "EMP": (1.0, 0.3),
}


class Encoder(nn.Module):
    """A small convolutional encoder: images (B, channels, H, W) to features (B, 4 WIDTH)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer1 = self._block(channels, WIDTH)
        self.layer2 = self._block(WIDTH, 2 * WIDTH)
        self.layer3 = self._block(2 * WIDTH, 4 * WIDTH)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.layer1(x), 2)
        x = nn.functional.max_pool2d(self.layer2(x), 2)
        return self.layer3(x).mean((2, 3))


def view(images: torch.Tensor, data: Images, generator: torch.Generator) -> torch.Tensor:
    """A random view of each image: shifted, possibly mirrored, with a square erased and noise."""
    x = augmented(images, 2 * data.shift, data.flip, generator)
    b, _, height, width = x.shape
    side = height // 3
    top, left = (torch.randint(0, n - side + 1, (b, 1), generator=generator) for n in x.shape[2:])
    rows, columns = torch.arange(height), torch.arange(width)
    hidden = ((rows >= top) & (rows < top + side))[:, :, None]
    hidden = hidden & ((columns >= left) & (columns < left + side))[:, None, :]
    strength = 0.6 + 0.8 * torch.rand(b, 1, 1, 1, generator=generator)
    noise = 0.2 * torch.randn(x.shape, generator=generator)
    return (x * strength + noise).masked_fill(hidden[:, None], 0.0)


def nt_xent(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """SimCLR's loss of a batch, differentiable, with the whole similarity matrix."""
    z = nn.functional.normalize(torch.cat([z1, z2]), dim=1)
    similarities = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return nn.functional.cross_entropy(similarities, torch.arange(len(z)).roll(len(z1)))


def pretrain(method: str, data: Images, epochs: int, seed: int) -> tuple[nn.Module, int]:
    """The encoder and how many steps it was trained, on the images that `method` chooses."""
    beta, keep = METHODS[method]
    torch.manual_seed(seed)
    encoder = Encoder(data.train_images.shape[1])
    head = nn.Sequential(nn.Linear(4 * WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, 64))
    generator = torch.Generator().manual_seed(seed)

    state = emp.EMPState(len(data.train_images), beta=beta)
    sampler = emp.EMPSampler(state, keep, seed=seed, epochs=epochs)
    loader = DataLoader(
        emp.IndexedDataset(data.train_images),
        BATCH_SIZE,
        sampler=sampler,
        generator=torch.Generator(),
    )
    steps = sampler.total_steps(BATCH_SIZE)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    with emp.HiddenFeatures(encoder, "layer3") as features:
        for _ in range(epochs):
            if method == "random":
                state.score.copy_(torch.rand(len(state.score), generator=generator))
            for ids, images in loader:
                z1, z2 = (head(encoder(view(images, data, generator))) for _ in range(2))
                scores = emp.score_contrastive(
                    z1, z2, form="ntxent", temperature=TEMPERATURE, beta=beta,
                    hidden=features.take(), hidden_temperature=HIDDEN_TEMPERATURE,
                )  # fmt: skip
                if method != "random":
                    state.update(ids, scores)
                loss = nt_xent(z1, z2)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return encoder, steps


@torch.no_grad()
def features_of(encoder: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([encoder.eval()(part) for part in images.split(1024)])


def probe(encoder: nn.Module, data: Images) -> float:
    """Test accuracy in percent of a linear classifier on the frozen features."""
    train, test = features_of(encoder, data.train_images), features_of(encoder, data.test_images)
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / deviation, (test - mean) / deviation
    linear = nn.Linear(train.shape[1], data.num_classes)
    nn.init.zeros_(linear.weight)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(linear(train), data.train_labels)
        loss = loss + 1e-3 * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        correct = (linear(test).argmax(1) == data.test_labels).float().mean()
    return 100 * float(correct)


def table(rows: list[dict]) -> str:
    """Mean and standard deviation over the seeds of each method."""
    lines = ["| images an epoch | share | steps | linear probe, % | s a run |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for method, (_, keep) in METHODS.items():
        runs = [row for row in rows if row["method"] == method]
        accuracies = [row["accuracy"] for row in runs]
        spread = statistics.stdev(accuracies) if len(runs) > 1 else 0.0
        seconds = statistics.median(row["seconds"] for row in runs)
        lines.append(
            f"| {method} | {keep:g} | {runs[0]['steps']} | "
            f"{statistics.mean(accuracies):.1f} ± {spread:.1f} | {seconds:.1f} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict], file: Path) -> None:
    """One dot per run, and the mean, for each method."""
    import matplotlib
    from matplotlib.figure import Figure

    from emp_kernels.plots import INK, STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.2), dpi=130, layout="constrained")
        axes = figure.subplots()
        for place, method in enumerate(METHODS):
            found = [row["accuracy"] for row in rows if row["method"] == method]
            axes.plot(found, [place] * len(found), "o", alpha=0.7)
            axes.plot([statistics.mean(found)] * 2, [place - 0.3, place + 0.3], color=INK)
        labels = [f"{method}, {keep:.0%}" for method, (_, keep) in METHODS.items()]
        axes.set_yticks(range(len(METHODS)), labels)
        axes.invert_yaxis()
        axes.set_xlabel(f"linear probe's test accuracy on {rows[0]['data']}, %")
        figure.savefig(file, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="CIFAR-100; without it, the digits")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("out/simclr"))
    parser.add_argument("--quick", action="store_true", help="two epochs, one seed")
    options = parser.parse_args()
    epochs, seeds = (2, [0]) if options.quick else (options.epochs, options.seeds)
    data = load("cifar100" if options.data_dir else "digits", options.data_dir)

    rows = []
    for seed in seeds:
        for method in METHODS:
            start = time.perf_counter()
            encoder, steps = pretrain(method, data, epochs, seed)
            seconds = time.perf_counter() - start
            rows.append(
                {"data": data.name, "method": method, "keep": METHODS[method][1], "seed": seed}
                | {"epochs": epochs, "steps": steps, "seconds": seconds}
                | {"accuracy": probe(encoder, data), "threads": torch.get_num_threads()}
                | {"machine": provenance.machine(), "versions": provenance.versions()}
                | {"commit": provenance.commit()}
            )
            print(f"seed {seed}, {method}: {rows[-1]['accuracy']:.1f} %, {seconds:.1f} s")
    print(table(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (options.out / "simclr.jsonl").write_text(lines, encoding="utf-8")
    try:
        plot(rows, options.out / "simclr.png")
    except ImportError:
        print("no plot: matplotlib is not installed")


if __name__ == "__main__":
    main()

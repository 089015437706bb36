"""Scoring a data set that no machine holds, and keeping its hardest samples, on Ray Data.

    pip install "ray[data]"
    python examples/ray_data.py

Actors hold the model and its head and score batches; ids and scores go into Parquet files; tasks
find the exact 30 % with the highest scores where the scores are. Here all of it runs on this
machine; with `ray.init(address="auto")` and a folder that all nodes reach, on a cluster.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import ray
import ray.data
import torch

import emp_kernels as emp
from emp_kernels.integrations.ray import select, write_scores

ROWS, WIDTH, CLASSES = 20_000, 16, 10


def samples(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Some inputs and labels of ids: in a script of your own, what is read from storage."""
    inputs = np.stack([np.random.default_rng(i).standard_normal(WIDTH) for i in batch["id"]])
    labels = (batch["id"] * 7) % CLASSES
    return {"id": batch["id"], "inputs": inputs.astype(np.float32), "labels": labels}


def make_model():
    """On each actor, once: what gives hidden states, and the head."""
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Linear(WIDTH, 32), torch.nn.ReLU())
    head = torch.nn.Linear(32, CLASSES)
    return (lambda batch: backbone(torch.tensor(batch["inputs"]))), head


def main(folder: Path) -> None:
    dataset = ray.data.range(ROWS, override_num_blocks=4).map_batches(samples)
    scores = write_scores(dataset, make_model, str(folder / "scores"), batch_size=1000)
    kept = select(scores, 0.3)
    kept.rows.select_columns(["id"]).write_parquet(str(folder / "kept"))
    print(f"{kept.num_kept} of {ROWS} samples have a score of {kept.threshold:.3f} or more")

    found = np.sort(ray.data.read_parquet(str(folder / "kept")).to_pandas()["id"].to_numpy())
    model, head = make_model()
    batch = samples({"id": np.arange(ROWS)})
    with torch.no_grad():
        labels = torch.tensor(batch["labels"])
        score = emp.score_linear(model(batch), head.weight, labels, bias=head.bias).score
    overlap = np.isin(found, emp.select(score, 0.3).numpy()).mean()
    print(f"those that one process selects: {len(found) == kept.num_kept and overlap > 0.999}")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
    ray.shutdown()

"""plots: every figure shows exactly the numbers that it was given."""

import statistics

import numpy as np
import pytest
import torch

import emp_kernels as emp
from emp_kernels import plots

pytest.importorskip("matplotlib")  # optional package

ROWS = [
    {"method": method, "keep": keep, "seed": seed, "accuracy": base + 10 * keep + seed**2}
    for method, base in (("random", 60.0), ("EMP", 62.0), ("another", 50.0))
    for keep in (1.0, 0.3, 0.1)
    for seed in (0, 1, 2)
]


def a_state(beta: float, n: int = 200) -> emp.EMPState:
    """A state whose samples were all scored but the last three, some of them confident."""
    generator = torch.Generator().manual_seed(1)
    logits = 6 * torch.randn(n, 10, generator=generator)
    logits[: n // 2, 0] += 25  # losses down to the floor
    labels = torch.where(torch.arange(n) < n // 2, 0, torch.arange(n) % 10)
    state = emp.EMPState(n, beta=beta)
    scores = emp.score(logits, labels, beta=beta)
    state.update(torch.arange(n - 3), emp.Scores(*(field[: n - 3] for field in scores)))
    return state


def test_accuracy_shows_mean_and_deviation_of_each_method():
    (axes,) = plots.accuracy_against_keep(ROWS).axes
    lines = {container.get_label(): container for container in axes.containers}
    assert set(lines) == {"random", "EMP", "another"}
    for method, container in lines.items():
        line, _, (bars,) = container
        for x, y, keep, bar in zip(
            line.get_xdata(), line.get_ydata(), (0.1, 0.3, 1.0), bars.get_segments(), strict=True
        ):
            values = [r["accuracy"] for r in ROWS if (r["method"], r["keep"]) == (method, keep)]
            assert x == pytest.approx(keep, rel=0.04)  # dodged, so that bars do not hide each other
            assert y == pytest.approx(statistics.fmean(values))
            low, high = bar[:, 1]
            assert high - low == pytest.approx(2 * statistics.stdev(values))
    colours = [container[0].get_color() for container in lines.values()]
    assert len(set(colours)) == 3


def test_a_single_seed_has_no_deviations_and_a_single_keep_no_lines():
    figure = plots.accuracy_against_keep([row for row in ROWS if row["seed"] == 0])
    assert figure.get_suptitle() == "Accuracy against keep"
    assert all(not bars for _, _, bars in figure.axes[0].containers)
    figure = plots.accuracy_against_keep([row for row in ROWS if row["keep"] == 0.3])
    assert figure.get_suptitle() == "Accuracy at keep 0.3  (mean ± standard deviation, 3 seeds)"
    for line, _, bars in figure.axes[0].containers:
        assert line.get_linestyle() == "None"
        assert bars
    several = plots.accuracy_against_keep(ROWS)
    words = "Accuracy against keep  (mean ± standard deviation, 3 seeds)"
    assert several.get_suptitle() == words


def test_methods_differ_without_colour():
    names = ["EMP", "LFL", "random", "a", "b", "c"]
    looks = plots._looks(names)
    assert len({look.colour for look in looks.values()}) == len(names)
    assert len({look.marker for look in looks.values()}) == len(names)
    assert len({look.line for look in looks.values()}) == len(names)
    rows = [row | {"method": name} for row in ROWS[:9] for name in names]
    lines = [container[0] for container in plots.accuracy_against_keep(rows).axes[0].containers]
    assert [line.get_marker() for line in lines] == [looks[name].marker for name in names]
    counts = plots.training_counts({0.3: {name: torch.arange(5) for name in names}})
    styles = {str(patch.get_linestyle()) for patch in counts.axes[0].patches}
    assert len(styles) == len(names)


def test_training_counts_are_sorted_and_complete():
    counts = {
        0.5: {"LFL": torch.tensor([1, 9, 4, 2]), "EMP": torch.tensor([4, 4, 4, 4])},
        0.1: {"LFL": torch.tensor([1, 1, 1, 8]), "EMP": torch.tensor([1, 5, 2, 3])},
    }
    figure = plots.training_counts(counts)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["keep 0.5", "keep 0.1"]
    for axes, methods in zip(figure.axes, counts.values(), strict=True):
        for patch, trained in zip(axes.patches, methods.values(), strict=True):
            heights, edges, _ = patch.get_data()
            assert heights.tolist() == sorted(trained.tolist(), reverse=True)
            assert list(edges) == [0, 25, 50, 75, 100]


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("keep", [0.3, 0.01, 7])
def test_the_plane_marks_what_select_takes(beta, keep):
    state = a_state(beta)
    (axes,) = plots.loss_entropy_plane({"EMP": state}, keep).axes
    left_out, selected = (points.get_offsets().data for points in axes.collections)
    chosen = np.zeros(len(state), bool)
    chosen[state.select(keep).numpy()] = True
    seen = state.updates.numpy() > 0
    assert (~seen).sum() == 3

    def points(mask):
        where = np.stack([state.loss.numpy()[mask], state.entropy.numpy()[mask]], axis=1)
        return where.clip(min=plots.FLOOR)

    np.testing.assert_array_equal(left_out, points(seen & ~chosen))
    np.testing.assert_array_equal(selected, points(seen & chosen))
    assert axes.get_title(loc="left").endswith(f"{chosen.sum()} of {len(state)} selected")
    if not (seen & chosen).any():
        assert not axes.lines
        return
    (border,) = axes.lines
    loss, entropy = border.get_data()
    threshold = state.score.numpy()[seen & chosen].min()
    np.testing.assert_allclose(np.add(loss, beta * np.asarray(entropy)), threshold, atol=1e-5)


def test_a_plane_of_samples_never_seen_is_empty():
    (axes,) = plots.loss_entropy_plane({"EMP": emp.EMPState(20)}, 0.5).axes
    assert sum(len(points.get_offsets()) for points in axes.collections) == 0


def test_figures_can_be_saved_and_leave_the_global_style_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures = (
        plots.accuracy_against_keep(ROWS),
        plots.training_counts({0.3: {"EMP": torch.arange(50), "LFL": torch.arange(50)}}),
        plots.loss_entropy_plane({"EMP": a_state(1.0), "LFL": a_state(0.0)}, 0.3),
    )
    assert dict(matplotlib.rcParams) == before
    for i, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda: plots.accuracy_against_keep([]), "accuracy_against_keep: rows"),
        (lambda: plots.training_counts({}), "training_counts: counts"),
        (lambda: plots.training_counts({0.3: {}}), "training_counts: counts"),
        (lambda: plots.loss_entropy_plane({}, 0.3), "loss_entropy_plane: states"),
    ],
)
def test_nothing_to_draw_is_an_error(draw, name):
    with pytest.raises(ValueError, match=name):
        draw()


def test_a_missing_matplotlib_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plots.accuracy_against_keep(ROWS)

"""The README's picture shows the numbers of the committed rows."""

import re

import pytest

pytest.importorskip("matplotlib")  # optional package

from bench import overview


def words(svg):
    return re.findall(r"<text[^>]*>(.*?)</text>", svg, re.S)


def test_the_picture_is_drawn_from_the_rows(tmp_path):
    overview.draw(tmp_path / "overview.svg")
    shown = words((tmp_path / "overview.svg").read_text(encoding="utf-8"))
    committed = overview.PICTURE.read_text(encoding="utf-8")
    assert words(committed) == shown, "run: python -m bench.overview"
    for case in overview.bars():
        assert case.title in " ".join(shown)
        ours = case.seconds["emp_kernels"]
        for seconds in list(case.seconds.values())[1:]:
            assert any(text.endswith(f", {seconds / ours:.1f}×") for text in shown)

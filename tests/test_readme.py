"""README: its tables are those of the committed rows, its commands and snippets work."""

import ast
import json
import re
import shlex
from pathlib import Path
from types import FunctionType

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import emp_kernels as emp
from bench import readme_tables
from emp_kernels.cli import _parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
COMMANDS = [
    line for language, block in BLOCKS if language == "sh" for line in block.splitlines() if line
]


def test_tables_are_made_from_the_committed_rows():
    assert readme_tables.BLOCK.search(README), "no table in README.md"
    assert readme_tables.rewritten(README) == README, "run: python -m bench.readme_tables"
    for _, name, file, _ in readme_tables.BLOCK.findall(README):
        assert name in readme_tables.TABLES
        if (ROOT / file).exists():
            assert '"commit": "' in (ROOT / file).read_text()
            assert "-dirty" not in (ROOT / file).read_text()


def test_the_demo_kept_its_time():
    """Two minutes on two cores, by the rows of the table (they leave out imports and plots)."""
    (file,) = re.findall(r"<!-- table demo (\S+) -->", README)
    rows = [json.loads(line) for line in (ROOT / file).read_text().splitlines()]
    assert len(rows) == 4 * 3 * 3
    assert sum(row["seconds"] for row in rows) < 100


def test_a_changed_number_is_noticed():
    for _, _, file, _ in readme_tables.BLOCK.findall(README):
        if (ROOT / file).exists():
            inside = next(b[0] for b in readme_tables.BLOCK.finditer(README) if b[3] == file)
            number = re.search(r"\d+\.\d ± \d\.\d|\d+\.\d+×|\d\d\.\d", inside)[0]
            changed = inside.replace(number, number.replace(number[0], "7777"), 1)
            assert readme_tables.rewritten(README.replace(inside, changed)) == README


def test_a_folder_of_newer_results_takes_over_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(readme_tables, "ROOT", tmp_path)
    new = "bench/results/2030-01-01-other-cpu-8"
    (tmp_path / new).mkdir(parents=True)
    (tmp_path / new / "cpu.jsonl").touch()
    old = "bench/results/2026-11-23-amd-epyc-2"
    text = f"<!-- table cpu {old}/cpu.jsonl --> ({old}/demo-digits.png)."
    wanted = f"<!-- table cpu {new}/cpu.jsonl --> ({old}/demo-digits.png)."
    assert readme_tables.pointed(text, new) == wanted


@pytest.mark.parametrize("command", COMMANDS)
def test_shell_commands_exist(command):
    """Each is a make target or a call that the command line takes; nothing is run."""
    program, *arguments = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(arguments) <= set(targets)
        return
    assert (program, *arguments[:2]) == ("python", "-m", "emp_kernels")
    assert _parser().parse_args(arguments[2:]).command == arguments[2]


def test_the_two_commands_are_there():
    assert {"make demo", "make test", "python -m emp_kernels doctor"} <= set(COMMANDS)
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_options_named_in_the_text_exist():
    (demo,) = [
        parser
        for action in _parser()._actions
        if getattr(action, "choices", None)
        for name, parser in action.choices.items()
        if name == "demo"
    ]
    for option in re.findall(r"`(--[a-z-]+)`", README):
        assert option in demo._option_string_actions


def test_python_snippets_run_one_after_the_other():
    """On a tiny data set: the loop trains, the batch is pruned, the tokens are scored."""
    torch.manual_seed(0)
    x, y = torch.randn(500, 4), torch.randint(0, 3, (500,))
    model = torch.nn.Linear(4, 3)
    names = {
        "torch": torch,
        "DataLoader": DataLoader,
        "dataset": TensorDataset(x, y),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "epochs": 3,
        "token_logits": torch.randn(2, 5, 7),
        "tokens": torch.randint(0, 7, (2, 5)),
    }
    before = model.weight.detach().clone()
    snippets = [block for language, block in BLOCKS if language == "python"]
    loop, batch, tokens = snippets
    exec(compile(ast.parse(loop), "README", "exec"), names)
    state = names["state"]
    assert state.updates.min() >= 1
    assert state.updates.sum() == 500 + 2 * 150
    assert not torch.equal(model.weight, before)

    names |= {"x": x[:100], "y": y[:100], "ids": torch.arange(100)}
    exec(compile(ast.parse(batch), "README", "exec"), names)
    assert names["x"].shape == (30, 4)
    assert torch.equal(names["y"], y[names["kept"].indices])

    exec(compile(ast.parse(tokens), "README", "exec"), names)
    log_p = names["token_logits"].double().log_softmax(-1)
    taken = log_p.gather(-1, names["tokens"][..., None])[..., 0]
    torch.testing.assert_close(names["log_probability"].double(), taken, rtol=1e-5, atol=1e-6)
    entropy = -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(names["entropy"].double(), entropy, rtol=1e-5, atol=1e-6)


def test_the_loop_is_short():
    loop = next(block for language, block in BLOCKS if language == "python")
    assert len([line for line in loop.splitlines() if line]) <= 10


def test_the_table_of_functions_is_complete():
    listed = set(re.findall(r"^\| `emp\.(\w+)`", README, re.M))
    public = {name: getattr(emp, name) for name in emp.__all__}
    used = {name for name, value in public.items() if isinstance(value, FunctionType | type)}
    results = {name for name, value in public.items() if hasattr(value, "_fields")}
    assert listed == used - results


def test_files_that_the_text_links_to_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists()

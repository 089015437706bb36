"""README and docs: tables are those of the committed rows, commands and snippets work."""

import json
import re
import shlex
import sys
import textwrap
import types
from pathlib import Path
from types import FunctionType, SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional as F

import emp_kernels as emp
from bench import readme_tables
from emp_kernels.cli import _parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
BLOCKS = BLOCK.findall(README)
COMMANDS = sorted(
    {
        line
        for page in PAGES
        for language, block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
        if language == "sh"
        for line in block.splitlines()
        if line
    }
)


def test_no_page_with_tables_is_left_out():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found = {p for p in pages if readme_tables.BLOCK.search(p.read_text(encoding="utf-8"))}
    assert {path.relative_to(ROOT).as_posix() for path in found} == set(readme_tables.PAGES)


@pytest.mark.parametrize("page", readme_tables.PAGES)
def test_tables_are_made_from_the_committed_rows(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert readme_tables.rewritten(text) == text, "run: python -m bench.readme_tables"
    for _, name, pattern, _ in readme_tables.BLOCK.findall(text):
        assert name in readme_tables.TABLES
        for file in ROOT.glob(pattern):
            assert '"commit": "' in file.read_text()
            assert "-dirty" not in file.read_text()


UNITS = "%|×|ms|µs|ns|s|min|h|minutes|hours|points?|GB/s|GB|MB|MiB|GFLOP/s|times"
QUANTITIES = {  # of the text: shares that are kept, limits and settings, what the paper says
    "README.md": {"30 %", "60 %", "95 %"},
    "docs/benchmarks.md": set(),
    "bench/README.md": {"12 GB", "6 s", "512 MiB", "95 %"},
    "docs/findings.md": {"95 %", "10 %"},
    "docs/findings_details.md": {"70 %", "10 %", "2.2 points"},
}


@pytest.mark.parametrize("page", QUANTITIES)
def test_measured_figures_stand_in_tables_alone(page):
    """Text outside the generated tables contains no measured quantity."""
    text = readme_tables.BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    text = re.sub(r"^```.*?^```$|`[^`\n]*`|\]\([^)]*\)", "", text, flags=re.M | re.S)
    found = re.findall(rf"(?<![\w.])\d[\d.,]*\s?(?:{UNITS})(?!\w)", text)
    assert set(found) <= QUANTITIES[page]


def test_the_demo_kept_its_time():
    """Two minutes on two cores, by the rows of the table (they leave out imports and plots)."""
    findings = (ROOT / "docs/findings_details.md").read_text(encoding="utf-8")
    (file,) = re.findall(r"<!-- table demo (\S+) -->", findings)
    rows = [json.loads(line) for line in (ROOT / file).read_text().splitlines()]
    assert len(rows) == 4 * 3 * 3
    assert sum(row["seconds"] for row in rows) < 100


@pytest.mark.parametrize("page", readme_tables.PAGES)
def test_a_changed_number_is_noticed(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in readme_tables.BLOCK.finditer(text):
        if any(ROOT.glob(block[3])):
            number = re.search(r"\d+\.\d ± \d\.\d|\d+\.\d+×|\d\d\.\d|\d\.\d\d", block[0])[0]
            changed = block[0].replace(number, number.replace(number[0], "7777"), 1)
            assert readme_tables.rewritten(text.replace(block[0], changed)) == text


def test_a_folder_of_newer_results_takes_over_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(readme_tables, "ROOT", tmp_path)
    new = "bench/results/2030-01-01-other-cpu-8"
    (tmp_path / new).mkdir(parents=True)
    (tmp_path / new / "cpu.jsonl").touch()
    old = "bench/results/2026-11-23-amd-epyc-2"
    text = (
        f"<!-- table cpu {old}/c*.jsonl --> {old}/cpu.jsonl {old}/d*.png ({old}/demo-digits.png)."
    )
    wanted = text.replace(f"{old}/c", f"{new}/c")
    assert readme_tables.pointed(text, new) == wanted


@pytest.mark.parametrize("command", COMMANDS)
def test_shell_commands_exist(command):
    """Each is a make target or a valid command line; nothing is run."""
    program, *arguments = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(arguments) <= set(targets)
        return
    assert (program, *arguments[:2]) == ("python", "-m", "emp_kernels")
    assert _parser().parse_args(arguments[2:]).command == arguments[2]


def test_the_two_commands_are_there():
    assert {"make demo", "make test", "python -m emp_kernels doctor"} <= set(COMMANDS)
    assert "`make demo`" in README
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_options_named_in_the_text_exist():
    (demo,) = [
        parser
        for action in _parser()._actions
        if getattr(action, "choices", None)
        for name, parser in action.choices.items()
        if name == "demo"
    ]
    findings = (ROOT / "docs/findings_details.md").read_text(encoding="utf-8")
    for option in re.findall(r"`(--[a-z-]+)`", findings):
        assert option in demo._option_string_actions


def programs(page):
    """The page's snippets with the comment in front of each and the text that it prints, as lists
    that run as one program each: README's alone, a page's one after the other."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(
        r"(?:<!-- needs: (\S+) -->\n)?^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?",
        text,
        re.M | re.S,
    )
    assert len(found) == len(re.findall("^```python$", text, re.M))
    return [[snippet] for snippet in found] if page == "README.md" else [found]


SNIPPETS = [
    pytest.param(program, id=f"{page}-{place}")
    for page in PAGES
    for place, program in enumerate(programs(page))
    if program
]


@pytest.mark.filterwarnings("error::emp_kernels.EMPWarning")
@pytest.mark.parametrize("program", SNIPPETS)
def test_snippets_run_as_they_stand(program, tmp_path, monkeypatch, capsys):
    """And print the output shown on the page."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)  # where pickle looks for their classes
    for needed, code, printed in program:
        if needed:
            pytest.importorskip(needed)
        torch.manual_seed(0)
        capsys.readouterr()
        exec(compile(code, "snippet", "exec"), vars(module))
        if printed:
            assert capsys.readouterr().out == printed


def test_the_loop_of_the_readme_prunes():
    """It draws everything once and then the share; the ten lines choose what the call does."""
    torch_lines, ours, loop = ({} for _ in range(3))
    for names, (snippet,) in zip((torch_lines, ours, loop), programs("README.md"), strict=True):
        torch.manual_seed(0)
        exec(compile(snippet[1], "README", "exec"), names)
    assert torch.equal(torch_lines["kept"], ours["kept"])
    assert loop["state"].updates.min() >= 1
    assert loop["state"].updates.sum() == 2000 + 2 * 600
    assert len(programs("README.md")[-1][0][1].splitlines()) <= 25
    assert README.count("\n") <= 150


@pytest.fixture
def group():
    """A default process group with only this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def changed(block, **names):
    """What the added lines of a diff return, or the names that they leave."""
    added = [line[1:] for line in block.splitlines() if line.startswith("+")]
    body = textwrap.indent(textwrap.dedent("\n".join(added)), "    ")
    exec(f"def run():\n{body}\n    return locals()", names | {"emp": emp}, names)
    return names["run"]()


def test_changes_to_large_stacks_compute_what_they_replace(group):
    page = (ROOT / "docs/howto/vocab_parallel.md").read_text(encoding="utf-8")
    megatron, titan, verl = [block for language, block in BLOCK.findall(page) if language == "diff"]
    logits = torch.randn(6, 5, 20, requires_grad=True)  # s, b, V
    labels = torch.randint(20, (6, 5))
    per_token = F.cross_entropy(logits.view(-1, 20), labels.view(-1), reduction="none")
    scores = emp.score(logits, labels)
    kept = emp.select(scores.score.flatten(), 0.6)

    model = SimpleNamespace(pg_collection=SimpleNamespace(tp=group))
    loss = changed(megatron, self=model, logits=logits, labels=labels).t()
    want = torch.zeros(30).index_copy(0, kept, per_token[kept]).view(6, 5)
    torch.testing.assert_close(loss, want)
    got = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(want.sum(), logits, retain_graph=True))

    padded = labels.clone()
    padded[:, 3:] = -100  # a share is that of the tokens that count
    mesh = init_device_mesh("cpu", (1,))
    pred = distribute_tensor(logits.detach(), mesh, [Shard(2)]).requires_grad_()
    loss = changed(titan, pred=pred, labels=padded, IGNORE_INDEX=-100)
    chosen = emp.score_and_select(logits, padded, None, 0.6, ignore_index=-100).indices
    assert len(chosen) == 11
    torch.testing.assert_close(loss, per_token[chosen].sum())
    loss.backward()
    want = torch.autograd.grad(per_token[chosen].sum(), logits, retain_graph=True)
    torch.testing.assert_close(pred.grad.to_local(), want[0])

    asked = ("calculate_sum_pi_squared", "distillation_use_topk", "distillation_only")
    mpu = SimpleNamespace(get_tensor_model_parallel_group=lambda: group)
    temperature = 0.5 + torch.rand(6, 5)
    names = {"mpu": mpu, "logits": logits, "label": labels, "temperature": temperature}
    found = changed(verl, **names, **dict.fromkeys(asked, False))
    of_all = (logits / temperature[..., None]).log_softmax(-1)
    wanted = {
        "log_probs": of_all.gather(-1, labels[..., None])[..., 0],
        "entropy": -(of_all.exp() * of_all).sum(-1),
    }
    up = torch.randn(6, 5)
    for name, want in wanted.items():
        torch.testing.assert_close(found[name], want)
        got, true = (
            torch.autograd.grad((up * value).sum(), logits, retain_graph=True)
            for value in (found[name], want)
        )
        torch.testing.assert_close(got, true)


def test_the_table_of_functions_is_complete():
    index = (ROOT / "docs/api/index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| \[`emp\.(\w+)`\]", index, re.M))
    public = {name: getattr(emp, name) for name in emp.__all__}
    used = {name for name, value in public.items() if isinstance(value, FunctionType | type)}
    results = {name for name, value in public.items() if hasattr(value, "_fields")}
    assert listed == used - results - {"EMPWarning"}
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs/api").glob("*.md")]
    documented = re.findall(r"^\.\. auto(?:function|class):: (\w+)$", "\n".join(pages), re.M)
    assert set(public) - {"distributed"} <= set(documented)
    assert set(emp.distributed.__all__) <= set(documented)


def test_every_example_is_named_beside_what_its_checkpoints_hold():
    """What is said of them is what tests/test_integrations_*.py resume from."""
    pytest.importorskip("transformers")
    from emp_kernels.integrations.transformers import CHECKPOINT

    table = README[README.index("| training with |") :].split("\n\n")[0]
    linked = re.findall(r"\]\((examples/[\w.]+)\)", table)
    assert sorted(linked) == sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py")
    )
    assert f"`{CHECKPOINT}`" in table
    lightning = (ROOT / "emp_kernels/integrations/lightning.py").read_text()
    assert 'checkpoint["emp"] = ' in lightning
    for link in re.findall(r"\[(EMP\w+)\]\((emp_kernels/\S+)\)", table):
        assert f"class {link[0]}" in (ROOT / link[1]).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_files_that_the_text_links_to_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#\s]+)[^)]*\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_accumulation_resumes_between_any_two_groups(tmp_path, monkeypatch):
    """The page's loop, stopped at every step in turn: every step is taken and every id trained."""
    (program,) = programs("docs/howto/training.md")
    names = {}
    for _, code, _ in program[:2]:
        exec(compile(code, "training.md", "exec"), names)
    for parts in (2, 3):  # 3 leaves a smaller group at each epoch's end
        names["parts"] = parts
        whole, planned, _ = names["train"](tmp_path / "none")
        assert planned == -(-20 // parts) * 2 + -(-6 // parts) * 2
        path = tmp_path / f"{parts}.pt"
        for until in range(1, planned + 1):
            state, step, steps = names["train"](path, until)
            assert (step, steps) == (until, planned)
        assert torch.equal(state.updates.sum(), whole.updates.sum())
        assert state.updates.sum() == 1000 + 300 + 300 + 1000

"""Imports run one way through the layers, and `import emp_kernels` stays light."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import emp_kernels

PACKAGE = Path(emp_kernels.__file__).parent
ROOT = "emp_kernels"

# From the bottom up: a module imports from its own layer and from those below.
PUBLIC: set[str] = set()  # every top-level module that no other layer names
LAYERS = (
    {"_cpu", "_cuda", "kernels"},
    {
        "arrays",
        "cautions",
        "keep",
        "one_row",
        "options",
        "order_keys",
        "results",
        "similarities",
        "terms",
    }
    | {"containers", "term_tiles", "tiles", "tracing", "validation"},
    {"backends"},
    {"ops", "term_ops"},
    {"gathering", "scoring", "selection"},
    PUBLIC,
    {ROOT},
    {"integrations", "terminal"},
    {"experiments"},
    {"__main__", "cli"},
)
COMMANDS = LAYERS.index({ROOT}) + 1  # the first of the layers that `import emp_kernels` leaves out
# What a module may import when it is loaded; commands, integrations and the kernels load more, and
# every module may import anything inside a function.
ALWAYS_THERE = {*sys.stdlib_module_names, "numpy", "torch", ROOT}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def first_part(module: str) -> str:
    """`backends` for emp_kernels.backends.cpu; the root for the package."""
    return module.split(".")[1] if "." in module else ROOT


def layer(module: str) -> int:
    submodule = first_part(module)
    return next(
        (i for i, submodules in enumerate(LAYERS) if submodule in submodules), LAYERS.index(PUBLIC)
    )


def imported(module: str, statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Absolute names that `statement` imports; `from a import b` is a.b where that is a module."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    base = statement.module or ""
    if statement.level:
        package = module.split(".")
        if MODULES[module].name != "__init__.py":
            package.pop()
        package = package[: len(package) - statement.level + 1]
        base = ".".join([*package, base] if base else package)
    for alias in statement.names:
        name = f"{base}.{alias.name}"
        native = name in (f"{ROOT}._cpu", f"{ROOT}._cuda")
        yield name if native or name in MODULES else base


def imports(module: str, *, in_functions: bool) -> set[str]:
    """Names that `module` imports when it is loaded and, `in_functions`, also when it is called.

    Imports for type checkers alone never run and do not count.
    """
    names: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(MODULES[module].read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names.update(imported(module, node))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes.extend(node.orelse)
        elif in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes.extend(ast.iter_child_nodes(node))
    return names


def edges(module: str) -> set[str]:
    """Modules of the package that `module` imports, anywhere."""
    return {name for name in imports(module, in_functions=True) if name.split(".")[0] == ROOT}


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_from_its_own_layer_and_below(module: str) -> None:
    above = {name for name in edges(module) if layer(name) > layer(module)}
    assert not above, f"{module} imports {sorted(above)}, from a layer above its own"


def test_no_cycle() -> None:
    order = list(TopologicalSorter({module: edges(module) for module in MODULES}).static_order())
    assert set(MODULES) <= set(order)


def test_backends_never_import_one_another() -> None:
    for module in MODULES:
        if first_part(module) != "backends" or module == f"{ROOT}.backends":
            continue
        own = ".".join(module.split(".")[:3])
        others = {
            name
            for name in edges(module)
            if name.startswith(f"{ROOT}.backends.") and ".".join(name.split(".")[:3]) != own
        }
        assert not others, f"{module} imports {sorted(others)}"


def test_only_backends_and_commands_touch_kernels_and_native_modules() -> None:
    for module in MODULES:
        if first_part(module) in {"backends", "kernels"} or layer(module) >= COMMANDS:
            continue
        low = {name for name in edges(module) if layer(name) == 0}
        assert not low, f"{module} imports {sorted(low)}; that is for a backend to do"


def test_optional_packages_are_imported_late() -> None:
    for module in MODULES:
        if first_part(module) in {"backends", "kernels"} or layer(module) >= COMMANDS:
            continue  # loaded on demand; the fresh processes below see that they are
        loaded = imports(module, in_functions=False)
        heavy = {name for name in loaded if name.split(".")[0] not in ALWAYS_THERE}
        assert not heavy, f"{module} loads {sorted(heavy)}; import it inside the function"


def loaded_by(statement: str) -> set[str]:
    """Modules that `statement` adds, in a fresh process, to those that `import torch` loads."""
    program = (
        "import json, sys, torch\n"
        "before = set(sys.modules)\n"
        f"{statement}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    path = [str(PACKAGE.parent)]
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_import_loads_nothing_beyond_torch() -> None:
    loaded = loaded_by("import emp_kernels")
    assert f"{ROOT}.scoring" in loaded
    foreign = {name for name in loaded if name.split(".")[0] not in ALWAYS_THERE}
    assert not foreign, f"import emp_kernels loads {sorted(foreign)}"
    on_demand = {"_cpu", "_cuda", "kernels"}.union(*LAYERS[COMMANDS:])
    inside = {name for name in loaded if name.split(".")[0] == ROOT}
    assert not {name for name in inside if first_part(name) in on_demand}
    assert not {name for name in inside if name.startswith(f"{ROOT}.backends.")}


def test_a_cpu_call_loads_no_triton() -> None:
    loaded = loaded_by(
        "import emp_kernels\n"
        "emp_kernels.score(torch.zeros(2, 3), torch.tensor([0, 1]))\n"
        "emp_kernels.select(torch.zeros(2), 1)"
    )
    assert f"{ROOT}.scoring" in loaded
    foreign = {name.split(".")[0] for name in loaded} - ALWAYS_THERE
    assert not foreign, f"scoring on the CPU loads {sorted(foreign)}"


def test_the_command_line_is_light_until_a_command_runs() -> None:
    loaded = loaded_by("import emp_kernels.cli")
    foreign = {name.split(".")[0] for name in loaded} - ALWAYS_THERE
    assert not foreign, f"import emp_kernels.cli loads {sorted(foreign)}"

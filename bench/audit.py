"""``make audit``: what the compiler made of every Triton kernel, read from its machine code.

    python bench/audit.py [variants whose name holds this]

Needs no GPU. Every launch of the backend is recorded instead of run, compiled ahead of time for
sm_80 and sm_90 with the constants that it would have had, and disassembled with the tools of the
Triton package; each kernel is also compiled for sm_100. Of sm_80 and sm_90 it is asserted that
nothing spills or lives in local memory, that registers stay under the bound
(EMP_AUDIT_MAX_REGISTERS, by default 128), and that a scoring kernel loads each logit once, 16
bytes at a time where rows allow it. A product's tile fills the registers; of 16-bit elements it
must be the tensor cores'.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from emp_kernels.kernels import contrastive, launch, launch_linear, plan, select_large

TARGETS = (80, 90, 100)
READ = (80, 90)  # whose machine code is checked; sm_100 must compile
MAX_REGISTERS = 128
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.bool: "*i1",
    torch.int64: "*i64", torch.int32: "*i32", torch.uint32: "*u32", torch.uint8: "*u8",
}  # fmt: skip


class Launch(NamedTuple):
    """A recorded launch: the kernel, its arguments by name, and its compiler options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


class Code(NamedTuple):
    """What was read from one kernel's machine code."""

    registers: int
    local_bytes: int
    spills: int
    loads: Counter  # of global loads in the whole kernel, by bits
    loop_loads: Counter  # in the largest loop
    loop_length: int
    tensor_core: int  # instructions


class Recorder:
    """Stands in for a kernel and notes its launches."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.record

    def record(self, *args: Any, **kwargs: Any) -> None:
        names = self.kernel.arg_names
        arguments = dict(zip(names, args, strict=False))
        options = {}
        for name, value in kwargs.items():
            (arguments if name in names else options)[name] = value
        self.launches.append(Launch(self.kernel, arguments, options))


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches are noted instead of run, as if on a chip of 132 multiprocessors."""
    launches: list[Launch] = []
    kept: list[tuple[Any, str, Any]] = []
    for module in (launch, launch_linear):
        kept.append((module, "processors", module.processors))
        module.processors = lambda device: 132
    for module in (contrastive, launch, launch_linear, select_large):
        for name, value in list(vars(module).items()):
            if isinstance(value, triton.runtime.jit.JITFunction):
                kept.append((module, name, value))
                setattr(module, name, Recorder(value, launches))
    try:
        yield launches
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def compile_for(recorded: Launch, target: int) -> Any:
    """The recorded launch's kernel for one architecture."""
    kernel, names = recorded.kernel, recorded.kernel.arg_names
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(names):
        value = recorded.arguments[name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif name.isupper() or value is None:
            signature[name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
    options = {"num_warps": 4} | recorded.options
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def read_code(cubin: bytes) -> Code:
    """Resources and loads of the one kernel in `cubin`."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        assembly = _cuobjdump("-sass", file.name)
    lines = [
        (int(match[1], 16), match[2])
        for match in re.finditer(r"^\s+/\*([0-9a-f]{4,})\*/\s+([^;]+);", assembly, re.MULTILINE)
    ]
    resources = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    start, end = 0, 0
    for address, text in lines:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address and address - int(jump[1], 16) > end - start:
            start, end = int(jump[1], 16), address
    loop = [text for address, text in lines if start <= address <= end] if end else []
    return Code(
        registers=resources["REG"],
        local_bytes=resources["STACK"] + resources["LOCAL"],
        spills=len(re.findall(r"\b(?:STL|LDL)\b", assembly)),
        loads=_loads(text for _, text in lines),
        loop_loads=_loads(loop),
        loop_length=len(loop),
        tensor_core=len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA)\b", assembly)),
    )


def _cuobjdump(option: str, path: str) -> str:
    done = subprocess.run(
        [str(TOOLS / "cuobjdump"), option, path], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def _loads(lines: Any) -> Counter:
    """Global loads, also those straight to shared memory, by their bits."""
    counts: Counter = Counter()
    for text in lines:
        for modifiers in re.findall(r"\bLDG(?:STS)?((?:\.\w+)*)", text):
            bits = re.search(r"\.(?:[US])?(128|64|16|8)\b", modifiers)
            counts[int(bits[1]) if bits else 32] += 1
    return counts


def variants() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every launch to check: its name, and a call that makes it."""
    f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
    many, few = 100_000, 256
    for classes, dtype in (
        (10, f32), (100, bf16), (1000, f32), (1000, f16), (1000, bf16), (8192, bf16),
        (32000, f32), (32000, bf16),
    ):  # fmt: skip
        yield f"score C={classes} {name_of(dtype)}", scoring(many, classes, dtype)
    for classes in (1000, 32000):
        for dtype in (f32, bf16):
            name = f"sample_statistics C={classes} {name_of(dtype)}"
            yield name, scoring(many, classes, dtype, statistics=True)
    for classes in (1001, 50257):
        yield f"score C={classes} bfloat16 ragged", scoring(many, classes, bf16)
    for classes in (1000, 32000):
        yield f"row_sums C={classes} bfloat16", scoring(many, classes, bf16, sums=True)
    yield "score C=1000 grouped ignore", scoring(many, 1000, bf16, group=7, ignore=-100)
    state = fields_of_state(few)
    ids = torch.empty(few, dtype=torch.int64)
    for classes, rows in ((1000, few), (128256, 8)):
        yield (
            f"score_and_select N={rows} C={classes}",
            scoring(rows, classes, f32, keep=77 if rows == few else 2, state=state, ids=ids),
        )
    yield f"score_and_select N={plan.FEW} C=1000", scoring(plan.FEW, 1000, bf16, keep=1000)
    for classes in (10, 32000):
        yield f"cross_entropy_backward C={classes}", gradient(1000, classes, bf16)
    yield "cross_entropy_backward of a shard C=32000", gradient(1000, 32000, bf16, shard=True)
    for dtype in (bf16, f16, f32):
        yield f"score_linear D=4096 {name_of(dtype)}", product(4096, 4096, dtype)
    yield "score_linear D=1024 bias ignore", product(4096, 1024, bf16, bias=True, ignore=-100)
    yield "score_linear N=16", product(16, 1024, bf16)
    for depth in (1000, 1001):
        yield f"score_linear D={depth}", product(4096, depth, bf16)
    scores = torch.empty(many)
    yield "select N=1024", lambda: launch.select(scores[:1024], 300)
    yield "select N=100000", lambda: launch.select(scores, 300)
    histogram = torch.empty(plan.BINS, dtype=torch.int32)
    yield "selection after scoring", lambda: launch.select_many(scores, 9, histogram, ids, state)
    yield "state", lambda: launch.remember(state, ids, [scores[:few]] * 3)
    for width, dtype in ((128, f32), (512, f32), (128, bf16), (2048, f16)):
        for itself in (False, True):
            name = f"similarities D={width} {name_of(dtype)}{' itself' if itself else ''}"
            yield name, similarities(16384, width, dtype, itself)
    yield "few rows, ignored ones", lambda: launch.finish_few(torch.empty(4, few), 9, ids, state)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def fields_of_state(size: int) -> SimpleNamespace:
    """A state's tensors, uninitialised: nothing runs."""
    integers = {name: torch.empty(size, dtype=torch.int32) for name in ("updates", "selections")}
    integers["seen_at"] = torch.empty(size, dtype=torch.int32)
    values = {name: torch.empty(size) for name in ("score", "loss", "entropy")}
    clock = torch.zeros((), dtype=torch.int32)
    return SimpleNamespace(**values, **integers, clock=clock, num_samples=size)


def scoring(n, classes, dtype, *, group=0, ignore=None, **options) -> Callable[[], Any]:
    """A scoring launch on n rows, of which no memory is needed."""
    logits = torch.empty(64, dtype=dtype)
    per_group, stride = (group, group * classes + 64) if group else (n, 0)
    rows = launch.Rows(logits, n, classes, per_group, stride, classes)
    labels = torch.empty(n, dtype=torch.int64)
    return lambda: launch.score(rows, labels, 1.0, ignore, **options)


def gradient(n, classes, dtype, shard=False) -> Callable[[], Any]:
    """A backward launch; its output needs memory, but none of it is touched."""
    rows = launch.Rows(torch.empty(64, dtype=dtype), n, classes, n, 0, classes)
    values = torch.empty(n)
    labels = torch.empty(n, dtype=torch.int64)
    maximum = values if shard else None
    return lambda: launch.gradient(rows, labels, values, values, values, maximum)


def product(n, depth, dtype, *, bias=False, ignore=None) -> Callable[[], Any]:
    """A launch of the scores of a product with 128256 classes; one row stands for all."""
    classes = 128256
    hidden = torch.empty(1, depth, dtype=dtype).expand(n, depth)
    weight = torch.empty(1, depth, dtype=dtype).expand(classes, depth)
    added = torch.empty(classes, dtype=dtype) if bias else None
    labels = torch.zeros(n, dtype=torch.int64)
    return lambda: launch_linear.score_linear(hidden, weight, added, labels, 1.0, ignore)


def similarities(n, width, dtype, itself) -> Callable[[], Any]:
    """A launch on two views of n rows; nothing of them is touched."""
    side = torch.empty(n, width, dtype=dtype), torch.empty(n)
    return lambda: contrastive.similarity_sums(side, side, 0, itself)


def logit_bits(recorded: Launch) -> tuple[int, int]:
    """Of a scoring kernel, the widest load that its rows allow, and how many such loads a thread
    makes for the logits that are in registers at a time."""
    a = recorded.arguments
    bits = a["V"] * a["logits"].element_size() * 8
    threads = 32 * recorded.options["num_warps"]
    return bits, a.get("ROWS", 1) * a["WIDTH"] * a["TILES"] // (a["V"] * threads)


def faults(recorded: Launch, code: Code, max_registers: int) -> list[str]:
    """What is wrong with the machine code."""
    found = []
    if code.spills or code.local_bytes:
        found.append(f"{code.spills} spills, {code.local_bytes} bytes of local memory")
    is_product = "PRECISION" in recorded.arguments
    if is_product and recorded.arguments["hidden"].element_size() == 2 and not code.tensor_core:
        found.append("no tensor-core instructions")
    if code.registers > max_registers and not (is_product and max_registers == MAX_REGISTERS):
        found.append(f"{code.registers} registers, more than {max_registers}")
    if "TILES" in recorded.arguments:  # a scoring kernel
        bits, wanted = logit_bits(recorded)
        stream = "PARTS" in recorded.arguments
        got = (code.loop_loads if stream else code.loads)[bits]
        own = 0 if stream else _other_loads(recorded)[bits]
        if got - own != max(1, wanted):
            found.append(f"{got - own} loads of {bits} bits for the logits, {wanted} are needed")
        if stream and set(code.loop_loads) != {bits}:
            found.append(f"loads in the loop are {dict(code.loop_loads)}")
    if recorded.kernel.__name__ == "similarity_rows" and not code.tensor_core:
        found.append("no tensor-core instruction")
    return found


def _other_loads(recorded: Launch) -> Counter:
    """Loads of a kernel on whole rows that are not of a tile: the labels and their logits, and
    what the last program reads. Only those as wide as a narrow tile can be mistaken for one."""
    a = recorded.arguments
    others: Counter = Counter()
    others[64] += 1
    return others if a["V"] * a["logits"].element_size() == 8 else Counter()


def audit(max_registers: int, only: str) -> int:
    """Prints a line for each variant whose name holds `only`; returns how many have faults."""
    global _work
    _work = list(_compilations(only))
    workers = min(len(os.sched_getaffinity(0)), max(1, len(_work)))
    print(f"{'kernel':<52}{'target':>7}{'regs':>6}{'local':>6}  {'loads (bits: count)':<28}loop")
    wrong = 0
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        results = pool.imap(_read, range(len(_work)))
        for (title, recorded, target), code in zip(_work, results, strict=True):
            if target not in READ:
                continue
            complaints = faults(recorded, code, max_registers)
            wrong += bool(complaints)
            loop = f"{code.loop_length} instr., {_text(code.loop_loads)}"
            print(
                f"{title:<52}{'sm_' + str(target):>7}{code.registers:>6}{code.local_bytes:>6}"
                f"  {_text(code.loads):<28}{loop if code.loop_length else '-'}"
                + "".join(f"  FAULT: {text}" for text in complaints)
            )
    return wrong


def _compilations(only: str) -> Iterator[tuple[str, Launch, int]]:
    """What is to be compiled: each variant for the targets that are read, each kernel for all."""
    variants_seen, kernels_seen = set(), set()
    for name, call in variants():
        if only not in name:
            continue
        with recording() as launches:
            call()
        for recorded in launches:
            constants = {k: v for k, v in recorded.arguments.items() if k.isupper()}
            types = [getattr(value, "dtype", None) for value in recorded.arguments.values()]
            kernel = recorded.kernel.__name__
            variant = (kernel, str(constants), str(recorded.options), str(types))
            if variant in variants_seen:
                continue
            title = f"{name}: {kernel}" if len(launches) > 1 else name
            for target in TARGETS:
                if target in READ or kernel not in kernels_seen:
                    yield title, recorded, target
            variants_seen.add(variant)
            kernels_seen.add(kernel)


_work: list[tuple[str, Launch, int]] = []  # of this process and of those that it forks


def _read(i: int) -> Code:
    _, recorded, target = _work[i]
    return read_code(compile_for(recorded, target).asm["cubin"])


def _text(loads: Counter) -> str:
    return ", ".join(f"{bits}: {count}" for bits, count in sorted(loads.items(), reverse=True))


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("audit: TRITON_INTERPRET must be unset: the interpreter compiles nothing")
        return 2
    max_registers = int(os.environ.get("EMP_AUDIT_MAX_REGISTERS", MAX_REGISTERS))
    wrong = audit(max_registers, " ".join(sys.argv[1:]))
    print(f"{wrong} faults" if wrong else "no faults; every kernel compiles for sm_100 too")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""``make audit``: checks the machine code of every Triton kernel.

    python -m bench.audit [variants whose name holds this]

Needs no GPU. Every launch of the backend is recorded instead of run (`recording`, `variants`),
compiled ahead of time for sm_80 and sm_90 with the constants that it would have had, and
disassembled with the tools of the Triton package (`machine_code`); each kernel is also compiled
for sm_100, and for AMD's gfx942, where it must not spill either. Of sm_80 and sm_90 it is asserted
(`demands`) that nothing spills or lives in local memory, that registers stay under the bound
(EMP_AUDIT_MAX_REGISTERS, by default 128), and that a scoring kernel loads each logit once, 16 bytes
at a time if rows allow it. A product's tile fills the registers; with 16-bit elements it must use
tensor cores.
"""

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator

from bench.audit.demands import MAX_REGISTERS, faults
from bench.audit.machine_code import Code, compile_for, read_amd, read_code
from bench.audit.recording import Launch, recording
from bench.audit.variants import variants

TARGETS: tuple[int | str, ...] = (80, 90, 100, "gfx942")
READ = (80, 90)  # whose machine code is checked; sm_100 must compile


def audit(max_registers: int, only: str) -> int:
    """Prints a line for each variant whose name holds `only`; returns the number of variants with
    faults."""
    global _work
    _work = list(_compilations(only))
    workers = min(len(os.sched_getaffinity(0)), max(1, len(_work)))
    print(f"{'kernel':<52}{'target':>7}{'regs':>6}{'local':>6}  {'loads (bits: count)':<28}loop")
    wrong = 0
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        results = pool.imap(_read, range(len(_work)))
        for (title, recorded, target), code in zip(_work, results, strict=True):
            if target not in READ:
                if code is not None and code[1]:
                    wrong += 1
                    print(f"{title:<52}{target:>7}{code[0]:>6}{code[1]:>6}  FAULT: it spills")
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


def _compilations(only: str) -> Iterator[tuple[str, Launch, int | str]]:
    """What to compile: each variant for the checked targets, each kernel for all targets."""
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


_work: list[tuple[str, Launch, int | str]] = []  # shared with forked processes


def _read(i: int) -> Code | tuple[int, int] | None:
    """What was read, of AMD's code two numbers; nothing of what must only compile."""
    _, recorded, target = _work[i]
    assembly = compile_for(recorded, target).asm
    if target in READ:
        return read_code(assembly["cubin"])
    return read_amd(assembly["amdgcn"]) if isinstance(target, str) else None


def _text(loads: Counter) -> str:
    return ", ".join(f"{bits}: {count}" for bits, count in sorted(loads.items(), reverse=True))


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("audit: TRITON_INTERPRET must be unset: the interpreter compiles nothing")
        return 2
    max_registers = int(os.environ.get("EMP_AUDIT_MAX_REGISTERS", MAX_REGISTERS))
    wrong = audit(max_registers, " ".join(sys.argv[1:]))
    print(
        f"{wrong} faults" if wrong else "no faults; every kernel compiles for sm_100 and gfx942 too"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

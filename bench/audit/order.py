"""In which order a compiled scoring kernel adds up a row: how the sums' elements lie in threads."""

from __future__ import annotations

import re

from bench.audit.machine_code import compile_for
from bench.audit.recording import Launch

REDUCTION = re.compile(
    r'"tt\.reduce"\([^)]*\) <\{axis = (\d) : i32\}> \(\{(.*?)\}\) : '
    r"\(tensor<([\dx]+)xf32, (.+?)>[,)]",
    re.DOTALL,
)
BLOCKED = re.compile(r"(#blocked\d*) = #ttg\.blocked<\{(.*?)\}>")
SLICE = re.compile(r"slice<\{dim = (\d), parent = (#blocked\d*)\}>")


def sums_of(recorded: Launch, target: int) -> set[str]:
    """The float32 sums in the kernel: how many elements, and how many of them a thread has side by
    side, then the threads of a warp and the warps. In the order of these they are added up."""
    text = compile_for(recorded, target).asm["ttgir"]
    layouts = dict(BLOCKED.findall(text))
    found = set()
    for axis, body, shape, layout in REDUCTION.findall(text):
        if "arith.addf" not in body:
            continue
        along, name = int(axis), layout
        sliced = SLICE.search(layout)
        if sliced:  # what is left of two dimensions
            along, name = 1 - int(sliced[1]), sliced[2]
        counts = re.findall(r"\[([\d, ]+)\]", layouts[name])[:3]
        spread = [count.split(", ")[along] for count in counts]
        found.add(f"{shape.split('x')[int(axis)]} elements: {' × '.join(spread)}")
    return found

"""Requirements on the machine code."""

from collections import Counter

from bench.audit.machine_code import Code
from bench.audit.recording import Launch

MAX_REGISTERS = 128


def faults(recorded: Launch, code: Code, max_registers: int) -> list[str]:
    """The violated requirements."""
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


def logit_bits(recorded: Launch) -> tuple[int, int]:
    """For a scoring kernel, the widest load that its rows allow, and the number of such loads per
    thread for the logits in registers at a time."""
    a = recorded.arguments
    bits = a["V"] * a["logits"].element_size() * 8
    if "LANES" in a:
        return bits, a["TILES"]
    threads = 32 * recorded.options["num_warps"]
    return bits, a["ROWS"] * a["WIDTH"] * a["TILES"] // (a["V"] * threads)


def _other_loads(recorded: Launch) -> Counter:
    """Number of loads of a whole-row kernel that do not belong to a tile: labels, their logits, and
    the last program's reads. Only those as wide as a narrow tile can be mistaken for tile loads."""
    a = recorded.arguments
    others: Counter = Counter()
    others[64] += 1
    return others if a["V"] * a["logits"].element_size() == 8 else Counter()

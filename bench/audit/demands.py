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
        own = 0 if stream else _other_loads(recorded, code)[bits]
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
    each = 1 if a["SPREAD"] else a["V"]  # columns of a load
    bits = each * a["logits"].element_size() * 8
    if "LANES" in a:
        return bits, a["TILES"] * a["V"] // each
    threads = 32 * recorded.options["num_warps"]
    return bits, a["ROWS"] * a["WIDTH"] * a["TILES"] // (each * threads)


def _other_loads(recorded: Launch, code: Code) -> Counter:
    """Loads of a kernel on whole rows that are not of a tile: the labels and their logits, and
    what the last program reads. Only those as wide as a tile's can be mistaken for one."""
    a = recorded.arguments
    others: Counter = Counter()
    if a["SPREAD"]:  # of each label its logit, as wide as all others
        others[a["logits"].element_size() * 8] = code.loads[64]
        return others
    others[64] += 1
    return others if a["V"] * a["logits"].element_size() == 8 else Counter()

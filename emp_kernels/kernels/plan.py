"""Launch configurations: how shapes are divided into programs, and the kernels' constants."""

import functools
from typing import NamedTuple

ROWS_LIMIT = 8192  # up to this many classes a whole row is held in registers
FUSED = 2048  # up to this many rows the last program of a scoring launch selects
FEW = 8192  # up to this many rows one program selects; for more, several are faster
BLOCK = 4096  # rows that it handles at a time
VECTOR_BYTES = 16
LONG_ROW = 256  # from this many classes on an unaligned row is read with an edge
WORK_SIZE = 8  # fixed ints of work memory, before those that a call adds
CHUNK = 4096  # scores per program and step
DIGITS = 256  # bins of one narrowing of the bracket
PLAN_SIZE = 16 + 4 * DIGITS  # ints of select_large's plan
# Arguments whose values must not cause new variants.
SIZES = ["n", "rows_per_group", "group_stride", "row_stride", "vectors", "classes", "misaligned"]
SIZES += ["ignore_index", "num_samples", "keep", "chunks", "step"]
# Arguments whose alignment must not cause new variants; kernels state it where they need it.
POINTERS = ["logits", "labels", "ids", "out", "correct", "prediction", "work", "indices"]
POINTERS += ["threshold", "parts"]
POINTERS += ["score", "loss", "entropy", "scores", "slots", "above", "inside", "plan", "taken"]
POINTERS += ["ties", "state_score", "state_loss", "state_entropy", "state_updates"]
POINTERS += ["state_selections", "state_seen_at", "state_clock", "claims", "before"]
ONCE = {"do_not_specialize": SIZES, "do_not_specialize_on_alignment": POINTERS}


class Layout(NamedTuple):
    """How rows are read: `vector` elements at a time, with an edge if rows are `ragged`."""

    vector: int
    ragged: bool


class Plan(NamedTuple):
    """One scoring launch: `rows` rows per program, or `parts` programs per row if it is `stream`;
    `tiles` tiles of `width` columns are in registers at a time."""

    stream: bool
    rows: int
    parts: int
    width: int
    tiles: int
    compensated: bool
    warps: int


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


@functools.lru_cache(maxsize=4096)
def layout_of(
    address: int, group_stride: int, row_stride: int, classes: int, itemsize: int
) -> Layout:
    """The widest loads that are aligned for every row; for long rows that allow less than 8 bytes,
    16-byte loads between a ragged head and tail."""
    full = VECTOR_BYTES // itemsize
    vector = full
    while vector > 1 and (
        address % (vector * itemsize)
        or classes % vector
        or row_stride % vector
        or group_stride % vector
    ):
        vector //= 2
    if vector * itemsize < 8 and classes >= LONG_ROW:
        return Layout(full, True)
    return Layout(vector, False)


@functools.lru_cache(maxsize=4096)
def plan_of(
    n: int, classes: int, itemsize: int, vector: int, processors: int, statistics: bool = False
) -> Plan:
    """The launch for logits (n, classes) on a chip of `processors` multiprocessors."""
    # 16-bit logits are read twice as fast, and long rows average the error: see numerics.exp_scaled
    compensated = itemsize == 4 or classes <= 512
    wanted = 2 * processors  # programs that fill the chip
    if classes > ROWS_LIMIT:
        # Measured on an H200: small programs run out of phase, so that some read while others
        # compute. Few rows need more threads each, and so does a selection at the end.
        warps = 8 if n < 8 * processors else 2 if itemsize == 2 and n > FUSED else 4
        width = 32 * warps * vector
        tiles = 4 if statistics and itemsize == 2 else 8  # as many as registers allow
        steps = -(-classes // (width * tiles))
        parts = 1
        while parts < 64 and n * parts < wanted and steps >= 2 * parts:
            parts *= 2
        return Plan(True, 1, parts, width, tiles, compensated, warps)
    columns = max(power_of_two(classes), vector)
    # A thread that reads more of its row has less to reduce with others; registers are the limit.
    most = 16 if itemsize == 2 and columns > 2048 and not statistics else 8
    tiles = max(1, min(most, columns // (4 * vector)))
    width = columns // tiles
    threads = 64 if columns > 4096 and most == 16 and n > FUSED else 128
    rows = max(1, threads * vector // width)
    while rows > 1 and n < rows * wanted:
        rows //= 2
    while tiles > 1 and rows * width < threads * vector:  # few rows: more threads per row
        tiles //= 2
        width *= 2
    warps = max(threads // 32, min(16, rows * width // (32 * vector)))
    return Plan(False, rows, 1, width, tiles, compensated, warps)


class Tile(NamedTuple):
    """How one program selects: among `rows` rows, `block` at a time, with `warps` warps."""

    rows: int
    block: int
    warps: int


def tile_of(n: int) -> Tile:
    """The tile in which one program holds n <= FEW rows; few distinct sizes, so that few variants
    are compiled."""
    rows = next(rows for rows in (256, 1024, FUSED, FEW) if n <= rows)
    # With 256 rows, four warps would get 32 registers per thread on sm_90 and spill.
    warps = 2 if rows <= 256 else 4 if rows <= FUSED else 16
    return Tile(rows, min(rows, BLOCK), warps)


class Sample(NamedTuple):
    """The sample for the first bracket of a large selection, and the `slot` size per chunk for the
    keys in the bracket: a larger sample leaves fewer keys."""

    draws: int
    slot: int
    warps: int


def sample_of(n: int) -> Sample:
    """A small sample is faster, a large one saves reading: 17 or 6 percent of the keys are in its
    bracket."""
    return Sample(1024, 1024, 4) if n <= 2**21 else Sample(8192, 512, 16)

"""Layout of a call's work memory (int32), zero at the start and again behind a launch that selects:
what programs count and hand on."""

import triton.language as tl

from . import plan

INVALID = tl.constexpr(0)  # rows whose score is NaN
TICKET = tl.constexpr(1)  # programs of the scoring kernel that have finished
BOTTOM = tl.constexpr(2)  # rows that count and whose score is -inf, as a negative beta's can be
ROW_TICKETS = tl.constexpr(plan.WORK_SIZE)  # first count of a row's parts that have finished

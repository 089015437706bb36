"""Layout of a call's work memory (int32), zero at the start and again behind a launch that selects:
what programs count and hand on."""

import triton.language as tl

from . import plan

INVALID = tl.constexpr(0)  # number of rows whose score is NaN
TICKET = tl.constexpr(1)  # number of finished programs of the scoring kernel
BOTTOM = tl.constexpr(2)  # valid rows whose score is -inf, possible with a negative beta
ROW_TICKETS = tl.constexpr(plan.WORK_SIZE)  # from here: finished parts of each row

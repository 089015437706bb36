"""``python -m emp_kernels doctor``: this machine's devices, and the backend of each operation."""

import warnings
from collections.abc import Sequence

import torch

from .. import backends
from ..experiments import provenance

OPERATIONS = (
    "score",
    "sample_statistics",
    "score_and_select",
    "score_linear",
    "score_contrastive",
    "linear_cross_entropy",
    "linear_log_prob_and_entropy",
    "cross_entropy",
    "log_prob_and_entropy",
    "select",
    "rank",
    "gather",
    "EMPState.update",
    "EMPSampler",
    "distributed.score_vocab_parallel",
)


def report() -> str:
    """The whole report, for a terminal or a bug report."""
    sections = (
        ("Versions", _versions()),
        ("Machine", _machine()),
        ("Backends", _backends()),
        ("Operations", _operations()),
    )
    return "\n\n".join(
        "\n".join([title, *(f"  {line}".rstrip() for line in lines)]) for title, lines in sections
    )


def devices() -> list[torch.device]:
    """The CPU and every accelerator that torch can use here."""
    found = [torch.device("cpu")]
    found += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    found += [torch.device("xpu", i) for i in range(torch.xpu.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return found


def _versions() -> list[str]:
    lines = [(name, found or "not installed") for name, found in provenance.versions().items()]
    commit = provenance.commit()
    if commit is not None:  # of a clone; an installed package has its version alone
        lines.append(("commit", commit))
    return _aligned(lines)


def _machine() -> list[str]:
    lines = [("cpu", f"{provenance.cpu_model()}, {provenance.usable_cpus()} cores")]
    lines += [(str(device), _device_name(device)) for device in devices()[1:]]
    lines.append(("SIMD level", _simd_level()))
    lines.append(("threads", f"{torch.get_num_threads()} (torch.get_num_threads())"))
    return _aligned(lines)


def _device_name(device: torch.device) -> str:
    if device.type == "mps":
        return "present"
    name = str(torch.get_device_module(device).get_device_name(device))
    rocm = torch.version.hip if device.type == "cuda" else None
    return name if rocm is None else f"{name}, ROCm {rocm}"


def _simd_level() -> str:
    try:
        native = backends.load("cpu").require()
        return f"{native.simd_level()} (EMP_SIMD names one of {', '.join(native.simd_levels())})"
    except backends.Unavailable:
        return "none without the cpu backend"


def _backends() -> list[str]:
    return _aligned([(name, _described(name)) for name in backends.NAMES])


def _described(name: str) -> str:
    try:
        module = backends.load(name)
    except backends.Unavailable as reason:
        return f"not available: {reason}"
    return str(module.describe())


def _operations() -> list[str]:
    """For each device and operation the backend that is used, and why each other one is not."""
    lines: list[tuple[str, ...]] = [("operation", "device", "takes", *backends.NAMES)]
    for device in devices():
        for operation in OPERATIONS:
            if operation == "EMPSampler" and device.type != "cpu":
                continue  # it shuffles ids on the CPU, whatever the state's device
            taken = _taken(operation, device)
            words = [_standing(name, operation, device, taken) for name in backends.NAMES]
            lines.append((operation, str(device), taken, *words))
    return [*_aligned(lines), "", "for float32, float16 and bfloat16; float64 takes reference"]


def _taken(operation: str, device: torch.device) -> str:
    """Name of the backend that `operation` would take for float32 tensors on `device`."""
    tensor = torch.empty(0, 1, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table shows what the warning would say
        if operation == "gather":
            module = backends.resolve_gather(tensor, by_torch=False)
        else:
            module = backends.resolve(operation, None, tensor)
    return module.__name__.rpartition(".")[2]


def _standing(name: str, operation: str, device: torch.device, taken: str) -> str:
    """Why backend `name` is not used, or that it is."""
    try:
        module = backends.load(name)
    except backends.Unavailable:
        return "missing, see above"
    if name == taken:
        return "taken"
    if not backends.offers(module, operation):
        return "does not offer it"
    if not module.serves_device(device.type):
        return f"not on {device.type}"
    return f"after {taken}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, with columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]

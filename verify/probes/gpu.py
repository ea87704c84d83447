"""Real work on every GPU: a compiled kernel, and matrix products against float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kernel(options: Mapping[str, Any]) -> dict[str, Any]:
    """Launch a kernel of torch's and one that Triton compiles: the noise of a direction."""
    import torch

    from zo2.directions import ParameterShape, get_family

    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        with torch.cuda.device(device):
            counted = torch.arange(1000, device=device).sum().item()
            signs = torch.empty(4099, device=device)
            get_family("rademacher").fill(signs, 11, ParameterShape(3, (4099,)), 5)
            torch.cuda.synchronize(device)
        there = torch.empty(4099)
        get_family("rademacher").fill(there, 11, ParameterShape(3, (4099,)), 5)
        found.append({"sum": counted, "same_noise": bool(torch.equal(signs.cpu(), there))})
    return {"devices": found}


def product(options: Mapping[str, Any]) -> dict[str, Any]:
    """The largest relative error of a matrix product, by device and precision."""
    import torch

    count = torch.cuda.device_count() if options["gpus"] else 0
    devices = [torch.device("cuda", i) for i in range(count)] or [torch.device("cpu")]
    errors = {}
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    for device in devices:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            left, right = a.to(dtype), b.to(dtype)
            exact = left.double() @ right.double()
            found = (left.to(device) @ right.to(device)).cpu().double()
            scale = exact.abs().max()
            name = f"{device} {str(dtype).removeprefix('torch.')}"
            errors[name] = ((found - exact).abs().max() / scale).item()
    return {"errors": errors}


PROBES = {"gpu.kernel": kernel, "gpu.product": product}

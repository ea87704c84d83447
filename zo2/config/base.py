"""Settings that every zeroth-order method shares."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from zo2.errors import ConfigError

if TYPE_CHECKING:
    import torch

UNITS = ("block", "leaf")
_FACTORS = {"": 1, "B": 1} | {
    f"{prefix}{kind}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for kind, base in (("B", 1000), ("iB", 1024))
}


@dataclass
class ZOSettings:
    """What to optimise with, and where the weights live.

    Attributes:
        lr: learning rate, the factor on the projected gradient; may be changed at every step
            through ``model.opt.param_groups`` or a torch scheduler.
        weight_decay: decoupled weight decay; biases and norms are skipped, as in MeZO.
        eps: size of the perturbation, in units of the weights.
        zo2: stream the decoder blocks from host memory; ``False`` keeps every weight on the
            working device (plain MeZO).
        offloading_blocks: indices of the decoder blocks to stream; ``None`` streams all.
        offloading_device: where streamed weights rest; only ``"cpu"`` exists.
        working_device: where passes run; ``None`` takes CUDA if present, else the CPU.
        overlap: copy weights while passes compute; ``False`` uses a single device buffer.
        slots: number of device buffers that streamed units share; ``None`` takes as many as hold
            800 MB, or 450 MB under a memory budget, three to eight.
        unit: what is perturbed at once: ``"block"`` (a decoder block) or ``"leaf"`` (one layer,
            or several that together are no larger than the block's largest);
            ``None`` takes blocks, but under a memory budget leaves where blocks are large or do
            not fit.
        device_memory_budget: device memory that the whole process may take, as bytes or as
            ``"18GB"`` (10**9) or ``"18GiB"`` (2**30); as many weights as fit stay on the device.
        cuda_graphs: replay what a slow host takes long to queue as CUDA graphs. Where all weights
            are on the GPU, whole steps: several times faster for small models; some models then
            choose other kernels, so losses may differ by rounding. Where weights are streamed,
            passes through blocks that they enter at once, bit for bit. Takes as much device memory
            again as passes need. ``None`` tries passes through streamed blocks once steps have
            waited for the host, if a tenth of the GPU's memory is free or a budget has room, and
            goes on with it if steps are faster.
        offload_embeddings: keep also what lies outside the blocks (embeddings, head) in host
            memory; a memory budget that has too little room for these does so by itself.
        direction: family of the random direction z: ``"gaussian"``, ``"rademacher"``,
            ``"rank1"``, or any registered family.
        seed: seed of the whole run; ``None`` draws one from torch's global generator, so that
            ``seed_everything`` makes a run repeatable.
        update_window: how many updates may be pending before they are applied to the weights,
            as one that is rounded once; 1 applies every step's update during the next sweep.
        write_back_every: sweeps from one way home of streamed weights to the next; in between,
            passes use weights that are updated on the device and not kept. ``None`` goes from 1
            up to 4 while steps wait for the link or for Python. It changes no result.
        stochastic_rounding: round half-precision weights up or down at random, without bias,
            when an update is written; ``False`` rounds to nearest and loses small updates.
        debug_mode: use z = 1 everywhere, which makes runs comparable by hand.
        amp: not supported; load the model in the precision it should have.
        precision_on_offloading_device, precision_on_working_device: taken from ZO2's code and
            without effect: weights keep the precision in which they were loaded.
    """

    zo_method: str = field(default="", init=False)
    lr: float = 1e-3
    weight_decay: float = 1e-1
    eps: float = 1e-3
    zo2: bool = True
    offloading_blocks: Sequence[int] | None = None
    offloading_device: str = "cpu"
    working_device: str | torch.device | None = None
    overlap: bool = True
    slots: int | None = None
    unit: str | None = None
    device_memory_budget: int | str | None = None
    offload_embeddings: bool = False
    cuda_graphs: bool | None = None
    direction: str = "gaussian"
    seed: int | None = None
    update_window: int = 1
    write_back_every: int | None = None
    stochastic_rounding: bool = True
    debug_mode: bool = False
    amp: bool = False
    precision_on_offloading_device: Any = None
    precision_on_working_device: Any = None

    def validate(self) -> None:
        """Raise `ConfigError` on the first setting that cannot work."""
        for name in ("lr", "weight_decay", "eps"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and 0 <= float(value) < math.inf):
                raise ConfigError(f"{name} must be a finite number >= 0, not {value!r}.")
        if self.eps == 0:
            raise ConfigError("eps must be greater than 0; MeZO uses 1e-3.")
        if self.unit is not None and self.unit not in UNITS:
            raise ConfigError(f"unit must be one of {', '.join(UNITS)}, not {self.unit!r}.")
        for name in ("slots", "update_window", "write_back_every"):
            value = getattr(self, name)
            if name != "update_window" and value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be an integer of at least 1, not {value!r}.")
        seed, blocks = self.seed, self.offloading_blocks
        if seed is not None and not (isinstance(seed, Integral) and 0 <= seed < 2**63):
            raise ConfigError(f"seed must be an integer in 0 .. 2**63 - 1, not {seed!r}.")
        if blocks is not None and (
            not isinstance(blocks, Collection) or not all(isinstance(b, Integral) for b in blocks)
        ):
            raise ConfigError(
                f"offloading_blocks must be a list of block numbers, or None for all: {blocks!r}."
            )
        if self.device_memory_budget is not None:
            parse_bytes(self.device_memory_budget)
            if not self.zo2:
                raise ConfigError(
                    "device_memory_budget needs streaming, but zo2=False keeps all weights on the "
                    "device: leave one of them out."
                )
        if str(self.offloading_device) != "cpu":
            raise ConfigError(
                f"offloading_device must be 'cpu', not {str(self.offloading_device)!r}: weights "
                "are streamed from host memory."
            )
        if self.amp:
            raise ConfigError(
                "amp=True is not supported: load the model in the precision its weights should "
                "have (from_pretrained(..., dtype=torch.bfloat16); torch_dtype before transformers "
                "4.56), or call the model inside torch.autocast."
            )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the settings the constructor takes."""
        return tuple(f.name for f in fields(cls) if f.init)


def parse_bytes(value: int | str, name: str = "device_memory_budget") -> int:
    """A number of bytes from 18_000_000_000, "18GB" or "16.8 GiB".

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    units = {name.lower(): factor for name, factor in _FACTORS.items()}
    if isinstance(value, str) and match and match[2].lower() in units and float(match[1]) > 0:
        return int(float(match[1]) * units[match[2].lower()])
    raise ConfigError(f"{name} must be a number of bytes such as '18GB' or '16GiB', not {value!r}.")

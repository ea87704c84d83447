"""From settings to the parts of an engine: device, placement, arithmetic; and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from zo2.config import ZOSettings
from zo2.config.base import parse_bytes
from zo2.directions import get_family, gpu
from zo2.engine.blockgraphs import PATIENCE, BlockGraphs
from zo2.engine.capturing import CudaCapture, capture_stream, to_take
from zo2.engine.engine import Engine
from zo2.engine.placement import Placement, unit_sizes_to_try
from zo2.engine.weights import Arithmetic, TorchArithmetic
from zo2.errors import ConfigError, HostMemoryError, ModelError
from zo2.hostbound import RAISE_BUDGET, USE_GRAPHS, HostBound

if TYPE_CHECKING:
    from zo2.engine.replay import Replays

SPARE = 1 / 10  # of the device's memory, which should be free before graphs take some unasked


def check_model(model: nn.Module) -> None:
    """Raise `ModelError`, naming a parameter and what to do, unless ``model`` can be prepared."""
    placed = getattr(model, "hf_device_map", None) or {}
    if len(set(placed.values())) > 1 or any(hasattr(m, "_hf_hook") for m in model.modules()):
        raise ModelError(
            "This model is already spread by device_map or accelerate hooks; load it without "
            "device_map, zo2 places the weights itself."
        )
    if "_orig_mod" in model._modules:
        raise ModelError(
            "This is what torch.compile makes of a model. Prepare the model itself, and compile "
            "its blocks (block.compile() for each) if its passes shall be compiled."
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ModelError(
            f"This is a model within {type(model).__name__}; zo2 runs a model on one device. "
            "Prepare the model itself (its attribute module)."
        )
    for name, module in model.named_modules():
        if "_zo" in module.__dict__:
            raise ModelError(
                f"The model's part {name} is prepared already; call zo2.release on that part, then "
                "prepare the whole."
            )
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            raise ModelError(
                f"The embedding {name} rescales its weights in place (max_norm), so passes cannot "
                "share them: set its max_norm to None, then prepare the model."
            )
    for name, parameter in model.named_parameters():
        kind = type(parameter).__name__
        if not parameter.is_floating_point() or kind in ("Params4bit", "Int8Params"):
            raise ModelError(
                f"Parameter {name} is quantised ({kind}, {parameter.dtype}); zo2 perturbs the "
                "weights themselves. Load the model in float32, bfloat16 or float16, without "
                "quantization_config (for a GGUF file: dequantised)."
            )
        if parameter.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ModelError(
                f"Parameter {name} is {parameter.dtype}; zo2 trains float32, bfloat16 and "
                "float16. Convert it: model.to(torch.float32)."
            )
        if parameter.device.type == "meta":
            raise ModelError(
                f"Parameter {name} has no data (it is on the meta device): load the weights "
                "before preparing the model."
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "Every parameter is frozen (requires_grad=False), so there is nothing to train: "
            "leave at least one trainable."
        )
    if getattr(model, "is_quantized", False):
        raise ModelError(
            "This model is quantised; load it in float32, bfloat16 or float16, without "
            "quantization_config."
        )


def working_device(config: ZOSettings) -> torch.device:
    """Where passes run.

    Raises:
        ConfigError: there is no such device.
    """
    wanted = config.working_device
    if wanted is None:
        return torch.device("cuda", torch.cuda.current_device()) if _cuda() else torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"working_device: {wanted!r} is not a device: {error}") from None
    if device.type == "cuda":
        if not _cuda():
            warnings.warn(
                f"working_device is {str(device)!r} but torch sees no GPU; using the CPU.",
                stacklevel=4,
            )
            return torch.device("cpu")
        device = torch.device(
            "cuda", torch.cuda.current_device() if device.index is None else device.index
        )
        if device.index >= torch.cuda.device_count():
            raise ConfigError(
                f"working_device is {str(device)!r}, but there are only "
                f"{torch.cuda.device_count()} GPUs."
            )
    elif device.type != "cpu":
        raise ConfigError(f"working_device must be a CUDA device or the CPU, not {device}.")
    return device


def _cuda() -> bool:
    return torch.cuda.is_available()


def placement_of(config: ZOSettings) -> Placement:
    """Which units may be streamed, and through what."""
    if not config.zo2:
        return Placement(blocks=frozenset())
    blocks, budget = config.offloading_blocks, config.device_memory_budget
    return Placement(
        blocks=None if blocks is None else frozenset(blocks),
        outside=config.offload_embeddings,
        slots=config.slots if config.overlap else 1,
        budget=None if budget is None else parse_bytes(budget),
        write_back_every=config.write_back_every,
    )


def arithmetic_for(config: ZOSettings, device: torch.device) -> Arithmetic:
    """Fused kernels on a GPU, for the families that they know; else torch operations."""
    family = get_family("ones" if config.debug_mode else config.direction)
    if device.type == "cuda" and gpu.available():
        from zo2.engine import fused  # needs Triton

        if type(family) in fused.FAMILIES:
            return fused.FusedArithmetic(family, config.stochastic_rounding, device)
    return TorchArithmetic(family, config.stochastic_rounding)


def engine_for(
    model: nn.Module,
    device: torch.device,
    config: ZOSettings,
    placement: Placement,
    arithmetic: Arithmetic,
    progress: Callable[[int], None],
    head: nn.Module | None,
) -> Engine:
    """The engine, with units of the size that is asked for, or that suits the placement.

    Raises:
        ConfigError: CUDA graphs are wanted without a GPU.
        DeviceMemoryError: the memory budget is too small.
    """
    if config.cuda_graphs and device.type != "cuda":
        raise ConfigError("cuda_graphs needs a GPU: leave it out on a CPU.")

    wanted = _graphs(device, 1) if config.cuda_graphs else None
    sizes = [config.unit] if config.unit else unit_sizes_to_try(model, placement)
    return Engine(
        model, device, placement, arithmetic, sizes, config.update_window, progress,
        graphs=wanted, head=head,
    )  # fmt: skip


def _graphs(device: torch.device, patience: int) -> Callable[[], BlockGraphs]:
    """What makes graphs of blocks.

    Raises:
        torch.cuda.OutOfMemoryError: there is no memory for any.
    """
    capture_stream(device)  # takes memory, which placements then reckon with
    return lambda: BlockGraphs(device, CudaCapture(device), patience)


def replays_of(config: ZOSettings, engine: Engine, arithmetic: Arithmetic) -> Replays | None:
    """What replays whole sweeps as CUDA graphs, where that is wanted and may become possible.

    Raises:
        ConfigError: all weights are on the GPU, and there is no Triton.
    """
    if not config.cuda_graphs:
        return None
    if not isinstance(arithmetic, TorchArithmetic):
        from zo2.engine.fused import FusedArithmetic  # needs Triton
        from zo2.engine.replay import Replays

        assert isinstance(arithmetic, FusedArithmetic)
        return Replays(engine, arithmetic)
    if not engine.streams:
        raise ConfigError(
            "With all weights on the GPU, cuda_graphs needs Triton, and a direction that its "
            "kernels know: use a machine where zo2-verify passes triton.import, or leave it out."
        )
    return None


def host_bound(config: ZOSettings, engine: Engine, arithmetic: Arithmetic) -> HostBound | None:
    """What looks after steps that wait for the host, where CUDA graphs are possible.

    Passes through streamed blocks are replayed without being asked to: they keep their bits.
    """
    if config.cuda_graphs is not None or engine.device.type != "cuda":
        return None
    if engine.streams:
        advice = RAISE_BUDGET if engine.is_bounded else USE_GRAPHS
        return HostBound(ReplayedBlocks(engine), advice) if engine.has_replayable_blocks else None
    return None if isinstance(arithmetic, TorchArithmetic) else HostBound(None)


class ReplayedBlocks:
    """Replays passes through streamed blocks as CUDA graphs.

    Args:
        engine: what streams them, on a CUDA device.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self) -> bool:
        """Replay from now on, if there is memory to spare, or a budget has room."""
        engine, device = self._engine, self._engine.device
        if not engine.has_replayable_blocks:
            return False
        try:
            return self._has_room() and engine.replay_blocks(_graphs(device, PATIENCE))
        except (HostMemoryError, torch.cuda.OutOfMemoryError):
            self.end()
            return False

    def _has_room(self) -> bool:
        engine, device = self._engine, self._engine.device
        if engine.is_bounded:
            more = to_take(device)
            return not more or engine.make_room(more)
        free, total = torch.cuda.mem_get_info(device)
        return free >= SPARE * total

    def end(self) -> None:
        """Let passes run as they are."""
        self._engine.replay_nothing()

    @property
    def applied(self) -> int:
        """The number of graphs."""
        return self._engine.graph_count

    @property
    def is_gone(self) -> bool:
        """Whether the budget has turned out to have no room for them."""
        return not self._engine.replays_blocks

"""What work queues on a GPU, captured once as a CUDA graph and queued again by one call."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from weakref import WeakSet

import torch

from zo2.engine.streams import stream
from zo2.errors import first_line

CUBLAS = 1 << 26  # bytes: more than it keeps for a stream

Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay]


class CaptureError(Exception):
    """This work cannot be a graph: it asks the device for values, say, or memory ran out."""


class CudaCapture:
    """Captures what a function queues on a device; nothing of it is carried out.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, capture_stream(device)
        # graphs share it: what one leaves there, no other reads
        self._pool = torch.cuda.graph_pool_handle()
        self._alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()  # of those in it
        self._never_captured = _registered_graph(device)

    def __call__(self, work: Callable[[], None]) -> Replay:
        """Capture ``work``.

        Raises:
            CaptureError: it cannot be a graph.
        """
        graph = torch.cuda.CUDAGraph()
        if not self._alive:  # the memory went with the last of them, and takes no other
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.device(self._device), _no_garbage_collected():
            torch.cuda.empty_cache()  # a capture can neither use nor free what is cached
            self._stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(self._stream):
                    graph.capture_begin(self._pool, capture_error_mode="thread_local")
                    try:
                        work()
                    except BaseException:
                        with contextlib.suppress(RuntimeError):  # says less than the cause
                            graph.capture_end()
                        raise
                    graph.capture_end()
            except BaseException as error:
                self._give_up()
                if isinstance(error, RuntimeError):
                    raise CaptureError(first_line(error)) from error
                raise
        self._alive.add(graph)
        replay: Replay = graph.replay
        return replay

    def _give_up(self) -> None:
        """End what a failed capture has begun, and capture elsewhere from now on.

        Up to torch 2.12 the allocator would take the capture to be under way for ever, and end the
        process when it next had to free cached memory (pytorch#180395).
        """
        ends = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")
        end = next((getattr(torch._C, name) for name in ends if hasattr(torch._C, name)), None)
        if end is not None:
            with contextlib.suppress(RuntimeError):  # it was ended
                end(torch.cuda.current_device(), self._pool)
        self._pool = torch.cuda.graph_pool_handle()


_streams: dict[torch.device, torch.cuda.Stream] = {}


def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Where work is captured: one stream for all, since cuBLAS keeps memory for each (32 MiB).

    It takes that memory here, from where it never needs to be freed.

    Raises:
        torch.cuda.OutOfMemoryError: there is not so much.
    """
    if device not in _streams:
        own = stream(device, "capture")
        with torch.cuda.stream(own):
            some = torch.zeros(16, 16, device=device)
            torch.mm(some, some)
        _streams[device] = own
    return _streams[device]


def to_take(device: torch.device) -> int:
    """Bytes, at most, of the device's memory that `capture_stream` would take for good."""
    return 0 if device in _streams else CUBLAS


def _registered_graph(device: torch.device) -> torch.cuda.CUDAGraph:
    """An empty graph that knows the device's random numbers.

    While there is none, a capture begins by allocating their state; should there be no memory for
    it, torch up to 2.11 ends the process when it frees that capture's graph.
    """
    graph = torch.cuda.CUDAGraph()
    if hasattr(graph, "register_generator_state"):
        with torch.cuda.device(device):
            torch.empty(1024, dtype=torch.uint8, device=device)  # raises if that has no room
            graph.register_generator_state(torch.cuda.default_generators[device.index])
    return graph


@contextlib.contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Within, nothing is finalised by chance that a capture does not allow."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

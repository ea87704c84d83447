"""All that works with torch, in one process: importing it takes longer than most checks."""

from __future__ import annotations

from verify.probes import gpu, imports, offload, parity, training

PROBES = {
    **imports.PROBES,
    **gpu.PROBES,
    **offload.PROBES,
    **training.PROBES,
    **parity.PROBES,
}

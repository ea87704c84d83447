"""What tests of trainers share: arguments of a run that leaves nothing behind, and its log."""

from __future__ import annotations

from transformers import TrainerCallback

UNATTENDED = {
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
}


class Log(TrainerCallback):
    """What a reporting callback is told."""

    def __init__(self) -> None:
        self.entries: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.entries.append(dict(logs))

    def values(self, name: str) -> list[float]:
        return [entry[name] for entry in self.entries if name in entry]

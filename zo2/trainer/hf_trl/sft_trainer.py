"""`ZOSFTTrainer`: trl's SFTTrainer with zeroth-order steps."""

from __future__ import annotations

from typing import Any

from transformers import Trainer
from transformers import __version__ as transformers_version

from zo2.trainer.mixin import ZOMixin

try:
    from trl import SFTTrainer
except ModuleNotFoundError as error:
    if error.name != "trl":
        raise
    from zo2.trainer.hf_trl.missing import install_line

    raise ModuleNotFoundError(
        f"ZOSFTTrainer needs trl: {install_line(transformers_version)}", name="trl"
    ) from None


class ZOSFTTrainer(ZOMixin, SFTTrainer):  # type: ignore[misc]
    """A `trl.SFTTrainer` that trains by forward passes alone; see `ZOMixin`.

    Datasets, chat templates, packing, and which tokens count in the loss are trl's, of any
    release from 0.12 on. Token accuracy and the like are logged for the passes whose loss is.

    >>> trainer = ZOSFTTrainer(
    ...     model, SFTConfig("out"), train_dataset=data, zo_config=zo2.ZOConfig(lr=1e-6)
    ... )
    """

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss as trl computes it; but as the Trainer does if the user has one of his own,
        which newer releases of trl would not look at.
        """
        state = self.model._zo
        if self.model.zo_training:
            hooks, custom = state.train_hooks, self.model.zo_custom_train_loss_fn
        else:
            hooks, custom = state.eval_hooks, self.model.zo_custom_eval_loss_fn
        if custom or hooks.pre or hooks.post:
            return Trainer.compute_loss(self, model, inputs, *args, **kwargs)
        return super().compute_loss(model, inputs, *args, **kwargs)

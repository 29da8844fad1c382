"""The progress bar."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

SHOWN = {
    "loss": "train/loss",
    "accuracy": "train/rewards/accuracies",
    "tokens/s": "train/throughput/tokens_per_second",
}


class ProgressBar(RichProgressBar):
    """Rich's bar with loss, reward accuracy and tokens per second."""

    def _get_train_description(self, current_epoch: int) -> str:
        """The epoch, and the last one where it is known (Lightning counts to -2 where it is not)."""
        last = self.trainer.max_epochs
        return f"Epoch {current_epoch}" if last is None or last < 0 else f"Epoch {current_epoch}/{last - 1}"

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The numbers behind the bar, as last reported."""
        known = trainer.callback_metrics
        values: dict[str, float] = {label: float(known[name]) for label, name in SHOWN.items() if name in known}
        return {label: f"{value:.0f}" if value >= 100 else f"{value:.3f}" for label, value in values.items()}

"""What progress bars leave behind, in a terminal and in a notebook."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from typing_extensions import override

from lit_align.callbacks import NotebookProgressBar, ProgressBar

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|logging interval|LeafSpec)")


class OneWeight(LightningModule):
    """Reports under the names that a bar shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    @override
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        for name, value in {"loss": 0.25, "rewards/accuracies": 0.5, "throughput/tokens_per_second": 1234.4}.items():
            self.log(f"train/{name}", value)
        return self.layer(batch).sum()

    @override
    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/loss", 0.5)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Results(Callback):
    """Prints at the end, as a run does."""

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        print("results")


def fit(folder: Path, bar: Callback) -> None:
    batches = DataLoader([torch.ones(1)] * 4, batch_size=1)  # type: ignore[arg-type]
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=2, accelerator="cpu", callbacks=[Results(), bar], default_root_dir=folder, **quiet)
    trainer.fit(OneWeight(), batches, batches)


def screen(text: str) -> list[str]:
    """Return the lines that a terminal or a notebook shows of a text with carriage returns, without empty ones."""
    lines = [line.rpartition("\r")[2] if not line.endswith("\r") else line for line in text.split("\n")]
    return [line.rstrip() for line in lines if line.strip("\r ")]


def test_a_notebook_keeps_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is that of the last epoch; validations leave nothing behind and never move the cursor."""
    fit(tmp_path, NotebookProgressBar())
    written = capsys.readouterr().out
    assert "\x1b" not in written
    bar, results = screen(written)
    assert bar.startswith("Epoch 1: 100%")
    assert bar.endswith("loss=0.250, accuracy=0.500, tokens/s=1234]")
    assert results == "results"


def test_a_terminal_s_bar_is_one_line_above_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    fit(tmp_path, ProgressBar())
    shown = screen(capsys.readouterr().out)
    assert shown[-1] == "results"
    assert shown[-2].startswith("Epoch 1/1")
    assert shown[-2].endswith("loss: 0.250 accuracy: 0.500 tokens/s: 1234")

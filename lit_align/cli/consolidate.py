"""Makes a Hugging Face folder of a checkpoint, whatever strategy wrote it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lit_align.callbacks.checkpointing.checkpoints import AtomicCheckpointIO, checkpoint_folder
from lit_align.callbacks.checkpointing.checksums import newest_intact
from lit_align.callbacks.export import write_policy
from lit_align.cli import main as cli
from lit_align.models.score_model import save_score_model
from lit_align.modules import LitReward, Module

USAGE = """usage: python -m lit_align consolidate RUN_OR_CHECKPOINT --to FOLDER [--form merged|adapter]

Writes the weights of a checkpoint, and the tokenizer, as one Hugging Face folder. Of a run's folder the newest intact
checkpoint is taken. The run's config.yaml must lie where the run wrote it.
"""


def main() -> None:
    """Consolidate the checkpoint on ``sys.argv``."""
    if {"-h", "--help"} & set(sys.argv[2:]):
        print(USAGE, end="")
        return
    parser = argparse.ArgumentParser(prog="lit_align consolidate", add_help=False, usage=USAGE, allow_abbrev=False)
    parser.add_argument("source", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--form", choices=("merged", "adapter"), default="merged")
    parser.add_argument("--extend", default=None)
    own = parser.parse_args(sys.argv[2:])
    try:
        checkpoint, config = located(own.source)
        if own.to.exists() and any(own.to.iterdir() if own.to.is_dir() else [own.to]):
            raise FileExistsError(f"--to {own.to} exists and is not an empty folder; nothing is overwritten")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    Consolidator.own, Consolidator.checkpoint = own, checkpoint
    extend = ["--extend", own.extend] if own.extend else []
    sys.argv = [sys.argv[0], "fit", "--config", str(config), *extend]
    cli.main(Consolidator)


def located(source: Path) -> tuple[Path, Path]:
    """The checkpoint and the configuration of its run.

    Args:
        source: a run's folder, or a checkpoint in it.

    Raises:
        FileNotFoundError: the source, a checkpoint or the configuration is not there.
        ValueError: no checkpoint of the run is intact.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there; expected a run's folder or a checkpoint")
    is_run = source.is_dir() and source.suffix != ".ckpt"
    run = source if is_run else source.resolve().parent.parent
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run / 'config.yaml'} is not there; it says which model the checkpoint is of")
    if not is_run:
        return source, run / "config.yaml"
    newest = newest_intact(checkpoint_folder(source))
    if newest is None:
        raise ValueError(f"no intact checkpoint in {checkpoint_folder(source)}")
    return newest, run / "config.yaml"


class Consolidator(cli.Cli):
    """The command line of ``fit`` on the run's own configuration, up to the point where training would start."""

    own: argparse.Namespace
    checkpoint: Path

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """One that is never used."""
        return cli.idle_trainer()

    def _refuse_own_output(self, config: Any) -> None:
        """Nothing: no run starts."""

    def _run_subcommand(self, subcommand: str) -> None:
        module: Any = self.model
        data: Any = self.datamodule
        state = AtomicCheckpointIO().load_checkpoint(self.checkpoint)
        target: Path = self.own.to
        partial = target.with_name(f".{target.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        write_model(partial, module, state["state_dict"], data.pad_token, self.own.form)
        data.tokenizer.save_pretrained(partial)
        if target.exists():
            target.rmdir()
        partial.rename(target)
        print(f"{target}: the model of {self.checkpoint} at step {state['global_step']}")


def write_model(folder: Path, module: Module, weights: dict[str, Any], pad: int, form: str) -> None:
    """Write a checkpoint's weights as a Hugging Face folder.

    Args:
        folder: to write to.
        module: as it is built from the run's configuration, without models.
        weights: the checkpoint's, by their names in the module.
        pad: id that a reward model's pooling takes for padding.
        form: of a model with an adapter: ``merged`` or ``adapter``.

    Raises:
        ValueError: the weights are not those of the module, or there is no adapter to write.
    """
    module.configure_model()
    missing, unexpected = module.load_state_dict(weights, strict=False)
    needed = {name for name, weight in module.named_parameters() if weight.requires_grad}
    wrong = sorted({*unexpected, *(needed & set(missing))})
    if wrong:
        raise ValueError(f"the checkpoint's weights are not those of the run's model: {', '.join(wrong[:3])}")
    if form == "adapter" and module.lora is None:
        raise ValueError("--form adapter: the run has no adapter")
    if isinstance(module, LitReward):
        save_score_model(module.model, folder, pad, form="adapter" if form == "adapter" else "merged")
        return
    policy = module.policy
    write_policy(folder, policy, dict(policy.state_dict()), "adapter" if form == "adapter" else "merged")

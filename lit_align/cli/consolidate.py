"""The consolidate command: a Hugging Face folder of a checkpoint, whatever strategy wrote it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lit_align.callbacks.checkpointing.checkpoints import AtomicCheckpointIO, checkpoint_folder
from lit_align.callbacks.checkpointing.checksums import newest_intact
from lit_align.callbacks.export import check_export, write_model
from lit_align.cli import run as cli
from lit_align.models.export import Form
from lit_align.modules import LitModule
from lit_align.modules.probes import probe_sequences

_USAGE = """usage: python -m lit_align consolidate RUN_OR_CHECKPOINT --to FOLDER [--form merged|adapter]

Writes the weights of a checkpoint, and the tokenizer, as one Hugging Face folder. Of a run's folder the newest intact
checkpoint is taken. The run's config.yaml must lie where the run wrote it.
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    if {"-h", "--help"} & set(arguments):
        print(_USAGE, end="")
        return
    parser = argparse.ArgumentParser(prog="lit_align consolidate", add_help=False, usage=_USAGE, allow_abbrev=False)
    parser.add_argument("source", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--form", choices=("merged", "adapter"), default="merged")
    parser.add_argument("--extend", default=None)
    parsed = parser.parse_args(arguments)
    with cli.exit_codes():
        consolidate(parsed.source, parsed.to, parsed.form, parsed.extend)


def consolidate(source: Path, target: Path, form: Form = "merged", extend: str | None = None) -> None:
    """Write a checkpoint's weights, and the tokenizer, as one Hugging Face folder.

    The module is built from the run's configuration as ``fit`` builds it; a configuration that cannot be parsed ends
    the process, as on the command line.

    Args:
        source: a run's folder, of which the newest intact checkpoint is taken, or a checkpoint in it.
        target: an empty folder, or one that does not exist.
        form: of a model with an adapter: ``merged`` adds it to the weights, ``adapter`` writes it alone.
        extend: folders or modules with your own parts, comma separated.

    Raises:
        FileNotFoundError: the source, a checkpoint or the configuration is missing.
        FileExistsError: the target is not empty.
        ValueError: no checkpoint is intact, or its weights are not those of the run's model.
    """
    checkpoint, config = find_checkpoint(source)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise FileExistsError(f"--to {target} exists and is not an empty folder; nothing is overwritten")

    def write(module: Any, data: Any) -> None:
        state = AtomicCheckpointIO().load_checkpoint(checkpoint)
        partial_folder = target.with_name(f".{target.name}.partial")
        partial_folder.mkdir(parents=True, exist_ok=True)
        data.load_state_dict(state.get(type(data).__qualname__, {}))
        _write_model(partial_folder, module, state["state_dict"], data, form)
        if target.exists():
            target.rmdir()
        partial_folder.rename(target)
        print(f"{target}: the model of {checkpoint} at step {state['global_step']}")

    extension = ["--extend", extend] if extend else []
    cli.run(["fit", "--config", str(config), *extension], partial(cli.Cli, action=write))


def find_checkpoint(source: Path) -> tuple[Path, Path]:
    """Find a checkpoint and the configuration of its run.

    Args:
        source: a run's folder, or a checkpoint in it.

    Raises:
        FileNotFoundError: the source, a checkpoint or the configuration is missing.
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


def load_checkpoint_weights(module: LitModule, weights: dict[str, Any]) -> None:
    """Load a checkpoint's weights into a module without models.

    Args:
        module: as it was built from the run's configuration.
        weights: of the checkpoint.

    Raises:
        ValueError: they are not those of the run's model.
    """
    module.configure_model()
    missing, unexpected = module.load_state_dict(weights, strict=False)
    needed = {name for name, weight in module.named_parameters() if weight.requires_grad}
    wrong = sorted({*unexpected, *(needed & set(missing))})
    if wrong:
        raise ValueError(f"the checkpoint's weights are not those of the run's model: {', '.join(wrong[:3])}")


def _write_model(folder: Path, module: LitModule, weights: dict[str, Any], data: Any, form: Form) -> None:
    """Load a checkpoint's weights into a module without models, write them as a folder, and read that back."""
    load_checkpoint_weights(module, weights)
    if form == "adapter" and module.lora is None:
        raise ValueError("--form adapter: the run has no adapter")
    model = module.trained_model
    sequences = probe_sequences(data)
    trained = module.read_sequences(sequences)
    pad = write_model(folder, module, model, data, dict(model.state_dict()), form)
    check_export(folder, module, sequences, trained, form, pad)

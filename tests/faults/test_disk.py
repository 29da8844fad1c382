"""Full disks, file size limits and read-only folders are errors that keep the previous checkpoint."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lit_align.callbacks import AtomicCheckpointIO
from lit_align.callbacks.checkpointing.checksums import damage
from lit_align.cli.run import main
from tests.runner import BASE, SHORT, Ended, forked, lit_align, metrics, ok


def limited(size: int, *words: object) -> Ended:
    """Run the command in a process with a limit on file size."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        main([str(word) for word in words])

    return forked([work])[0]


def words(run: Path, rows: Path, *more: object) -> Sequence[object]:
    return (
        *("fit", "--run", run, *BASE, *SHORT, "--model.objective", "dpo", "--data.train", rows),
        *("--checkpoints.every_n_steps", 1, "--trainer.max_steps", *more),
    )


@pytest.mark.fault("D09", "L09")
def test_d09_l09_no_room_for_a_checkpoint_ends_the_run_and_keeps_the_last_one(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ok(lit_align(*words(run, rows, 1)))
    ended = limited(3_000_000, *words(run, rows, 3, "--ckpt_path", "last"))
    assert ended.code == 1, ended.out
    assert "File too large" in ended.out
    assert "Traceback" not in ended.out
    folder = run / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", "step=1.ckpt"}
    assert damage(folder / "step=1.ckpt") is None
    ok(lit_align(*words(run, rows, 2, "--ckpt_path", "last")))
    assert [line["step"] for line in metrics(run)] == [1, 2]


@pytest.mark.parametrize("size", [0, 1, 1000, 4096, 50_000, 400_000])
@pytest.mark.fault("D09", "L09")
def test_d09_wherever_the_write_fails_the_old_one_stays(tmp_path: Path, size: int) -> None:
    target = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, target)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            AtomicCheckpointIO().save_checkpoint({"step": 2, "weights": torch.ones(100_000)}, target)
        except OSError:
            sys.exit(3)

    assert forked([work])[0].code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(target) == {"step": 1}


@pytest.mark.fault("C11", "L12")
def test_c11_l12_a_folder_that_cannot_be_written_is_an_error_before_the_first_step(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    ended = lit_align(*words(tmp_path / "file" / "run", rows, 1))
    assert ended.code == 2, ended.out
    assert "Not a directory" in ended.out
    assert "Traceback" not in ended.out

"""Runs with a reference whose log-probabilities are stored on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Trainer

from lit_align.callbacks import Precompute
from lit_align.data import PreferenceData
from lit_align.models import Precomputed
from lit_align.modules import LitPreference
from lit_align.objectives import dpo
from tests.runner import BASE, SHORT, Ended, distance, distributed, lit_align, metrics, ok, weights

STEPS = (
    "--data.batch_size",
    4,
    "--trainer.max_epochs",
    2,
    "--model.optimizer",
    "torch.optim.SGD",
    "--model.optimizer.lr",
    "0.05",
)


def words(run: Path, rows: Path, *more: object, objective: str = "dpo") -> Sequence[object]:
    return ("fit", "--run", run, *BASE, *SHORT, "--model.objective", objective, "--data.train", rows, *STEPS, *more)


def kept(folder: Path, *more: object) -> Sequence[object]:
    return ("--model.reference", "Precomputed", "--model.reference.cache", folder, *more)


def counts(ended: Ended) -> tuple[int, int]:
    """Return the number of rows that were computed and that were read from the cache."""
    found = re.search(r"reference  (\d+) rows computed, (\d+) found", ok(ended).out)
    assert found is not None, ended.out
    return int(found[1]), int(found[2])


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.long
def test_it_trains_what_a_second_model_trains(rows: Path, tmp_path: Path, cache: Path) -> None:
    validated, objective = ("--data.validation", rows), "sr_dpo"
    plain, first, second = (tmp_path / name for name in ("plain", "first", "second"))
    ok(lit_align(*words(plain, rows, *validated, objective=objective)))
    assert counts(lit_align(*words(first, rows, *validated, *kept(cache), objective=objective))) == (22, 0)
    assert counts(lit_align(*words(second, rows, *validated, *kept(cache), objective=objective))) == (0, 22)
    assert distance(weights(first), weights(second)) == 0.0
    assert distance(weights(plain), weights(first)) < 1e-6
    for ours, theirs in zip(metrics(first), metrics(plain), strict=True):
        ties = ("accuracies", "accuracy", "correlation", "fell") if ours["step"] == 1 else ()  # 0, but for rounding
        for name in ours.keys() | theirs.keys():
            if not any(word in name for word in ties):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name


@pytest.mark.long
@pytest.mark.fault("D20b")
def test_other_batches_seeds_rates_and_objectives_find_the_same(rows: Path, tmp_path: Path, cache: Path) -> None:
    assert counts(lit_align(*words(tmp_path / "a", rows, *kept(cache)))) == (11, 0)
    lines = rows.read_text("utf-8").splitlines()
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(reversed(lines)) + "\n", "utf-8")
    other = ("--seed_everything", 3, "--data.batch_size", 3, "--model.optimizer.lr", "0.01", "--data.num_workers", 1)
    found = lit_align(*words(tmp_path / "b", turned, *kept(cache), *other, objective="ipo"))
    assert counts(found) == (0, 11)


@pytest.mark.long
@pytest.mark.fault("D20")
def test_a_cut_of_the_rows_does_not(rows: Path, tmp_path: Path, cache: Path) -> None:
    assert counts(lit_align(*words(tmp_path / "a", rows, *kept(cache)))) == (11, 0)
    computed, found = counts(lit_align(*words(tmp_path / "b", rows, *kept(cache), "--data.max_length", 60)))
    assert computed > 0
    assert computed + found == 11


@pytest.mark.long
def test_a_short_run_computes_what_it_sees(rows: Path, tmp_path: Path, cache: Path) -> None:
    few = ("--trainer.max_epochs", -1, "--trainer.max_steps", 2)
    assert counts(lit_align(*words(tmp_path / "a", rows, *kept(cache), *few))) == (8, 0)
    assert counts(lit_align(*words(tmp_path / "b", rows, *kept(cache)))) == (3, 8)


@pytest.mark.long
def test_two_processes_share_the_work(rows: Path, tmp_path: Path, cache: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    ok(lit_align(*words(one, rows, "--data.validation", rows)))
    more = ("--data.batch_size", 2, "--data.validation", rows, *kept(cache))
    assert counts(distributed(2, *words(two, rows, *more))[0]) == (22, 0)
    assert distance(weights(one), weights(two)) < 1e-6
    manifests = list(cache.glob("*/manifest.json"))
    assert len(manifests) == 1
    assert len(list(manifests[0].parent.glob("*.arrow"))) == 2
    assert json.loads(manifests[0].read_text())["autocast"] == "none"


@pytest.mark.long
def test_samples_of_the_reference_are_drawn_before_its_weights_go(rows: Path, tmp_path: Path, cache: Path) -> None:
    """The same holds for a resumed run, whose first sample of the policy comes later."""
    drawn = ("--samples.count", 2, "--samples.sampling.max_new_tokens", 5, "--checkpoints.every_n_steps", 2)
    run = tmp_path / "run"
    ok(lit_align(*words(run, rows, *kept(cache), *drawn)))
    again = ("--ckpt_path", run / "checkpoints" / "step=4.ckpt")
    other = tmp_path / "other"
    ok(lit_align(*words(other, rows, *kept(tmp_path / "elsewhere"), *drawn, *again)))
    assert distance(weights(run), weights(other)) == 0.0
    lines = [[json.loads(line) for line in (each / "samples.jsonl").read_text().splitlines()] for each in (run, other)]
    assert lines[1] == [line for line in lines[0] if line["step"] > 4]


@pytest.mark.parametrize("command", ["validate", pytest.param("predict", marks=pytest.mark.long)])
def test_evaluations_use_it(rows: Path, tmp_path: Path, cache: Path, command: str) -> None:
    split = "validation" if command == "validate" else command
    more = ("--run", tmp_path, *BASE[:2], *SHORT, "--model.objective", "dpo", f"--data.{split}", rows)
    assert counts(lit_align(command, *more, *kept(cache))) == (11, 0)
    assert counts(lit_align(command, *more, *kept(cache))) == (0, 11)


@pytest.mark.long
def test_values_of_another_model_under_this_ones_name_are_refused(rows: Path, tmp_path: Path, cache: Path) -> None:
    """Store the values of one reference in the folder of another, as if a library had changed."""
    ok(lit_align(*words(tmp_path / "a", rows, *kept(cache))))
    other = ("--model.loading.weights", "random")
    ok(lit_align(*words(tmp_path / "b", rows, *kept(cache), *other)))
    one, two = sorted(cache.iterdir())
    for shard in one.glob("*.arrow"):
        shard.rename(one / "shard")
    for shard in two.glob("*.arrow"):
        shard.rename(one / shard.name)
    (one / "shard").unlink()
    runs = [lit_align(*words(tmp_path / name, rows, *kept(cache), *more)) for name, more in (("c", ()), ("d", other))]
    assert sorted(ended.code for ended in runs) == [0, 2]
    (refused,) = (ended.out for ended in runs if ended.code)
    assert re.search(r"row \d+, scored token \d+: kept is -\d+\.\d+, the reference says -\d+\.\d+", refused)
    unchecked = [
        lit_align(*words(tmp_path / name, rows, *kept(cache, "--model.reference.checked_rows", 0), *more))
        for name, more in (("e", ()), ("f", other))
    ]
    assert [ended.code for ended in unchecked] == [0, 0]


class TestTrainingRows:
    @pytest.fixture
    def data(self, rows: Path) -> PreferenceData:
        data = PreferenceData(train=str(rows), tokenizer="testbed:policy", batch_size=4)
        data.setup("fit")
        return data

    def test_they_are_those_of_the_batches(self, data: PreferenceData) -> None:
        batches = [batch.index.tolist() for batch in data.train_dataloader()]
        for steps in range(1, 4):
            assert data.training_rows(steps) == sorted(row for rows in batches[:steps] for row in rows)

    def test_a_whole_epoch_has_all(self, data: PreferenceData) -> None:
        assert data.training_rows(3) == data.training_rows(1000) == list(range(11))

    def test_the_rows_that_are_asked_for_are_served(self, data: PreferenceData) -> None:
        loader: Any = data.rows_dataloader("train", [7, 2, 9, 0, 5])
        assert [batch.index.tolist() for batch in loader] == [[7, 2, 9, 0], [5]]
        assert len(loader) == 2
        assert np.array_equal(list(data.rows_dataloader("train", [])), [])


def host(folder: Path) -> Trainer:
    quiet: dict[str, Any] = {
        **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"},
        **{"enable_model_summary": False, "use_distributed_sampler": False, "default_root_dir": folder},
    }
    return Trainer(callbacks=[Precompute()], max_steps=1, num_sanity_val_steps=0, **quiet)


def test_a_module_goes_on_without_the_weights(rows: Path, tmp_path: Path, cache: Path) -> None:
    """Values computed before a fit are reused after it; rows without values are an error."""
    module = LitPreference("testbed:policy", dpo(), reference=Precomputed(cache=str(cache)))
    other = tmp_path / "other.jsonl"
    other.write_text("".join(reversed(rows.read_text("utf-8").splitlines(keepends=True))).replace("a", "e"), "utf-8")
    data = PreferenceData(train=str(rows), validation=str(rows), test=str(other), tokenizer="testbed:policy")
    host(tmp_path).fit(module, datamodule=data)
    after = host(tmp_path)
    after.validate(module, datamodule=data, verbose=False)
    assert after.callback_metrics["val/loss"].isfinite()
    with pytest.raises(ValueError, match="11 rows of test are not there, and the reference's weights were given back"):
        host(tmp_path).test(module, datamodule=data, verbose=False)

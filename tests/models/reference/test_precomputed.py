"""A precomputed reference returns exactly the reference's values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from lit_align.models import LoRA, Precomputed, SecondModel
from lit_align.models.reference.precomputed import model_identity
from lit_align.types import PairBatch
from tests.conftest import tiny_llama

CPU = torch.device("cpu")


def filled(folder: Path, batch: PairBatch, policy: Any = None) -> Precomputed:
    """A reference whose values of one batch are on disk, and whose weights are released."""
    reference = attached(folder, policy)
    reference.compute(batch)
    reference.store.flush()
    reference.store.load()
    reference.release()
    return reference


def attached(folder: Path, policy: Any = None) -> Precomputed:
    reference = Precomputed(cache=str(folder))
    reference.attach(policy or tiny_llama())
    reference.open(CPU)
    return reference


def reordered(batch: PairBatch, rows: list[int]) -> PairBatch:
    names = ("input_ids", "attention_mask", "mask", "truncated", "weight", "index")
    return replace(batch, **{name: getattr(batch, name)[rows] for name in names})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class TestValues:
    def test_they_are_the_references_to_the_bit(self, batch: PairBatch, folder: Path) -> None:
        second = SecondModel()
        second.attach(tiny_llama())
        assert filled(folder, batch).log_probs(batch).equal(second.log_probs(batch))

    def test_any_part_of_a_batch_is_found_in_any_order(self, batch: PairBatch, folder: Path) -> None:
        reference = filled(folder, batch)
        whole = reference.log_probs(batch)
        part = reordered(batch, [2, 0])
        assert reference.log_probs(part).equal(whole[[2, 0]][..., : int(part.lengths.max())])
        assert reference.log_probs(batch.chosen_side()).equal(whole[:, :1])

    def test_what_stands_beside_a_batch_is_kept_too(self, batch: PairBatch, folder: Path) -> None:
        ids = batch.input_ids.clone()
        ids[:, :, 0] = 3
        prompted, other = replace(batch, input_ids=ids), replace(batch, input_ids=ids + 1)
        reference = attached(folder)
        beside = replace(batch, prompted=prompted, mismatched=other)
        assert reference.missing(beside).tolist() == [True, True, True]
        reference.compute(batch)
        reference.store.flush()
        reference.store.load()
        assert reference.missing(batch).tolist() == [False, False, False]
        assert reference.missing(beside).tolist() == [True, True, True]
        reference = filled(folder, beside)
        second = SecondModel()
        second.attach(tiny_llama())
        for part in (batch, prompted, other):
            assert reference.log_probs(part).equal(second.log_probs(part))

    def test_an_absent_side_needs_no_value(self, batch: PairBatch, folder: Path) -> None:
        mask, attention = batch.mask.clone(), batch.attention_mask.clone()
        mask[1, 1] = attention[1, 1] = False
        attention[1, 1, 0] = True
        reference = filled(folder, replace(batch, mask=mask, attention_mask=attention))
        assert len(reference.store) == 5
        assert reference.log_probs(replace(batch, mask=mask, attention_mask=attention))[1, 1].tolist() == [0.0] * 5

    def test_rows_without_values_are_named(self, batch: PairBatch, folder: Path) -> None:
        reference = filled(folder, reordered(batch, [1]))
        moved = replace(batch, index=torch.tensor([40, 41, 42]))
        with pytest.raises(ValueError, match=r"rows \[40, 42\] are not in"):
            reference.log_probs(moved)

    @pytest.mark.fault("D24")
    def test_values_that_are_not_finite_are_not_kept(self, batch: PairBatch, folder: Path) -> None:
        policy = tiny_llama()
        with torch.no_grad():
            policy.model.embed_tokens.weight[15] = torch.nan
        reference = attached(folder, policy)
        with pytest.raises(ValueError, match="log-probs of row 0 are not finite"):
            reference.compute(batch)
        assert len(reference.store) == 0

    def test_a_batch_that_only_keeps_step_is_not_kept(self, batch: PairBatch, folder: Path) -> None:
        reference = attached(folder)
        reference.compute(batch, keep=False)
        reference.store.flush()
        reference.store.load()
        assert len(reference.store) == 0


def _weight(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6


def _config(model: LlamaForCausalLM) -> None:
    model.config.rms_norm_eps = 1e-4


def _attention(model: LlamaForCausalLM) -> None:
    model.set_attn_implementation("eager")


def _dtype(model: LlamaForCausalLM) -> None:
    model.to(torch.bfloat16)


def _buffer_free(model: LlamaForCausalLM) -> None:
    model.config.use_cache = True
    model.config._name_or_path = "elsewhere"
    model.train()


class TestIdentity:
    @pytest.mark.fault("D22", "D23")
    @pytest.mark.parametrize("change", [_weight, _config, _attention, _dtype])
    def test_what_enters_a_value_makes_another_cache(
        self, batch: PairBatch, folder: Path, change: Callable[[LlamaForCausalLM], None]
    ) -> None:
        filled(folder, batch)
        model = tiny_llama()
        change(model)
        assert attached(folder, model).missing(batch).all()

    @pytest.mark.fault("D20")
    def test_so_does_the_precision(self, batch: PairBatch, folder: Path) -> None:
        reference = filled(folder, batch)
        with torch.autocast("cpu", torch.bfloat16):
            assert attached(folder).missing(batch).all()
            with pytest.raises(RuntimeError, match="'autocast': 'none'.*not in .*'autocast': 'bfloat16'"):
                reference.log_probs(batch)

    @pytest.mark.parametrize("name", ["code_digest", "version"])
    def test_other_code_or_libraries_compute_values_again(
        self, batch: PairBatch, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        filled(folder, batch)
        monkeypatch.setattr(f"lit_align.models.reference.precomputed.{name}", lambda part: f"another {part}")
        assert attached(folder).missing(batch).all()

    @pytest.mark.fault("D20b")
    def test_what_does_not_enter_finds_the_same(self, batch: PairBatch, folder: Path) -> None:
        filled(folder, batch)
        model = tiny_llama()
        _buffer_free(model)
        assert not attached(folder, model).missing(batch).any()

    def test_a_policy_with_an_adapter_finds_the_base_models_values(self, batch: PairBatch, folder: Path) -> None:
        filled(folder, batch)
        policy = LoRA(rank=2).wrap(tiny_llama())
        reference = attached(folder, policy)
        assert not reference.missing(batch).any()
        reference.check(batch)
        assert model_identity(policy) == model_identity(tiny_llama())

    def test_a_path_is_read_and_is_not_part_of_it(self, batch: PairBatch, folder: Path, tmp_path: Path) -> None:
        for name in ("one", "two"):
            tiny_llama(seed=5).save_pretrained(tmp_path / name)
        first, second = (Precomputed(str(tmp_path / name), cache=str(folder)) for name in ("one", "two"))
        for reference in (first, second):
            reference.attach(tiny_llama())
            reference.open(CPU)
        first.compute(batch)
        first.store.flush()
        second.store.load()
        assert not second.missing(batch).any()
        assert attached(folder).missing(batch).all()


class TestCheck:
    def test_what_is_right_passes(self, batch: PairBatch, folder: Path) -> None:
        filled(folder, batch)
        attached(folder).check(reordered(batch, [1, 2]))

    def test_what_is_wrong_is_named_with_both_values(self, batch: PairBatch, folder: Path) -> None:
        """A valid shard with another model's values, as if a library had changed."""
        reference = attached(folder)
        values = SecondModel()
        values.attach(tiny_llama())
        real = values.log_probs(batch)
        reference._source = Shifted(values, 2e-3)
        reference.compute(batch)
        reference.store.flush()
        with pytest.raises(ValueError, match="row 2, scored token 1: kept is") as caught:
            attached(folder).check(reordered(batch, [2]))
        kept, says = map(float, re.findall(r"-\d+\.\d{6}", str(caught.value)))
        assert says == pytest.approx(float(real[2, 0, 1]), abs=1e-5) or says == pytest.approx(float(real[2, 1, 1]))
        assert kept - says == pytest.approx(2e-3, abs=1e-5)

    def test_rounding_passes(self, batch: PairBatch, folder: Path) -> None:
        reference = attached(folder)
        values = SecondModel()
        values.attach(tiny_llama())
        reference._source = Shifted(values, 1e-5)
        reference.compute(batch)
        reference.store.flush()
        attached(folder).check(batch)


class Shifted(SecondModel):
    """A reference with wrong values for every second token."""

    def __init__(self, other: SecondModel, shift: float) -> None:
        super().__init__()
        self._model = other._model
        self.shift = shift

    def log_probs(self, batch: PairBatch) -> Any:
        values = super().log_probs(batch)
        values[..., 1] += self.shift
        return values


class TestUse:
    def test_too_early(self, batch: PairBatch, folder: Path) -> None:
        reference = Precomputed(cache=str(folder))
        with pytest.raises(RuntimeError, match="attach"), reference.active():
            pass
        with pytest.raises(RuntimeError, match="no cache yet"):
            reference.log_probs(batch)

    def test_the_weights_are_gone_when_they_are_given_back(self, batch: PairBatch, folder: Path) -> None:
        reference = filled(folder, batch)
        with pytest.raises(RuntimeError, match=r"release\(\) gives it back"), reference.active():
            pass
        with pytest.raises(RuntimeError, match="were given back"):
            reference.compute(batch)

    def test_a_negative_number_of_rows_is_refused(self) -> None:
        with pytest.raises(ValueError, match="checked_rows is -1; expected 0 or more"):
            Precomputed(checked_rows=-1)

    def test_another_vocabulary_is_refused(self, tmp_path: Path) -> None:
        tiny_llama(vocabulary=40).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="vocabulary of 40"):
            Precomputed(str(tmp_path)).attach(tiny_llama())

    def test_float64_models_keep_float64(self, batch: PairBatch, folder: Path) -> None:
        reference = filled(folder, batch, tiny_llama().double())
        assert reference.log_probs(batch).dtype == torch.float64
        assert reference.store.dtype == np.float64

"""The probe of the layout check: it explains rounding on real kinds of models, and shows every mistake on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from lit_align.models.lm_head.projection import LogitRule
from lit_align.models.logps import inputs as reading
from lit_align.models.logps import log_probs as token_log_probs
from lit_align.models.logps import probe as probing
from lit_align.models.logps.attention import plan_of
from lit_align.models.logps.check import ALLOWANCE, choose_layout
from lit_align.models.logps.log_probs import LogProbReader
from lit_align.models.logps.packing import Packing, needed
from lit_align.models.logps.probe import distance, in_float32, probe, rounding_noise, short_pairs
from lit_align.types import PairBatch
from tests.conftest import pair_batch
from tests.models.logps.test_check import second_sees_first, without_mask

Model = tuple[int, int, int, bool]
"""Layers, hidden size, vocabulary, and whether it is trained."""
MODELS: dict[str, Model] = {
    "shallow": (2, 64, 1_000, False),
    "wide": (2, 576, 1_000, False),
    "large vocabulary": (2, 64, 128_000, False),
    "deep": (30, 64, 1_000, False),
    "deep and wide": (30, 576, 1_000, False),
    "trained shallow": (2, 64, 1_000, True),
    "trained deep": (24, 64, 1_000, True),
}


@cache
def model_of(kind: str) -> nn.Module:
    """Build a model; trained ones recite the ids in order, with logits as peaked as those of real models."""
    layers, hidden, vocabulary, trained = MODELS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = hf.LlamaConfig(
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=max(hidden // 96, 1),
            vocab_size=vocabulary,
            tie_word_embeddings=vocabulary > 1_000,
        )
        model: nn.Module = hf.AutoModelForCausalLM.from_config(config)
        if trained:
            _train(model, vocabulary)
    return model.eval()


def _train(model: nn.Module, vocabulary: int) -> None:
    """Train to continue arithmetic sequences of two steps, each of which needs the tokens before."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        start, step = torch.randint(vocabulary // 2, (16, 1)), torch.randint(1, 4, (16, 1))
        ids = start + step * torch.arange(12)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def batch() -> PairBatch:
    """Two pairs of unequal lengths."""
    return pair_batch(
        [[20, 21, 22, 23, 24, 25, 26, 27, 28], [300, 302, 304, 306, 308]],
        [([29, 30, 31, 32, 33, 34, 35, 36], [40, 42, 44, 41]), ([310, 312, 313], [7, 6, 320, 322, 324, 326])],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(kind, dtype, marks=pytest.mark.long if "deep" in kind else ())
        for kind in MODELS
        for dtype in (torch.float32, torch.bfloat16)
        if dtype == torch.float32 or "trained" in kind
    ],
    ids=lambda given: str(given).removeprefix("torch."),
)
def test_rounding_is_explained(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise is that of the plain layout against float64, and the shared one is as near to the truth."""
    monkeypatch.setattr(probing, "_fits_in_float32", lambda model, weights: False)
    model = copy.deepcopy(model_of(kind)).to(dtype)
    reader, exact = LogProbReader(model), LogProbReader(copy.deepcopy(model).double())
    pairs = short_pairs(batch())
    for each in (reader, exact):
        each.use("plain")
    plain, truth = probe(reader, pairs), probe(exact, pairs)
    noise, error = rounding_noise(reader, pairs, plain), distance(plain, truth)
    assert error.values / ALLOWANCE <= noise.values <= ALLOWANCE * error.values
    assert error.gradient / ALLOWANCE <= noise.gradient <= 2 * ALLOWANCE * error.gradient
    assert choose_layout(reader, batch()).layout == "shared"
    assert distance(probe(reader, pairs), truth).values <= 2 * ALLOWANCE * error.values


def one_token_less(packing: Packing) -> Tensor:
    """The second response does not see the last token of its prompt."""
    segments = packing.segments.clone()
    segments[:, 2] -= 1
    return plan_of(replace(packing, segments=segments))


def changed_packing(change: Callable[[Packing], dict[str, Any]]) -> Callable[[pytest.MonkeyPatch], None]:
    right = reading.pack
    return lambda patch: patch.setattr(reading, "pack", lambda *given: replace(right(*given), **change(right(*given))))


def shifted(packing: Packing) -> dict[str, Any]:
    """The tokens of second segments are one position too far."""
    return {"positions": packing.positions + packing.second.long()}


def wrong_place(packing: Packing) -> dict[str, Any]:
    """Every token is predicted from the hidden state before the right one."""
    return {"places": (packing.places - 1).clamp(min=0)}


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "leaking mask": lambda patch: patch.setattr(reading, "plan_of", without_mask),
    "rejected sees chosen": lambda patch: patch.setattr(reading, "plan_of", second_sees_first),
    "a token less": lambda patch: patch.setattr(reading, "plan_of", one_token_less),
    "shifted positions": changed_packing(shifted),
    "shifted predictions": changed_packing(wrong_place),
    "dropped soft cap": lambda patch: patch.setattr(token_log_probs, "logit_rule", lambda model: LogitRule(cap=30.0)),
    "dropped scale": lambda patch: patch.setattr(token_log_probs, "logit_rule", lambda model: LogitRule(scale=0.98)),
}


OFTEN = {"rejected sees chosen", "shifted predictions"}
"""Faults that are tried on every model; the gate tries the others on a shallow one and on a deep, trained one."""
FAULTY = [(kind, fault, torch.float32) for kind in MODELS if kind != "deep and wide" for fault in FAULTS]
FAULTY += [("trained deep", fault, torch.bfloat16) for fault in FAULTS]


def marks(kind: str, fault: str, dtype: torch.dtype) -> list[pytest.MarkDecorator]:
    if kind == "deep" or (
        fault not in OFTEN and (kind, dtype) not in {("shallow", torch.float32), ("trained deep", torch.float32)}
    ):
        return [pytest.mark.long]
    return [pytest.mark.slow] if kind == "trained deep" else []


@pytest.mark.parametrize(
    ("kind", "fault", "dtype"),
    [pytest.param(*each, marks=marks(*each)) for each in FAULTY],
    ids=lambda given: str(given).removeprefix("torch."),
)
def test_faults_are_refused(kind: str, fault: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistakes far larger than rounding are detected on models of any depth, width and weights."""
    reader = LogProbReader(copy.deepcopy(model_of(kind)).to(dtype))
    FAULTS[fault](monkeypatch)
    choice = choose_layout(reader, batch())
    assert choice.layout != "shared"
    assert "where rounding explains" in choice.warnings[0]
    assert next(reader.model.parameters()).dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted(OFTEN))
def test_faults_are_refused_where_only_16_bits_fit(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_fits_in_float32", lambda model, weights: False)
    FAULTS[fault](monkeypatch)
    assert choose_layout(LogProbReader(copy.deepcopy(model_of("trained deep")).bfloat16()), batch()).layout != "shared"


@pytest.mark.slow
def test_faults_of_a_deep_and_wide_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS["shifted positions"](monkeypatch)
    assert choose_layout(LogProbReader(model_of("deep and wide")), batch()).layout == "packed"


def test_weights_of_16_bits_come_back() -> None:
    model = copy.deepcopy(model_of("shallow")).bfloat16()
    before = copy.deepcopy(model.state_dict())
    with in_float32(model):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.bfloat16
        assert weight.equal(before[name])


def test_pairs_are_short_and_differ_in_all_lengths() -> None:
    pairs = short_pairs(batch())
    lengths = pairs.attention_mask.sum(-1)
    assert lengths.tolist() == [[12, 11], [7, 9]]
    assert pairs.mask.sum(-1).tolist() == [[5, 4], [3, 5]]
    assert pairs.input_ids[0, 0, :12].tolist() == [20, 21, 22, 23, 26, 27, 28, 29, 30, 31, 32, 33]


@pytest.mark.parametrize(
    ("prompt", "sides"),
    [
        ([5], ([6, 7, 8], [6, 7, 9])),
        ([5], ([6, 6], [6, 6])),
        ([], ([6, 7, 8], [9, 7])),
        ([5, 6], ([], [7, 8])),
        ([5, 6], ([7, 8], [])),
        ([5, 6], ([7], [7])),
    ],
    ids=["alike", "all the same", "no prompt", "rejected only", "chosen only", "one token"],
)
def test_responses_of_a_pair_begin_differently(prompt: list[int], sides: tuple[list[int], list[int]]) -> None:
    pairs = short_pairs(pair_batch([prompt], [sides]))
    first = pairs.mask.int().argmax(-1)
    begins = pairs.input_ids.gather(-1, first.unsqueeze(-1)).squeeze(-1)
    assert bool((begins[:, 0] != begins[:, 1]).all())
    assert bool((first > 0).all())


def test_prompts_exceed_a_small_window() -> None:
    assert int(needed(short_pairs(batch(), window=40)).min()) > 40
    assert int(needed(short_pairs(batch(), window=40, positions=45)).max()) < 20
    assert int(needed(short_pairs(batch(), window=4096)).max()) < 20

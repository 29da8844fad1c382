"""The host waits for a device equally often whatever the prompts, responses, tokens and micro-batches of a rollout."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torchmetrics import Metric
from transformers import LlamaForSequenceClassification

from lit_align.data import PreferenceData
from lit_align.models.generation import GeneratedResponse, GenerationRequest, Generator
from lit_align.models.sampling import Sampling
from lit_align.models.score_model import ScoreModel
from lit_align.models.scorer import FunctionScore
from lit_align.modules import LitOnline
from lit_align.objectives import averaged_dpo
from lit_align.online import GAE, LeaveOneOut
from lit_align.online.presets import kl_rlhf
from lit_align.types import PairBatch, PreferencePair, TokenizedPair, TokenizedResponse
from tests.conftest import tiny_llama
from tests.models.architectures import VOCABULARY, telling_batch
from tests.standin import DEVICE, OnDevice, on_device, standin

MOST_OF_A_ROLLOUT = 8
"""Sizes of groups, texts that are compared, places of pairs; none of these for each of them."""


class Written(Generator):
    """Gives responses that were written before, of a number of tokens, each its own."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __call__(
        self,
        model: Any,
        requests: Sequence[GenerationRequest],
        stop_tokens: Collection[int],
        pad_token: int,
        sampling: Sampling,
    ) -> list[GeneratedResponse]:
        """Return responses without an end."""
        return [
            GeneratedResponse([3 + (place + 2 * token) % 50 for token in range(self.tokens - place % 2)], ended=False)
            for place in range(len(requests))
        ]


def data_of(batch: PairBatch) -> Any:
    """What a rollout asks of a data module."""
    nothing = TokenizedResponse([], [])
    prompts = [
        batch.input_ids[row, 0][batch.attention_mask[row, 0] & ~batch.mask[row, 0]].tolist()
        for row in range(len(batch.index))
    ]
    answers: dict[str, Any] = {
        "__init__": lambda self: None,
        "splits": {"train": SimpleNamespace(store=[TokenizedPair(prompt, nothing, nothing) for prompt in prompts])},
        "rows": {"train": [PreferencePair("text", None, None) for _ in prompts]},
        "decode_response": lambda self, prompt, ids: " ".join(map(str, ids)),
        **{"stop_tokens": {2}, "pad_token": 0, "seed": 0},
    }
    return type("Data", (PreferenceData,), answers)()


def length_score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Score texts, each differently."""
    return [0.1 * sum(map(int, text.split())) for text in responses]


def module(objective: Any, tokens: int, micro_batch: int, batch: PairBatch, moves: bool) -> LitOnline:
    """A module whose models and metrics are on the stand-in device or not; the layout is the fastest one."""
    made: Any = LitOnline(
        "testbed:policy",
        objective,
        FunctionScore(length_score),
        generator=Written(tokens),
        sampling=Sampling(max_new_tokens=9),
        micro_batch=micro_batch,
        responses=2,
    )
    made.policy = tiny_llama(vocabulary=VOCABULARY)
    made.reference.attach(made.policy)
    made.reference.read_with(made.readers.read)
    made.value_model, models = None, [made.policy, made.reference._model]
    if made.settings.needs.values:
        config = tiny_llama(vocabulary=VOCABULARY).config
        config.num_labels = 1
        with torch.random.fork_rng():
            torch.manual_seed(1)
            made.value_model = ScoreModel(LlamaForSequenceClassification(config)).eval()
        models.append(made.value_model)
    metrics: list[Any] = [part for part in made.modules() if isinstance(part, Metric)]
    for model in models:
        if moves:
            on_device(model)
        made.readers.assume(model, "shared")
    for metric in metrics if moves else ():
        for name in metric._defaults:
            setattr(metric, name, OnDevice(getattr(metric, name)))
    attributes = {"world_size": 1, "global_step": 1, "global_rank": 0, "current_epoch": 0}
    host = type(
        "Host", (Trainer,), {"__init__": lambda self: None, "strategy": SingleDeviceStrategy("cpu"), **attributes}
    )
    made._trainer = host()
    made._trainer.datamodule = data_of(batch)
    return made.train()  # type: ignore[no-any-return]


def roll(made: Any, batch: PairBatch, waits: list[str]) -> tuple[torch.Tensor, list[str], list[str]]:
    """All of a rollout but the generator, and all of a step on it but the optimizer."""
    made.zero_grad()
    waits.clear()
    responses = made.sample_rollout(batch, "train", 2, 0)
    accumulate = made._accumulator(responses, batch)
    made.step_totals.add_tokens(responses.batch)
    of_rollout = waits[:]
    waits.clear()
    losses: list[torch.Tensor] = []

    def backward(loss: torch.Tensor) -> None:
        losses.append(loss.detach())
        loss.backward()

    prompts = list(range(len(batch.on_host.index)))
    accumulate(prompts, len(prompts), backward)
    made.on_before_optimizer_step(torch.optim.SGD(made.policy.parameters(), lr=1.0))
    return torch.stack(losses).sum(), of_rollout, waits[:]


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(kl_rlhf(0.1, GAE()), marks=pytest.mark.long),
        kl_rlhf(0.1, LeaveOneOut()),
        averaged_dpo(),
    ],
    ids=["gae", "leave one out", "own pairs"],
)
def test_waits_do_not_grow(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two for a step, as of pairs; a few for a rollout. The loss is that of a CPU."""
    monkeypatch.setattr(LitOnline, "global_step", property(lambda self: 1))
    whole = telling_batch()
    counts = []
    for rows, tokens, micro_batch in ((2, 4, 4), (4, 9, 2)):
        batch = whole.rows(slice(rows))
        expected, *_ = roll(module(objective, tokens, micro_batch, batch, moves=False), batch, [])
        with standin(monkeypatch) as waits:
            made = module(objective, tokens, micro_batch, batch, moves=True)
            moved = batch.to(DEVICE, non_blocking=True)
            roll(made, moved, waits)  # moves what stays there: zeros of sums
            loss, of_rollout, of_step = roll(made, moved, waits)
        torch.testing.assert_close(loss.inner, expected, rtol=1e-4, atol=1e-6)  # type: ignore[attr-defined]
        assert len(of_step) == 2, of_step
        assert len(of_rollout) <= MOST_OF_A_ROLLOUT, of_rollout
        counts.append(len(of_rollout))
    assert counts[0] == counts[1], of_rollout

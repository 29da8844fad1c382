"""Drawing: responses of the policy to a batch of prompts, with everything that is known of them before an update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_align.data import PreferenceData
from lit_align.data.batches.collate import Collate
from lit_align.metrics.rollouts import WeightedPreferences
from lit_align.models import Reference
from lit_align.models.generation import (
    GeneratedResponse,
    GenerationRequest,
    Generator,
    Sampling,
    mix_seed,
    model_stop_tokens,
)
from lit_align.models.logps.plain import packed_mask
from lit_align.models.scorer import Scorer, Texts, check_scores
from lit_align.models.sharding import unsharded
from lit_align.modules.log_probs import LogProbReaders
from lit_align.online.matching import PairedPreferences
from lit_align.types import PairBatch, Rollout, RolloutTokens, TokenizedPair, TokenizedResponse

NOTHING = TokenizedResponse([], [])


@dataclass(frozen=True)
class Drawn:
    """Responses to a batch of prompts, those to one prompt side by side.

    Args:
        batch: prompts and responses as ids, with a side axis of 1.
        rollout: log-probabilities and scores.
        texts: prompts and responses as text.
    """

    batch: PairBatch
    rollout: Rollout
    texts: Texts

    @property
    def ended(self) -> Tensor:
        """True for a response that ended by itself."""
        return ~self.batch.truncated[:, 0]


@dataclass(frozen=True)
class Models:
    """What drawing asks of.

    Args:
        policy: in evaluation mode.
        reference: frozen, where something needs it.
        value: where something needs it.
    """

    policy: nn.Module
    reference: Reference | None = None
    value: nn.Module | None = None


@dataclass(frozen=True)
class Draw:
    """How responses are drawn, and scored.

    Args:
        data: where prompts and the tokenizer are.
        generator: writes the responses.
        sampling: how to draw.
        score: what says what a response is worth.
        passes: responses per forward pass.
        needs_greedy: whether the most likely response to each prompt is scored as well.
        sources: how models are read.
    """

    data: PreferenceData
    generator: Generator
    sampling: Sampling
    score: Scorer
    passes: int
    needs_greedy: bool
    readers: LogProbReaders

    @torch.no_grad()
    def __call__(self, models: Models, batch: PairBatch, split: str, each: int, salt: int) -> Drawn:
        """Draw responses to the prompts of a batch.

        Args:
            models: policy, reference and value model.
            batch: rows of a split; only their places are looked at.
            split: which one.
            each: responses to each prompt.
            salt: another one draws other responses.

        Raises:
            ScoreError: a score cannot be used; names the prompt.
        """
        places = batch.index.tolist()
        prompts = [list(self.data.splits[split].store[place].prompt) for place in places]
        asked = [self.prompt_text(split, place, ids) for place, ids in zip(places, prompts, strict=True)]
        requests = [
            GenerationRequest(prompt, mix_seed(self.sampling.seed, self.data.seed, salt, place, number))
            for prompt, place in zip(prompts, places, strict=True)
            for number in range(each)
        ]
        device = batch.input_ids.device
        with unsharded(models.policy):
            written = self._write(models.policy, requests, self.sampling)
            likeliest = self._greedy(models.policy, prompts) if self.needs_greedy else None
            drawn = replace(
                self._collate(requests, written),
                index=batch.index.cpu().repeat_interleave(each),
                weight=(batch.weight.cpu() > 0).float().repeat_interleave(each),
            ).to(device)
            log_probs = self._log_probs(lambda part: self.readers.read(models.policy, part), drawn)
        texts = Texts([text for text in asked for _ in range(each)], self._responses(written))
        with self.score.ready():
            score = self.scores(drawn, texts)
            greedy = None if likeliest is None else self._scores_written(prompts, asked, likeliest, device)
        rollout = Rollout(
            policy=log_probs,
            mask=packed_mask(drawn)[:, 0],
            score=score,
            group=torch.arange(len(prompts), device=device).repeat_interleave(each),
            weight=drawn.weight,
            reference=None if models.reference is None else self._reference(models.reference, drawn),
            values=None if models.value is None else self._values(models.value, drawn),
            greedy=None if greedy is None else greedy.repeat_interleave(each),
        )
        return Drawn(drawn, rollout, texts)

    def prompt_text(self, split: str, place: int, ids: Sequence[int]) -> str:
        """The prompt of a row as scorers see it.

        Args:
            split: where the row is.
            place: of the row.
            ids: of the prompt.
        """
        text = self.data.rows[split][place].prompt
        return text if isinstance(text, str) else self.data.decode(ids)

    def _write(
        self, policy: nn.Module, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> list[GeneratedResponse]:
        model: Any = policy
        stops = self.data.stop_tokens | model_stop_tokens(model)
        return self.generator(model, requests, stops, self.data.pad_token, sampling)

    def _collate(self, requests: Sequence[GenerationRequest], written: Sequence[GeneratedResponse]) -> PairBatch:
        pairs = [
            TokenizedPair(one.prompt, TokenizedResponse(it.ids, [True] * len(it.ids), not it.ended), NOTHING)
            for one, it in zip(requests, written, strict=True)
        ]
        return Collate(self.data.pad_token)([(pair, 1.0) for pair in pairs]).chosen_side()

    def _responses(self, written: Sequence[GeneratedResponse]) -> list[str]:
        return [self.data.decode(response.content) for response in written]

    def _greedy(self, policy: nn.Module, prompts: Sequence[Sequence[int]]) -> list[GeneratedResponse]:
        requests = [GenerationRequest(prompt, 0) for prompt in prompts]
        return self._write(policy, requests, replace(self.sampling, temperature=0.0))

    def _scores_written(
        self,
        prompts: Sequence[Sequence[int]],
        asked: Sequence[str],
        written: list[GeneratedResponse],
        device: torch.device,
    ) -> Tensor:
        batch = self._collate([GenerationRequest(prompt, 0) for prompt in prompts], written)
        return self.scores(batch.to(device), Texts(asked, self._responses(written)))

    def scores(self, batch: PairBatch, texts: Texts) -> Tensor:
        """One finite number for each response; asked for inside ``score.ready()``.

        Args:
            batch: prompts with responses as ids.
            texts: the same as text.

        Raises:
            ScoreError: a score cannot be used.
        """
        return check_scores(self.score(batch, texts), texts, self.score).to(batch.input_ids.device)

    def _reference(self, reference: Reference, batch: PairBatch) -> RolloutTokens:
        with reference.ready():
            return self._log_probs(reference.log_probs, batch)

    def _log_probs(self, log_probs: Callable[[PairBatch], Tensor], batch: PairBatch) -> RolloutTokens:
        return self._in_parts(lambda part: log_probs(part)[:, 0], batch)

    def _values(self, model: nn.Module, batch: PairBatch) -> RolloutTokens:
        with unsharded(model):
            return self._in_parts(lambda part: self.readers.values(model, part), batch)

    def _in_parts(self, of: Callable[[PairBatch], Tensor], batch: PairBatch) -> RolloutTokens:
        """Values per token of all responses, a few at a time, padded to the longest."""
        width = int(batch.lengths.max())
        starts = range(0, len(batch.input_ids), self.passes)
        parts = [of(batch.rows(slice(start, start + self.passes))) for start in starts]
        return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])


def rollout_records(drawn: Drawn, batch: PairBatch, each: int) -> list[dict[str, Any]]:
    """One plain record per prompt, for JSON; copies of weight 0 are left out.

    Args:
        drawn: the responses.
        batch: the prompts.
        each: responses to each prompt.
    """
    log_probs, lengths = drawn.rollout.policy.double().sum(-1).tolist(), drawn.rollout.mask.sum(-1).tolist()
    scores, ended = drawn.rollout.score.tolist(), drawn.ended.tolist()
    records = []
    for row, index in enumerate(batch.index.tolist()):
        places = range(row * each, (row + 1) * each)
        if float(batch.weight[row]) > 0:
            said = [
                {
                    "response": drawn.texts.responses[place],
                    "score": scores[place],
                    "log_prob": log_probs[place],
                    "length": lengths[place],
                    "ended": ended[place],
                }
                for place in places
            ]
            records.append({"index": index, "responses": said})
    return records


@torch.no_grad()
def given_pairs(draw: Draw, policy: nn.Module, batch: PairBatch, split: str) -> WeightedPreferences | None:
    """Gaps of score and log-probability between the responses of each row that has two; None if none has.

    Every process comes here with its own batch.

    Args:
        draw: knows the data, and what scores.
        policy: whose log-probabilities are taken.
        batch: rows of a split.
        split: which one.

    Raises:
        ScoreError: a score cannot be used; names the prompt.
    """
    rows = batch.mask.any(-1).all(-1).nonzero()[:, 0]
    pairs = batch.rows(rows)
    with draw.score.ready():
        score = draw.scores(*_singly(draw, pairs, split)).double().view(-1, 2) if len(rows) else None
    with unsharded(policy):
        log_prob = draw.readers.read(policy, pairs).double().sum(-1) if len(rows) else None
    if score is None or log_prob is None:
        return None
    gaps = PairedPreferences(score[:, 0] - score[:, 1], log_prob[:, 0] - log_prob[:, 1])
    return WeightedPreferences(gaps, (pairs.weight > 0).float())


def _singly(draw: Draw, batch: PairBatch, split: str) -> tuple[PairBatch, Texts]:
    """Both responses of every pair as rows with a side axis of 1, chosen and rejected in turn."""
    places = batch.index.tolist()
    rows = [draw.data.splits[split].store[place] for place in places]
    asked = [draw.prompt_text(split, place, row.prompt) for place, row in zip(places, rows, strict=True)]
    ends = draw.data.stop_tokens
    said = [
        draw.data.decode(side.ids[:-1] if side.ids and side.ids[-1] in ends else side.ids)
        for row in rows
        for side in row.sides
    ]

    def flat(part: Tensor) -> Tensor:
        return part.flatten(0, 1).unsqueeze(1)

    single = PairBatch(
        input_ids=flat(batch.input_ids),
        attention_mask=flat(batch.attention_mask),
        mask=flat(batch.mask),
        truncated=flat(batch.truncated),
        weight=batch.weight.repeat_interleave(2),
        index=batch.index.repeat_interleave(2),
    )
    return single, Texts([text for text in asked for _ in (0, 1)], said)

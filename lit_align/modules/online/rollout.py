"""Sampling of rollouts: responses of the policy to a batch of prompts, with scores and log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_align.data import PreferenceData
from lit_align.data.batches.collate import Collate
from lit_align.interrupts import waiting
from lit_align.metrics.rollouts import WeightedPreferences
from lit_align.models import Reference
from lit_align.models.generation import GenerationRequest, Generator, model_stop_tokens
from lit_align.models.logps.plain import packed_mask
from lit_align.models.narrow import narrowed
from lit_align.models.sampling import Sampling, mix_seed
from lit_align.models.scorer import Scorer, Texts, check_scores
from lit_align.models.sharding import unsharded
from lit_align.modules.log_probs import LogProbReaders
from lit_align.modules.online.opponent import Opponent, OpponentResponses
from lit_align.online.matching import PairedPreferences
from lit_align.types import PairBatch, Rollout, RolloutTokens, TokenizedPair, TokenizedResponse

NO_RESPONSE = TokenizedResponse([], [])


@dataclass(frozen=True)
class RolloutBatch:
    """Responses to a batch of prompts, those to one prompt side by side.

    Args:
        batch: prompts and responses as ids, with a side axis of 1.
        rollout: log-probabilities and scores.
        texts: prompts and responses as text.
        wins: of a score that compares, how sure it is: ``[prompt][response][other response]``; None of others, and
            where responses are compared with an opponent's.
        opponent: what the opponent answered; None without one.
        is_rated: whether the scores are those of single responses, and not rates of wins.
    """

    batch: PairBatch
    rollout: Rollout
    texts: Texts
    wins: list[list[list[float]]] | None = None
    opponent: OpponentResponses | None = None
    is_rated: bool = True

    @property
    def ended(self) -> Tensor:
        """True for a response that ended by itself."""
        return ~self.batch.truncated[:, 0]


@dataclass(frozen=True)
class RolloutSampler:
    """Samples responses and scores them.

    Args:
        data: has the prompts and the tokenizer.
        policy: in evaluation mode.
        reference: frozen, if the objective needs it.
        value_model: if the objective needs it.
        readers: read the models.
        generator: generates the responses.
        sampling: how to sample.
        score: rates the responses.
        micro_batch: responses per forward pass.
        needs_greedy: whether the most likely response to each prompt is scored as well.
        opponent: answers the same prompts; None where the policy's responses are compared with each other.
        scores_wins: whether the score of a response is the probability that it wins against the opponent's.
    """

    data: PreferenceData
    policy: nn.Module
    reference: Reference | None
    value_model: nn.Module | None
    readers: LogProbReaders
    generator: Generator
    sampling: Sampling
    score: Scorer
    micro_batch: int
    needs_greedy: bool
    opponent: Opponent | None = None
    scores_wins: bool = False

    @torch.no_grad()
    def __call__(self, batch: PairBatch, split: str, count: int, salt: int) -> RolloutBatch:
        """Sample responses to the prompts of a batch.

        Args:
            batch: rows of a split; only their indices are used.
            split: the name of the split.
            count: responses to each prompt.
            salt: part of the seed of each response.

        Raises:
            ScoreError: a score cannot be used; names the prompt.
        """
        rows, device = batch.on_host.index.tolist(), batch.input_ids.device
        prompts = [list(self.data.splits[split].store[row].prompt) for row in rows]
        prompt_texts = [self._prompt_text(split, row, ids) for row, ids in zip(rows, prompts, strict=True)]
        requests, for_opponent = (
            [
                GenerationRequest(prompt, mix_seed(self.sampling.seed, self.data.seed, salt, row, number))
                for prompt, row in zip(prompts, rows, strict=True)
                for number in numbers
            ]
            for numbers in (range(count), range(count, 2 * count))
        )
        with unsharded(self.policy):
            with narrowed(self.policy):
                sampled, texts = self._generate(requests, self.sampling)
                answers = None if self.opponent is None else self._generate(for_opponent, self.sampling, self.opponent)
                greedy = self._generate_greedily(prompts) if self.needs_greedy else None
            responses = replace(
                sampled,
                index=batch.on_host.index.repeat_interleave(count),
                weight=(batch.on_host.weight > 0).float().repeat_interleave(count),
            ).to(device, non_blocking=True)
            log_probs = self._in_micro_batches(lambda part: self.readers.read(self.policy, part)[:, 0], responses)
        pairs = [self.data.rows[split][row] for row in rows for _ in range(count)]
        all_texts = Texts([text for text in prompt_texts for _ in range(count)], texts, pairs)
        with self.score.ready():
            if answers is None:
                opponent = None
                score, wins = self._scores_and_wins(responses, all_texts, count)
            else:
                other_texts = replace(all_texts, responses=answers[1])
                score, opponent = self._scores_against(responses, all_texts, answers[0].to(device), other_texts)
                wins = None
            greedy_texts = None if greedy is None else Texts(prompt_texts, greedy[1], pairs[::count])
            greedy_score = (
                None
                if greedy is None or greedy_texts is None
                else self._scores(greedy[0].to(device, non_blocking=True), greedy_texts)
            )
        rollout = Rollout(
            policy=log_probs,
            mask=packed_mask(responses)[:, 0],
            score=score,
            group=torch.arange(len(prompts), device=device).repeat_interleave(count),
            weight=responses.weight,
            reference=self._reference_log_probs(responses),
            values=self._values(responses),
            greedy=None if greedy_score is None else greedy_score.repeat_interleave(count),
        )
        is_rated = not (self.score.compares or (opponent is not None and self.scores_wins))
        return RolloutBatch(responses, rollout, all_texts, wins, opponent, is_rated)

    @torch.no_grad()
    def dataset_pairs(self, batch: PairBatch, split: str) -> WeightedPreferences | None:
        """Compute gaps of score and log-probability between the dataset's own responses; None without any pair.

        A score that only compares has no gaps.

        Every process must call it with its own batch.

        Raises:
            ScoreError: a score cannot be used; names the prompt.
        """
        if self.score.compares:
            return None
        pairs = batch.rows(batch.on_host.mask.any(-1).all(-1).nonzero()[:, 0])
        empty = not len(pairs.index)
        with self.score.ready():
            score = None if empty else self._scores(_one_side_each(pairs), self._dataset_texts(pairs, split)).double()
        with unsharded(self.policy):
            log_prob = None if empty else self.readers.read(self.policy, pairs).double().sum(-1)
        if score is None or log_prob is None:
            return None
        score = score.view(-1, 2)
        gaps = PairedPreferences(score[:, 0] - score[:, 1], log_prob[:, 0] - log_prob[:, 1])
        return WeightedPreferences(gaps, (pairs.weight > 0).float())

    def _prompt_text(self, split: str, row: int, ids: Sequence[int]) -> str:
        """Return the prompt of a row as scorers see it."""
        text = self.data.rows[split][row].prompt
        return text if isinstance(text, str) else self.data.decode(ids)

    def _dataset_texts(self, pairs: PairBatch, split: str) -> Texts:
        """Return prompt and response of both sides of every pair, chosen and rejected in turn."""
        stops, store = self.data.stop_tokens, self.data.splits[split].store
        prompts, responses = [], []
        rows = [self.data.rows[split][row] for row in pairs.on_host.index.tolist() for _ in range(2)]
        for row in pairs.on_host.index.tolist():
            prompts += [self._prompt_text(split, row, store[row].prompt)] * 2
            for side in store[row].sides:
                ended = bool(side.ids) and side.ids[-1] in stops
                content = side.ids[:-1] if ended else side.ids
                responses.append(self.data.decode_response(store[row].prompt, content))
        return Texts(prompts, responses, rows)

    def _generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, opponent: Opponent | None = None
    ) -> tuple[PairBatch, list[str]]:
        """Generate responses, and return them as a batch of one side and as texts."""
        how = (requests, self.data.stop_tokens | model_stop_tokens(self.policy), self.data.pad_token, sampling)
        responses = (
            self.generator(self.policy, *how)
            if opponent is None
            else opponent.generate(self.policy, self.generator, *how)
        )
        pairs = [
            TokenizedPair(
                request.prompt,
                TokenizedResponse(response.ids, [True] * len(response.ids), not response.ended),
                NO_RESPONSE,
            )
            for request, response in zip(requests, responses, strict=True)
        ]
        batch = Collate(self.data.pad_token)([(pair, 1.0) for pair in pairs]).chosen_side()
        return batch, [
            self.data.decode_response(request.prompt, response.content)
            for request, response in zip(requests, responses, strict=True)
        ]

    def _generate_greedily(self, prompts: Sequence[Sequence[int]]) -> tuple[PairBatch, list[str]]:
        requests = [GenerationRequest(prompt, 0) for prompt in prompts]
        return self._generate(requests, replace(self.sampling, temperature=0.0))

    def _scores_and_wins(
        self, batch: PairBatch, texts: Texts, count: int
    ) -> tuple[Tensor, list[list[list[float]]] | None]:
        """Return the scores, which of a score that compares are mean rates of wins, and what these are made of."""
        if not self.score.compares:
            return self._scores(batch, texts), None
        with waiting.for_code_of_others("the judgements"):
            wins = self.score.wins(texts, count)
        rates = [(sum(row) - row[own]) / (count - 1) for group in wins for own, row in enumerate(group)]
        return check_scores(rates, texts, self.score).to(batch.input_ids.device, non_blocking=True), wins

    def _scores_against(
        self, batch: PairBatch, texts: Texts, other_batch: PairBatch, other_texts: Texts
    ) -> tuple[Tensor, OpponentResponses]:
        """Return the scores of responses that are each compared with the opponent's, and what that answered."""
        if self.score.compares:
            both = zip(texts.responses, other_texts.responses, strict=True)
            prompts = [prompt for prompt in texts.prompts for _ in range(2)]
            pairs = [pair for pair in texts.pairs for _ in range(2)]
            with waiting.for_code_of_others("the judgements"):
                judged = self.score.wins(Texts(prompts, [text for two in both for text in two], pairs), 2)
            wins = [group[0][1] for group in judged]
            rate = check_scores(wins, texts, self.score).to(batch.input_ids.device, non_blocking=True)
            return rate, OpponentResponses(other_batch, 1 - rate, wins)
        score, other = self._scores(batch, texts), self._scores(other_batch, other_texts)
        rate = torch.sigmoid(score - other)
        return rate if self.scores_wins else score, OpponentResponses(other_batch, other, None)

    def _scores(self, batch: PairBatch, texts: Texts) -> Tensor:
        """Return one finite number for each response; called inside ``score.ready()``."""
        with waiting.for_code_of_others("the scores"):
            scores = self.score(batch, texts)
        return check_scores(scores, texts, self.score).to(batch.input_ids.device, non_blocking=True)

    def _reference_log_probs(self, batch: PairBatch) -> RolloutTokens | None:
        if self.reference is None:
            return None
        log_probs = self.reference.log_probs
        with self.reference.ready():
            return self._in_micro_batches(lambda part: log_probs(part)[:, 0], batch)

    def _values(self, batch: PairBatch) -> RolloutTokens | None:
        if self.value_model is None:
            return None
        model = self.value_model
        with unsharded(model):
            return self._in_micro_batches(lambda part: self.readers.values(model, part), batch)

    def _in_micro_batches(self, read: Callable[[PairBatch], Tensor], batch: PairBatch) -> RolloutTokens:
        """Compute a value for each token of all responses, a few responses at a time, padded to the longest."""
        width = int(batch.on_host.lengths.max())
        starts = range(0, len(batch.input_ids), self.micro_batch)
        parts = [read(batch.rows(slice(start, start + self.micro_batch))) for start in starts]
        return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])


def rollout_records(responses: RolloutBatch, batch: PairBatch, count: int) -> list[dict[str, Any]]:
    """Return one plain record per prompt, for JSON; copies of weight 0 are left out."""
    rollout, batch = responses.rollout, batch.on_host
    columns = {
        "response": responses.texts.responses,
        "score": rollout.score.tolist(),
        "log_prob": rollout.policy.double().sum(-1).tolist(),
        "length": rollout.mask.sum(-1).tolist(),
        "ended": responses.ended.tolist(),
    }
    return [
        {
            "index": index,
            "responses": [
                {name: values[place] for name, values in columns.items()}
                for place in range(row * count, (row + 1) * count)
            ],
        }
        for row, index in enumerate(batch.index.tolist())
        if float(batch.weight[row]) > 0
    ]


def _one_side_each(batch: PairBatch) -> PairBatch:
    """Return both responses of every pair as rows with a side axis of 1, chosen and rejected in turn."""

    def flat(part: Tensor) -> Tensor:
        return part.flatten(0, 1).unsqueeze(1)

    return PairBatch(
        input_ids=flat(batch.input_ids),
        attention_mask=flat(batch.attention_mask),
        mask=flat(batch.mask),
        truncated=flat(batch.truncated),
        weight=batch.weight.repeat_interleave(2),
        index=batch.index.repeat_interleave(2),
    )

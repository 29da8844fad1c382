"""Direct alignment on a policy's own responses: pairs from a rollout, and the gradient of their loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from lit_align.data import PreferenceData
from lit_align.data.batches.collate import Collate
from lit_align.metrics import PairMetrics
from lit_align.metrics.margins import MarginsByLength
from lit_align.metrics.rollouts import RolloutMetrics
from lit_align.models.sampling import mix_seed
from lit_align.modules.base import LitPolicy
from lit_align.modules.global_batch import Evaluation
from lit_align.modules.grad_cache import GradCache, reduce_number
from lit_align.modules.objective_state import ObjectiveState
from lit_align.modules.online.learner import Accumulator, Learner
from lit_align.modules.online.rollout import RolloutBatch
from lit_align.modules.pair_loss import PairLoss
from lit_align.modules.step_totals import run_data
from lit_align.objectives.base import MARGIN, PROBABILITY, Needs, Objective
from lit_align.objectives.pair_seed import evaluation_pair_seed, training_pair_seed
from lit_align.online.objective import OnlineNeeds
from lit_align.online.pairing import BestAgainstWorst, PairLabels, ResponsePairing, SampledPair, against_opponent
from lit_align.types import LossOutput, PairBatch, PairSeed, TokenizedPair, TokenizedResponse


class PairLearner(Learner):
    """Trains by a preference objective, on pairs of the responses to a prompt.

    Args:
        objective: of the run.
        pairing: which responses to a prompt are compared.
        labels: what the scores of a pair say.
        micro_batch: responses per forward pass.
        from_start: whether the reference is the policy before its first step.
        has_opponent: whether each response is compared with an opponent's, and with no other.

    Raises:
        ValueError: pairs lack a column that the objective requires, or get one that it would ignore, or ``pairing``
            has no effect; names the key.
    """

    def __init__(
        self,
        objective: Objective,
        pairing: ResponsePairing,
        labels: PairLabels,
        micro_batch: int,
        from_start: bool,
        has_opponent: bool,
    ) -> None:
        super().__init__()
        _check_columns(objective, labels)
        if has_opponent and pairing != BestAgainstWorst():
            raise ValueError(
                f"model.pairing is {pairing}, and model.opponent compares each response with one of the opponent's: "
                "leave one of the two out"
            )
        self.objective = objective
        self.pairing = pairing
        self.labels = labels
        self.micro_batch = max(1, micro_batch // 2)
        self.needs = OnlineNeeds(reference=objective.needs.reference, responses=1 if has_opponent else 2)
        self.data_needs = Needs(prompted=objective.needs.prompted)
        self.train_metrics = PairMetrics(objective, from_start)
        self.eval_metrics = PairMetrics(objective, from_start)
        self.eval_margins = MarginsByLength()
        self.metric_names = self.eval_metrics.names
        self.objective_state = ObjectiveState(objective)
        self._evaluation = Evaluation(objective, self.eval_metrics, self.eval_margins)

    @override
    def accumulator(
        self, module: LitPolicy, value_model: nn.Module | None, responses: RolloutBatch, batch: PairBatch
    ) -> PairAccumulator:
        module.train_metrics.update(responses.rollout, responses.ended, responses.texts.responses)
        pairs = self._pairs(module, responses, batch, "train", module.current_epoch)
        module.train_metrics.add({"paired": pairs.paired}, (batch.weight > 0).float())
        run_seed = run_data(module.trainer).seed

        def record(output: LossOutput, batch: PairBatch) -> None:
            assert output.outcome is not None
            self.train_metrics.update(output.outcome, output.logps, batch, output.grad_logps)
            module.step_totals.add_losses(output.outcome.loss.detach(), batch.index, batch.weight.sum())
            self.objective_state.add(output.outcome, batch)

        return PairAccumulator(
            self._loss(module, lambda batch: training_pair_seed(batch.index, module.global_step, run_seed)),
            pairs,
            lambda: (run_seed * 1_000_003 + module.global_step) * 4099 + module.global_rank,
            record,
        )

    @override
    def evaluate(
        self, module: LitPolicy, metrics: RolloutMetrics, responses: RolloutBatch, batch: PairBatch, split: str
    ) -> None:
        metrics.update(responses.rollout, responses.ended, responses.texts.responses)
        pairs = self._pairs(module, responses, batch, split, 0)
        metrics.add({"paired": pairs.paired}, (batch.weight > 0).float())
        loss = self._loss(module, lambda batch: evaluation_pair_seed(batch.index))
        for part in pairs.batches(range(len(pairs.by_prompt))):
            self._evaluation.update(loss.log_probs(part), part)

    def _loss(self, module: LitPolicy, pair_seed: Callable[[PairBatch], PairSeed]) -> PairLoss:
        return PairLoss(module.policy, module.reference, module.readers, self.objective_state, pair_seed)

    def _pairs(
        self, module: LitPolicy, responses: RolloutBatch, batch: PairBatch, split: str, salt: int
    ) -> RolloutPairs:
        make = PairMaker(
            data=run_data(module.trainer),
            needs=self.objective.needs,
            pairing=self.pairing,
            labels=self.labels,
            micro_batch=self.micro_batch,
            trainer=module.trainer,
        )
        return make(responses, batch, split, salt)

    @property
    @override
    def summed_metrics(self) -> dict[str, Metric]:
        return {"pairs.": self.train_metrics}

    @property
    @override
    def state(self) -> Mapping[str, Tensor]:
        return self.objective_state.values

    @override
    def load(self, state: Mapping[str, Tensor]) -> None:
        self.objective_state.load(state)

    @override
    def after_step(self, weight: float, trainer: Trainer) -> None:
        self.objective_state.advance(weight, trainer.strategy)

    @override
    def training_values(self) -> dict[str, Tensor]:
        values: dict[str, Tensor] = self.train_metrics.compute()
        self.train_metrics.reset()
        if not values:
            rank_zero_warn(
                "no two responses that were compared had different scores (model.labels.minimum_gap counts), so that "
                "nothing was learned since the last report"
            )
        return values | {f"running/{name}": value for name, value in self.state.items()}

    @override
    def reset(self) -> None:
        self._evaluation.reset()
        self.objective_state.reset()

    @override
    def evaluation_values(self, trainer: Trainer, device: torch.device) -> dict[str, Tensor]:
        values = self._evaluation.compute(trainer, device)
        self.margins = self._evaluation.last_margins
        return values


def _check_columns(objective: Objective, labels: PairLabels) -> None:
    """Raise if pairs of a rollout lack a column that the objective requires, or get one that it would ignore."""
    name, needs = type(objective).__name__, objective.needs
    for column, key in labels.columns.items():
        if column not in needs.columns:
            raise ValueError(f"model.labels.{key} gives pairs a {column}, which {name} would ignore: leave it out")
    for column in sorted(needs.required_columns - set(labels.columns)):
        key = {MARGIN: "margin_scale", PROBABILITY: "probability_scale"}[column]
        raise ValueError(f"{name} requires the {column} of pairs; set model.labels.{key}, for instance to 1")


@dataclass(frozen=True)
class RolloutPairs:
    """The pairs of a rollout, in micro-batches of which all processes have equally many.

    Args:
        by_prompt: the pairs of each prompt of this process; none where no scores differ enough.
        filler: stands in where this process has fewer pairs than another.
        collate: makes batches.
        size: pairs of a micro-batch.
        device: of the batches.
        trainer: of the run.
        has_rejected: whether the objective looks at the rejected side.
    """

    by_prompt: Sequence[Sequence[TokenizedPair]]
    filler: TokenizedPair
    collate: Collate
    size: int
    device: torch.device
    trainer: Trainer
    has_rejected: bool

    def batches(self, prompts: Sequence[int]) -> list[PairBatch]:
        """Return the micro-batches with the pairs of some prompts; empty if no process has any.

        All processes must call this together.

        Args:
            prompts: places of this process's prompts in the batch.
        """
        pairs = [(pair, 1.0) for prompt in prompts for pair in self.by_prompt[prompt]]
        count = reduce_number(-(-len(pairs) // self.size), "max", self.trainer)
        parts = [pairs[start : start + self.size] for start in range(0, count * self.size, self.size)]
        batches = [self.collate(part or [(self.filler, 0.0)]).to(self.device, non_blocking=True) for part in parts]
        return batches if self.has_rejected else [batch.chosen_side() for batch in batches]

    @property
    def paired(self) -> Tensor:
        """1 for each prompt of this process that has a pair, 0 for the others."""
        paired = torch.tensor([float(bool(pairs)) for pairs in self.by_prompt])
        return paired.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class PairMaker:
    """Makes preference pairs of sampled responses.

    Args:
        data: has the prompts, with the quality prompt where the objective needs it.
        needs: of the objective.
        pairing: which responses are compared.
        labels: what their scores say.
        micro_batch: pairs of a micro-batch.
        trainer: of the run.
    """

    data: PreferenceData
    needs: Needs
    pairing: ResponsePairing
    labels: PairLabels
    micro_batch: int
    trainer: Trainer

    def __call__(self, responses: RolloutBatch, batch: PairBatch, split: str, salt: int) -> RolloutPairs:
        """Make the pairs of a rollout; prompts of weight 0 have none. All processes must call this together.

        Args:
            responses: the rollout.
            batch: its prompts.
            split: of these.
            salt: part of the seed of random pairings.
        """
        rows, weights = batch.on_host.index.tolist(), batch.on_host.weight.tolist()
        count = len(responses.texts.responses) // len(rows)
        groups = [range(place * count, (place + 1) * count) for place in range(len(rows))]
        own = [self._responses(responses.batch, places) for places in groups]
        if responses.opponent is not None:
            answers = [self._responses(responses.opponent.batch, places) for places in groups]
            own = [[*mine, *others] for mine, others in zip(own, answers, strict=True)]
        others = self._mismatched(own, weights) if self.needs.mismatched else own
        given = [each.score for each in (responses.rollout, responses.opponent) if each is not None]
        on_host: list[list[float]] = [score.double().tolist() for score in given]  # one wait, not one for each prompt
        by_prompt = []
        for place, (row, weight) in enumerate(zip(rows, weights, strict=True)):
            scores = [
                score for own_scores in on_host for score in own_scores[groups[place].start : groups[place].stop]
            ]
            pairs = self._sampled_pairs(responses, scores, groups[place], mix_seed(self.data.seed, salt, row))
            pairs = pairs if weight > 0 else []
            by_prompt.append([self._pair(split, row, own[place], others[place], pair) for pair in pairs])
        columns = dict.fromkeys(self.labels.columns, 0.0)
        filler = self._pair(split, rows[0], own[0], others[0], SampledPair(0, 1, **columns))
        return RolloutPairs(
            by_prompt=by_prompt,
            filler=filler,
            collate=Collate(self.data.pad_token),
            size=self.micro_batch,
            device=batch.input_ids.device,
            trainer=self.trainer,
            has_rejected=self.needs.rejected,
        )

    def _sampled_pairs(
        self, responses: RolloutBatch, scores: list[float], places: range, seed: int
    ) -> list[SampledPair]:
        """Return the pairs of one prompt, whose own responses come before those of an opponent, as do their scores."""
        group, count = places.start // len(places), len(places)
        if (opponent := responses.opponent) is None:
            wins = None if responses.wins is None else responses.wins[group]
            return self.labels.pairs(self.pairing(scores, seed), scores, wins)
        rates = None
        if opponent.wins is not None:
            rates = [[0.5] * 2 * count for _ in range(2 * count)]
            for place, rate in enumerate(opponent.wins[places.start : places.stop]):
                rates[place][count + place], rates[count + place][place] = rate, 1 - rate
        return self.labels.pairs(against_opponent(scores), scores, rates)

    def _pair(
        self,
        split: str,
        row: int,
        own: Sequence[TokenizedResponse],
        others: Sequence[TokenizedResponse],
        pair: SampledPair,
    ) -> TokenizedPair:
        stored = self.data.splits[split].store[row]
        return TokenizedPair(
            prompt=stored.prompt,
            chosen=own[pair.chosen],
            rejected=own[pair.rejected],
            prompted=stored.prompted if self.needs.prompted else None,
            index=row,
            margin=pair.margin,
            preference_probability=pair.preference_probability,
            mismatched=(others[pair.chosen], others[pair.rejected]) if self.needs.mismatched else None,
        )

    def _responses(self, batch: PairBatch, places: range) -> list[TokenizedResponse]:
        batch = batch.on_host
        ids = [batch.input_ids[place, 0][batch.mask[place, 0]].tolist() for place in places]
        cut = batch.truncated[places.start : places.stop, 0].tolist()
        return [TokenizedResponse(part, [True] * len(part), was_cut) for part, was_cut in zip(ids, cut, strict=True)]

    def _mismatched(
        self, own: list[list[TokenizedResponse]], weights: Sequence[float]
    ) -> list[list[TokenizedResponse]]:
        """Return, for each prompt, the responses to the next prompt of the batch of all processes.

        Raises:
            ValueError: the batch has a single prompt.
        """
        real = [responses for responses, weight in zip(own, weights, strict=True) if weight > 0]
        ranks = [real]
        if self.trainer.world_size > 1:
            ranks = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(ranks, real)
        places = [(place, rank) for rank, part in enumerate(ranks) for place in range(len(part))]
        ordered = [ranks[rank][place] for place, rank in sorted(places)]
        if len(ordered) < 2:
            raise ValueError(
                "the objective compares with the responses to other prompts, and a batch has one; expected "
                "data.batch_size 2 or more"
            )
        positions = {(place, rank): number for number, (place, rank) in enumerate(sorted(places))}
        rank = self.trainer.global_rank
        return [ordered[(positions.get((place, rank), 0) + 1) % len(ordered)] for place in range(len(own))]


@dataclass(frozen=True)
class PairAccumulator(Accumulator):
    """Accumulates the gradient of the summed loss of a rollout's pairs.

    Args:
        loss: of pairs.
        pairs: of the rollout.
        seed: gives that of an adapter's dropout, which differs between steps and ranks.
        record: adds an output to metrics and totals.
    """

    loss: PairLoss
    pairs: RolloutPairs
    seed: Callable[[], int]
    record: Callable[[LossOutput, PairBatch], None]

    @override
    def __call__(self, prompts: Sequence[int], most: int, backward: Callable[[Tensor], None]) -> None:
        batches = self.pairs.batches(prompts)
        objective = self.loss.state.objective
        if not batches:
            filler = self.pairs.collate([(self.pairs.filler, 0.0)]).to(self.pairs.device, non_blocking=True)
            backward(0.0 * self.loss.reader.policy_alone(filler).sum())
        elif objective.needs.batch_level:
            trainer = self.pairs.trainer
            cache = GradCache(self.loss.log_probs, self.loss.reader.policy_alone, self.seed(), self.pairs.device)
            outputs = cache.evaluate(objective, batches, trainer)
            for output, batch in zip(outputs, batches, strict=True):
                self.record(output, batch)
            backward(cache.backward(batches, outputs, trainer.world_size) / trainer.world_size)
        else:
            for batch in batches:
                output = self.loss.fused(batch)
                self.record(output, batch)
                backward(output.loss)

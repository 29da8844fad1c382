"""The log-probabilities that an objective needs of a batch, read from policy and reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lit_align.models import ForwardPass, LogProbReader, ScoreReader, choose_layout
from lit_align.models.lm_head.patch import base_of, sparse_embedding_grad
from lit_align.models.lm_head.projection import Workspace
from lit_align.models.loading import compile_layers
from lit_align.models.logps.attention import original_attention
from lit_align.models.logps.packing import LayoutName
from lit_align.models.logps.paths import Path
from lit_align.models.logps.plain import packed_mask
from lit_align.models.logps.reader import ModelReader, tile_of_card
from lit_align.models.narrow import evaluating
from lit_align.models.reference.base import Reference
from lit_align.models.router import RouterBalance
from lit_align.models.score_model import ScoreModel
from lit_align.objectives.base import Objective
from lit_align.types import PairBatch, PairLogProbs, PairScores, PairSeed, PairTokens, RolloutTokens, map_tensors


class LogProbReaders:
    """The readers of a run: one for each model, in the fastest layout that is exact.

    A model's layout is chosen on the first batch that it reads, and used for all models of the same architecture. The
    readers share the memory of a tile of logits.

    Args:
        how: layout and sizes.
    """

    def __init__(self, how: ForwardPass = ForwardPass()) -> None:
        self.how = how
        self._readers: dict[nn.Module, ModelReader] = {}
        self._chosen: dict[tuple[object, ...], tuple[LayoutName, int | None, frozenset[Path]]] = {}
        self._told: set[str] = set()
        self._workspace: Workspace | None = None
        self.routers: dict[nn.Module, RouterBalance] = {}
        self._rehearsed_memory: int | None = None

    def rehearse(self, memory: int) -> None:
        """Read models from now on as on a CUDA device that is not there: its inputs and tiles, on the CPU.

        Args:
            memory: bytes of the device.
        """
        self._rehearsed_memory = memory

    def of(self, model: nn.Module, batch: PairBatch) -> LogProbReader:
        """Return the reader of a language model. All processes must request a model's reader together the first time.

        Args:
            model: the policy, or a reference as it is when active.
            batch: real pairs to check layouts on, the first time.

        Raises:
            ValueError: a layout was requested by name, and it is not exact for this model.
        """
        reader = self._reader(model, batch)
        assert isinstance(reader, LogProbReader)
        return reader

    def scores_of(self, model: nn.Module, batch: PairBatch) -> ScoreReader:
        """Return the reader of a score model, as ``of`` does."""
        reader = self._reader(model, batch)
        assert isinstance(reader, ScoreReader)
        return reader

    def _reader(self, model: nn.Module, batch: PairBatch) -> ModelReader:
        if model not in self._readers:
            reader = self._new_reader(model)
            self._choose(reader, batch)
            self._readers[model] = reader
        return self._readers[model]

    def _new_reader(self, model: nn.Module) -> ModelReader:
        rehearsed = self._rehearsed_memory is not None
        if isinstance(model, ScoreModel):
            return ScoreReader(model, self.how, rehearsed)
        if self._workspace is None:
            self._workspace = Workspace(self._tile_megabytes(next(model.parameters()).device))
        reader = LogProbReader(model, self.how, self._workspace, rehearsed)
        reader.router = self.routers.get(model)
        return reader

    def _tile_megabytes(self, device: torch.device) -> float:
        if self._rehearsed_memory is None or self.how.tile_mb is not None:
            return self.how.tile_megabytes(device)
        return tile_of_card(self._rehearsed_memory)

    def _choose(self, reader: ModelReader, batch: PairBatch) -> None:
        architecture = _architecture(reader.model)
        if architecture in self._chosen:
            reader.use(*self._chosen[architecture])
        else:
            with torch.inference_mode(False):
                choice = choose_layout(reader, map_tensors(batch, torch.clone))
            for line in choice.warnings:
                if line not in self._told:
                    rank_zero_warn(f"model.forward_pass: {line}")
                    self._told.add(line)
            self._tell_path(reader, batch.input_ids.device)
            self._chosen[architecture] = reader.layout, reader.reach, reader.refused
        if self.how.compile:
            compile_layers(reader.model)

    def _tell_path(self, reader: ModelReader, device: torch.device) -> None:
        """Say once how packed tokens attend on a device, and why."""
        if device.type == "cpu" or reader.layout not in ("shared", "packed"):
            return
        path, reason = reader.path(device)
        line = f"model.forward_pass: layout {reader.layout}, attention by {path}: {reason}"
        if line not in self._told:
            rank_zero_info(line)
            self._told.add(line)

    def assume(self, model: nn.Module, layout: LayoutName) -> None:
        """Use a layout for a model without checking it, where there are no weights to check it with."""
        self._readers[model] = self._new_reader(model)
        self._readers[model].use(layout)

    def read(self, model: nn.Module, batch: PairBatch) -> PairTokens:
        """Compute the log-probabilities of a batch under a model; see `response_log_probs`."""
        return self.of(model, batch)(batch).policy

    def scores(self, model: nn.Module, batch: PairBatch) -> PairScores:
        """Compute the score of each response under a score model; see `ScoreReader.scores`."""
        return self.scores_of(model, batch).scores(batch)

    def values(self, model: nn.Module, batch: PairBatch) -> RolloutTokens:
        """Compute what a value model expects before each token of responses, whose batch has a side axis of 1."""
        return self.scores_of(model, batch)(batch)[:, 0]

    def layout(self, model: nn.Module) -> LayoutName | None:
        """Return the layout that a model is read in; None before its first batch."""
        return self._readers[model].layout if model in self._readers else None

    def keep_only(self, model: nn.Module) -> None:
        """Release all models but one, so that their memory can be freed."""
        self._readers = {known: reader for known, reader in self._readers.items() if known is model}


def _architecture(model: nn.Module) -> tuple[object, ...]:
    """Return what determines how a model can be read: everything but the values of its weights."""
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    weights = tuple((name, weight.shape, weight.dtype, weight.device) for name, weight in model.named_parameters())
    return modules, weights, original_attention(model), base_of(model).config.to_json_string()


@dataclass(frozen=True)
class LogProbs:
    """Computes the log-probabilities that an objective needs of a batch, and nothing that it does not need.

    Args:
        objective: states what it needs.
        policy: the trained model.
        reference: where the frozen log-probabilities come from; None where none are needed.
        readers: read the models.
    """

    objective: Objective
    policy: nn.Module
    reference: Reference | None
    readers: LogProbReaders = field(default_factory=LogProbReaders)

    def __call__(self, batch: PairBatch, pair_seed: PairSeed, state: Mapping[str, Tensor]) -> PairLogProbs:
        """Compute everything. The policy's log-probabilities carry the gradient if gradients are enabled.

        Raises:
            ValueError: the batch lacks what the objective needs.
        """
        context = self.context(batch, pair_seed, state)
        policy = self.readers.of(self.policy, batch)(batch, self.objective.needs.collision)
        return replace(context, policy=policy.policy, collision=policy.collision)

    def policy_alone(self, batch: PairBatch) -> PairTokens:
        """Compute the policy's log-probabilities."""
        with sparse_embedding_grad(self.policy):
            return self.readers.read(self.policy, batch)

    def context(self, batch: PairBatch, pair_seed: PairSeed, state: Mapping[str, Tensor]) -> PairLogProbs:
        """Compute everything but the policy's log-probabilities, which are left at zero.

        Raises:
            ValueError: the batch lacks what the objective needs.
        """
        needs, mask = self.objective.needs, packed_mask(batch)
        return PairLogProbs(
            policy=torch.zeros(mask.shape, device=mask.device),
            reference=self._reference(batch),
            mask=mask,
            prompted=self._without_grad("prompted", batch.prompted, pair_seed) if needs.prompted else None,
            mismatched=self._without_grad("mismatched", batch.mismatched, pair_seed) if needs.mismatched else None,
            pair_seed=pair_seed,
            margin=batch.margin,
            preference_probability=batch.preference_probability,
            state=state,
        )

    @torch.no_grad()
    def _without_grad(self, name: str, batch: PairBatch | None, pair_seed: PairSeed) -> PairLogProbs:
        """Compute log-probabilities of a batch beside the pairs, without gradient and without an adapter's dropout."""
        if batch is None:
            raise ValueError(f"the batch has no {name} pairs; build the data with {name}=True")
        with evaluating(self.policy):
            policy = self.readers.read(self.policy, batch)
        return PairLogProbs(policy, self._reference(batch), packed_mask(batch), pair_seed=pair_seed)

    def _reference(self, batch: PairBatch) -> PairTokens | None:
        return None if self.reference is None else self.reference.log_probs(batch)

"""Samples responses of policy and reference to fixed prompts, from the first step to the last."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from typing_extensions import override

from lit_align.callbacks.loggers import show_texts
from lit_align.compat.lightning import writes_files
from lit_align.data import PreferenceData, SamplePrompt
from lit_align.interrupts import waiting
from lit_align.models import Reference
from lit_align.models.generation import model_stop_tokens, sample_responses
from lit_align.models.narrow import evaluating
from lit_align.models.sampling import Sampling
from lit_align.modules import LitModule
from lit_align.modules.step_totals import run_data
from lit_align.types import ResponseScore

PERCENTILES = (10, 50, 90)


@dataclass
class SampledResponses:
    """Responses of one model to the fixed prompts, in the order of the prompts."""

    texts: list[str]
    lengths: list[int]
    ended: list[bool]
    scores: list[float] = field(default_factory=list)

    def numbers(self) -> dict[str, float]:
        """Return mean and percentiles of the lengths, shares of ended and of distinct responses, mean score."""
        values = {f"length/p{p}": float(np.percentile(self.lengths, p)) for p in PERCENTILES}
        values["length/mean"] = float(np.mean(self.lengths))
        values["eos_rate"] = float(np.mean(self.ended))
        values["distinct"] = len(set(self.texts)) / len(self.texts)
        if self.scores:
            values["score"] = float(np.mean(self.scores))
        return values


class Samples(Callback):
    """Samples responses before training, after each validation, and at the end.

    Writes ``samples/{policy,reference}/...`` to the loggers (length percentiles, end-of-sequence rate, share of
    distinct texts, mean score if there is one), a table of texts to TensorBoard, Weights & Biases and MLflow, length
    histograms to TensorBoard, and every text to ``samples.jsonl``.

    Args:
        count: number of prompts, taken evenly from the validation pairs (the training pairs if there are none);
            0 switches sampling off.
        show: number of prompts in the loggers' table.
        sampling: how responses are sampled. A processor takes a tenth of a second or more for each of their tokens,
            before the first step and after each validation; devices afford more and longer ones.
        score: scores responses, such as ``TestbedScore``.
        batch_size: prompts per batch of generation.
    """

    def __init__(
        self,
        count: int = 4,
        show: int = 4,
        sampling: Sampling = Sampling(max_new_tokens=32),
        score: ResponseScore | None = None,
        batch_size: int = 64,
    ) -> None:
        if count < 0 or show < 0 or batch_size < 1:
            raise ValueError(
                f"Samples: count {count}, show {show}, batch_size {batch_size}; expected at least 0, 0 and 1"
            )
        self.count = count
        self.show = show
        self.sampling = sampling
        self.score = score
        self.batch_size = batch_size
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self._prompts: list[SamplePrompt] = []
        self._reference: SampledResponses | None = None
        self._step = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample from reference and policy; a resumed run has the policy's numbers from before the first step."""
        if self.count:
            self._prompts = _data_of(trainer).sample_prompts(self.count)
            self.sampling = self._within_positions(pl_module)
            self._sample_reference(trainer, pl_module)
            if not self.before:
                known = self._reference if _starts_as_reference(trainer, pl_module) else None
                self._sample_policy(trainer, pl_module, known)

    def _within_positions(self, module: LightningModule) -> Sampling:
        """Return the sampling with responses that end where the model's positions do, and warn if they are shorter.

        Raises:
            ValueError: a prompt leaves no room for a response.
        """
        config: Any = getattr(module.trained_model, "config", None) if isinstance(module, LitModule) else None
        positions: int | None = getattr(config, "max_position_embeddings", None)
        longest = max((len(prompt.ids) for prompt in self._prompts), default=0)
        if positions is None or longest + self.sampling.max_new_tokens <= positions:
            return self.sampling
        if longest >= positions:
            raise ValueError(
                f"samples: a prompt has {longest} tokens and the model {positions} positions, which leaves no room "
                "for a response; lower data.max_length, or set samples.count to 0"
            )
        rank_zero_warn(
            f"samples end after {positions - longest} tokens and not {self.sampling.max_new_tokens}: the longest of "
            f"their prompts has {longest} tokens, and the model {positions} positions"
        )
        return replace(self.sampling, max_new_tokens=positions - longest)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict["before"]

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._sample_policy(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sample_policy(trainer, pl_module)

    def _sample_reference(self, trainer: Trainer, module: LightningModule) -> None:
        """Sample before training: a precomputed reference has no weights after that."""
        if isinstance(module, LitModule) and module.reference is not None:
            self._reference = self._responses(trainer, module.reference.ready())

    def _sample_policy(self, trainer: Trainer, module: LightningModule, known: SampledResponses | None = None) -> None:
        """Sample from the policy, unless its responses are known: before the first step it is its reference."""
        if not self._prompts or self._step == trainer.global_step:
            return
        if not isinstance(module, LitModule) or not module.trains_policy:
            return
        self._step = trainer.global_step
        with evaluating(module.trained_model):
            responses = known or self._responses(trainer, nullcontext(module.trained_model))
        self.after = responses.numbers()
        self.before = self.before or self.after
        if trainer.is_global_zero and writes_files(trainer):
            self._write(trainer, responses)

    def _responses(self, trainer: Trainer, context: AbstractContextManager[nn.Module]) -> SampledResponses:
        """Sample responses to all prompts on every rank: the texts are the same, and no rank waits for another."""
        data = _data_of(trainer)
        responses = SampledResponses([], [], [])
        with context as module:
            model: Any = module
            stops = data.stop_tokens | model_stop_tokens(model)
            for start in range(0, len(self._prompts), self.batch_size):
                part = self._prompts[start : start + self.batch_size]
                ids = [prompt.ids for prompt in part]
                sampling = replace(self.sampling, seed=self.sampling.seed + start)
                sampled = sample_responses(model, ids, stops, data.pad_token, sampling)
                for prompt, response in zip(ids, sampled, strict=True):
                    responses.texts.append(data.decode_response(prompt, response.content))
                    responses.lengths.append(len(response.ids))
                    responses.ended.append(response.ended)
        if self.score is not None:
            with waiting.for_code_of_others("the scores"):
                responses.scores = self.score([prompt.text for prompt in self._prompts], responses.texts)
        return responses

    def _write(self, trainer: Trainer, responses: SampledResponses) -> None:
        step, models = trainer.global_step, {"policy": responses}
        if self._reference is not None:
            models["reference"] = self._reference
        numbers = {
            f"samples/{name}/{key}": value
            for name, sampled in models.items()
            for key, value in sampled.numbers().items()
        }
        rows = [
            [prompt.text, *(_text_and_score(sampled, row) for sampled in models.values())]
            for row, prompt in enumerate(self._prompts[: self.show])
        ]
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=step)
            show_texts(logger, ["prompt", *models], rows, step)
            if isinstance(logger, TensorBoardLogger):
                lengths = torch.tensor(responses.lengths, dtype=torch.float32)
                logger.experiment.add_histogram("samples/policy/lengths", lengths, step)
        with (Path(trainer.default_root_dir) / "samples.jsonl").open("a", encoding="utf-8") as file:
            for row, prompt in enumerate(self._prompts):
                file.write(json.dumps(_record(step, prompt, row, models), ensure_ascii=False) + "\n")


def _data_of(trainer: Trainer) -> PreferenceData:
    data = run_data(trainer)
    if not isinstance(data, PreferenceData):
        raise ValueError("Samples needs the run's data to be a PreferenceData; set samples.count to 0 without one")
    return data


def _starts_as_reference(trainer: Trainer, module: LightningModule) -> bool:
    """Return whether the policy is still its reference, so that both would give the same responses."""
    reference: Reference | None = module.reference if isinstance(module, LitModule) else None
    return trainer.global_step == 0 and reference is not None and reference.copies_policy


def _text_and_score(responses: SampledResponses, row: int) -> str:
    text = responses.texts[row]
    return f"{text} **[{responses.scores[row]:.2f}]**" if responses.scores else text


def _record(step: int, prompt: SamplePrompt, row: int, models: dict[str, SampledResponses]) -> dict[str, Any]:
    record: dict[str, Any] = {"step": step, "prompt": prompt.text}
    for name, responses in models.items():
        record[name] = responses.texts[row]
        if responses.scores:
            record[f"{name}_score"] = responses.scores[row]
        record[f"{name}_tokens"] = responses.lengths[row]
    return record

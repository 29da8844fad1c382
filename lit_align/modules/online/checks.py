"""Settings of an on-policy run, and what is checked of them before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import final

from lightning.pytorch import Trainer

from lit_align.data import PreferenceData
from lit_align.errors import check_range
from lit_align.models import ForwardPass, Loading
from lit_align.models.loading import read_config
from lit_align.models.sampling import Sampling
from lit_align.models.score_model import Value
from lit_align.models.scorer import RewardModel, Scorer
from lit_align.modules.setup_checks import check_fit, check_frequencies, check_reference, longest_pair, refuse_columns
from lit_align.modules.step_totals import run_data
from lit_align.online.objective import OnlineNeeds


@final
@dataclass(frozen=True)
class OnlineSettings:
    """The numbers of an on-policy run; see ``LitOnline``.

    Raises:
        ValueError: a number is out of its range, or the objective needs more responses to a prompt.
    """

    needs: OnlineNeeds
    sampling: Sampling
    responses: int
    epochs: int
    minibatches: int
    micro_batch: int
    eval_responses: int
    has_opponent: bool = False

    def __post_init__(self) -> None:
        for field in fields(self)[2:-1]:
            check_range(f"model.{field.name}", getattr(self, field.name), 1)
        for name in ("responses", "eval_responses"):
            if getattr(self, name) < self.needs.responses:
                raise ValueError(
                    f"model.{name} is {getattr(self, name)}; the objective compares responses to one prompt and needs "
                    f"{self.needs.responses}"
                )
        if self.sampling.temperature == 0:
            raise ValueError("model.sampling.temperature is 0: a policy that never varies learns nothing from itself")

    @property
    def steps(self) -> int:
        """Optimizer steps per rollout."""
        return self.epochs * self.minibatches


def check_arguments(
    settings: OnlineSettings, value: Value, gradient_clip: float | None, forward_pass: ForwardPass
) -> None:
    """Raise if an argument of ``LitOnline`` is out of its range, or has no effect on an on-policy run.

    Raises:
        ValueError: names the argument.
    """
    if gradient_clip is not None and not gradient_clip > 0:
        raise ValueError(f"model.gradient_clip is {gradient_clip}; expected a number above 0, or null")
    if not settings.needs.values and value != Value():
        raise ValueError(f"model.value is {value}, but the objective needs no value model: leave it out, or take GAE")
    if forward_pass.tokens_at_once is not None:
        raise ValueError(
            f"model.forward_pass.tokens_at_once is {forward_pass.tokens_at_once}; an on-policy run reads "
            "model.micro_batch responses at once: set that, and leave this out"
        )
    if forward_pass.compile:
        raise ValueError(
            "model.forward_pass.compile is true; layers are compiled for runs that only read, and an on-policy run "
            "generates with its policy, token by token: leave it out"
        )


def check_run(settings: OnlineSettings, trainer: Trainer, policy: str, loading: Loading, score: Scorer) -> None:
    """Raise if data and models do not fit together.

    Raises:
        FileNotFoundError: a model does not exist.
        ValueError: the data is no ``PreferenceData``, has columns that would be ignored, or does not fit a model.
    """
    data = run_data(trainer)
    if not isinstance(data, PreferenceData):
        raise ValueError("on-policy training needs the run's data to be a PreferenceData: it asks it for prompts")
    for name, split in data.splits.items():
        weight = {"weight"} if bool((split.values.weight != 1).any()) else set()
        refuse_columns(name, split.honoured | weight, "an on-policy run, which takes prompts alone,")
    prompts = max((int(split.store.part_lengths[:, (0, 3)].max()) for split in data.splits.values()), default=0)
    sampled = prompts + settings.sampling.max_new_tokens
    longest, what = data.longest, longest_pair(data)
    if sampled > longest:
        tokens = f" of {prompts} tokens with model.sampling.max_new_tokens {settings.sampling.max_new_tokens}"
        longest, what = sampled, longest_pair(data, prompts_alone=True) + tokens
    check_fit(data, policy, loading.revision, longest, what)
    _check_score(settings, score)
    if isinstance(score, RewardModel):
        check_reference(score.path, policy, (score.loading.revision, loading.revision), scores=True)
        check_frequencies(longest, score.path, read_config(score.path, score.loading.revision).get_text_config())


def _check_score(settings: OnlineSettings, score: Scorer) -> None:
    """Raise if a score that compares has nothing to compare."""
    if not score.compares:
        return
    if settings.needs.greedy:
        raise ValueError("model.score only compares, and GreedyBaseline needs the score of a single response")
    for key in () if settings.has_opponent else ("responses", "eval_responses"):
        if getattr(settings, key) < 2:
            raise ValueError(f"model.{key} is {getattr(settings, key)}; model.score compares responses: expected 2")

"""Responses that are compared with an opponent's, instead of with each other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_align.data import PreferenceData
from lit_align.evaluation.judge_score import JudgeScore
from lit_align.extensions import trust
from lit_align.models import SecondModel
from lit_align.models.generation import GeneratedResponse, GenerationRequest, Generator
from lit_align.models.sampling import Sampling
from lit_align.models.scorer import FunctionScore
from lit_align.modules import LitOnline
from lit_align.modules.online.rollout import RolloutBatch
from lit_align.objectives import dpo, simpo
from lit_align.online import EveryPair, GreedyBaseline, LeaveOneOut
from lit_align.online.presets import kl_rlhf, pm_rlhf
from tests.modules.online.test_module import POLICY, fit
from tests.modules.online.test_pairs import lit, longer
from tests.modules.test_preference import trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|across ranks is zero|was called before)")
OTHER = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
RLOO = kl_rlhf(advantage=LeaveOneOut())


class Other(SecondModel):
    """A reference whose responses are told from the policy's by their length."""

    def ready(self) -> Any:
        return nullcontext(OTHER)


class TwoVoices(Generator):
    """Three tokens from the policy and five from the reference."""

    def __call__(
        self, model: Any, requests: Sequence[GenerationRequest], stops: Any, pad: int, sampling: Sampling
    ) -> list[GeneratedResponse]:
        ids = [7] * 5 if model is OTHER else [8] * 3
        return [GeneratedResponse([*ids[1:], 2], True) for _ in requests]


def lengths(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [0.5 * len(response) for response in responses]


def test_each_response_meets_one_of_the_reference(rows: Path, tmp_path: Path) -> None:
    """One of each is enough; the metrics of samples are the policy's, those of pairs are of both."""
    module = lit(
        dpo(), generator=TwoVoices(), reference=Other(), opponent=1.0, responses=1, score=FunctionScore(lengths)
    )
    (responses,) = fit(rows, tmp_path, module, log_every_n_steps=1)
    assert responses.rollout.mask.sum(-1).tolist() == [3] * 4
    reported = module.trainer.callback_metrics
    assert float(reported["train/length"]) == 3.0
    assert float(reported["train/paired"]) == 1.0
    assert (float(reported["train/lengths/chosen"]), float(reported["train/lengths/rejected"])) == (5.0, 3.0)


@pytest.fixture(scope="module")
def data(rows: Path) -> PreferenceData:
    data = PreferenceData(train=str(rows), tokenizer=POLICY, batch_size=2)
    data.setup("fit")
    return data


def sampled(data: PreferenceData, folder: Path, objective: Any, **settings: Any) -> tuple[LitOnline, RolloutBatch]:
    how = {"generator": TwoVoices(), "reference": Other(), "opponent": 1.0, "responses": 2, **settings}
    module = lit(objective, **how)
    module.configure_model()
    module.trainer = trainer(folder)
    module.trainer.datamodule = data  # type: ignore[attr-defined]
    return module, module.sample_rollout(next(iter(data.train_dataloader())), "train", how["responses"], 0)


def test_rlhf_learns_from_the_probability_to_win(data: PreferenceData, tmp_path: Path) -> None:
    """Of scores it is σ of their gap, and of a judge what it says."""
    _, scored = sampled(data, tmp_path, RLOO, score=FunctionScore(lengths))
    assert scored.opponent is not None
    assert not scored.is_rated
    own = torch.tensor(lengths([], scored.texts.responses))
    torch.testing.assert_close(scored.rollout.score, torch.sigmoid(own - scored.opponent.score))
    trust([__name__, longer.__module__])
    _, judged = sampled(data, tmp_path, RLOO, score=JudgeScore(f"compares:{longer.__module__}.longer"))
    assert judged.rollout.score.tolist() == [0.25] * 4


def test_the_opponent_has_random_numbers_of_its_own(data: PreferenceData, tmp_path: Path) -> None:
    """Against itself, a policy would otherwise meet its own responses."""
    settings: dict[str, Any] = {"reference": None, "opponent": 0.0, "generator": lit(dpo()).generator}
    _, responses = sampled(data, tmp_path, pm_rlhf(advantage=LeaveOneOut()), **settings)
    assert responses.opponent is not None
    own, other = responses.batch, responses.opponent.batch
    assert own.input_ids.shape != other.input_ids.shape or not torch.equal(own.input_ids, other.input_ids)


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (dpo(), {"opponent": 1.5}, r"model\.opponent is 1\.5; expected the reference's share in it: 0 .* to 1"),
        (simpo(), {"opponent": 1.0}, r"model\.opponent is 1\.0, but the objective has no reference"),
        (dpo(), {"opponent": 1.0, "pairing": EveryPair()}, r"model\.pairing is EveryPair\(\), and model\.opponent"),
        (
            kl_rlhf(advantage=GreedyBaseline()),
            {"opponent": 1.0},
            r"model\.opponent: scores are of two responses, and GreedyBaseline",
        ),
    ],
)
def test_opponents_that_cannot_be(objective: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lit(objective, **settings)

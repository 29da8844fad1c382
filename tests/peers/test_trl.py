"""Losses and gradients equal those of TRL's trainers, or differ from them as documented."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="the extra `peers` is not installed")

import datasets  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from lit_align.objectives import averaged_dpo, dpo  # noqa: E402
from lit_align.types import PairBatch  # noqa: E402

from . import ours, theirs  # noqa: E402
from .cases import BETA, Case, cases  # noqa: E402
from .comparison import Compared, compared  # noqa: E402
from .setting import Setting, written  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
LOSS_WITHIN = 1e-5
GRADIENT_WITHIN = 1e-4
CASES = {f"{case.trainer}: {case.name}": case for case in cases()}
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "parity.md"


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return written(tmp_path_factory.mktemp("peers"))


@pytest.fixture(scope="module")
def batch(setting: Setting) -> PairBatch:
    return ours.batch_of(setting)


@pytest.fixture(scope="module")
def results(setting: Setting, batch: PairBatch) -> Callable[[str], Compared]:
    """Measure each case once, and return it by name."""
    return cache(lambda name: compared(CASES[name], setting, batch))


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_theirs(name: str, results: Callable[[str], Compared]) -> None:
    found = results(name).apart
    assert found.loss < LOSS_WITHIN
    assert found.norm < GRADIENT_WITHIN
    assert found.gradient < GRADIENT_WITHIN


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.note], ids=lambda case: case.name)
def test_a_difference_on_purpose_is_one(case: Case, setting: Setting, batch: PairBatch) -> None:
    """Without the conversion the two sides differ."""
    found = compared(replace(case, total=ours.mean), setting, batch).apart
    assert found.loss > 100 * LOSS_WITHIN


def test_what_is_not_the_same_is_told_apart(setting: Setting, batch: PairBatch) -> None:
    for other in (dpo(1.01 * BETA), averaged_dpo(BETA)):
        found = compared(replace(CASES["DPO: sigmoid"], objective=other), setting, batch).apart
        assert found.loss > LOSS_WITHIN
        assert found.gradient > GRADIENT_WITHIN


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("DPO: aot", "DPO: sigmoid"),
        ("DPO: aot_unpaired", "DPO: sigmoid"),
        ("DPO: sigmoid, use_weighting", "DPO: sigmoid"),
        ("DPO: sigmoid, ld_alpha", "DPO: sigmoid"),
        ("KTO: kto", "KTO: apo_zero_unpaired"),  # without the estimate of the divergence
        ("CPO: simpo, alpha", "CPO: simpo"),
    ],
)
def test_what_makes_a_case_another_is_at_work(name: str, without: str, results: Callable[[str], Compared]) -> None:
    """Ranks are not the identity, weights are not all 1, the divergence is not clamped at 0."""
    assert abs(results(name).ours.loss - results(without).ours.loss) > 1e-4


def test_both_read_the_same_tokens(setting: Setting, batch: PairBatch) -> None:
    given = theirs.batch_of(theirs.trainer("DPO", setting))
    for name, own in (
        ("input_ids", batch.input_ids),
        ("attention_mask", batch.attention_mask),
        ("completion_mask", batch.mask),
    ):
        assert torch.equal(torch.stack(given[name].chunk(2), 1), own.long()), name


def test_the_policy_is_not_its_reference(setting: Setting, batch: PairBatch) -> None:
    """Margins of both signs, of more than rounding."""
    logps = ours.Ours(dpo(), setting, batch).logps
    margin = dpo().margin(logps).detach()
    assert float(margin.abs().min()) > 0.05
    assert float(margin.min()) < 0 < float(margin.max())


def test_every_loss_type_of_theirs_has_a_case() -> None:
    used = {kind for case in CASES.values() if case.trainer == "DPO" for kind in case.options.get("loss_type", [])}
    assert used == theirs.loss_types()


def test_no_case_has_the_name_of_another() -> None:
    assert len(CASES) == len(cases())


def test_the_results_have_every_case() -> None:
    text = RESULTS.read_text("utf-8")
    assert all(f"| {case.trainer} | {case.name} |" in text for case in CASES.values())

"""Reports of a run's precision."""

from __future__ import annotations

import warnings

import pytest

from lit_align.models import Loading, LoRA
from lit_align.modules.reports import check_precision


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true"])
def test_precisions_that_are_not_exact_enough_are_refused(precision: str) -> None:
    with pytest.raises(ValueError, match=f"trainer.precision {precision} is not exact enough"):
        check_precision(precision, Loading(), None)


def test_steps_that_are_rounded_away_are_spoken_of() -> None:
    with pytest.warns(UserWarning, match="model.loading.dtype is bfloat16, and all weights train"):
        check_precision("32-true", Loading(dtype="bfloat16"), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_precision("32-true", Loading(dtype="bfloat16"), LoRA(rank=2))
        check_precision("bf16-mixed", Loading(), None)

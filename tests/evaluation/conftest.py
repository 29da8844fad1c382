from __future__ import annotations

import pytest

from lit_align.evaluation.models import LoadedModel, load_hugging_face
from lit_align.evaluation.prompts import EvaluationPrompt, read_prompts
from lit_align.models.loading import Loading


@pytest.fixture(scope="session")
def testbed_model() -> LoadedModel:
    return load_hugging_face("testbed:policy", "policy", Loading(dtype="float64"), "cpu")


@pytest.fixture(scope="session")
def testbed_prompts() -> list[EvaluationPrompt]:
    return read_prompts("testbed:test", limit=6)

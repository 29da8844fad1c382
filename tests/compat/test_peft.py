"""Models with adapters are known by their classes, which are PEFT's own once it is imported."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from torch import nn

from lit_align.compat import peft
from lit_align.models import LoRA
from tests.conftest import tiny_llama


@pytest.mark.parametrize("name", ["PeftModel", "BaseTunerLayer"])
def test_the_classes_exist_where_they_are_looked_for(name: str) -> None:
    stand_in = getattr(peft, name)
    assert hasattr(importlib.import_module(stand_in.module), name), f"look at lit_align.compat.peft.{name}"


def test_a_model_with_an_adapter_is_known() -> None:
    model = tiny_llama()
    assert not isinstance(model, peft.PeftModel)
    adapted = LoRA(rank=2).wrap(model)
    assert isinstance(adapted, peft.PeftModel)
    assert any(isinstance(layer, peft.BaseTunerLayer) for layer in adapted.modules())
    assert not isinstance(nn.Linear(2, 2), peft.BaseTunerLayer | peft.PeftModel)


@pytest.mark.long
def test_a_run_without_an_adapter_imports_no_peft() -> None:
    code = "import sys, lit_align.cli.run; sys.exit('peft' in sys.modules or 'pyarrow.compute' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

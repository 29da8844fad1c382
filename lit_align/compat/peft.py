"""Classes of PEFT by which models with adapters are known, without importing PEFT, which takes a second."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    __all__ = ["BaseTunerLayer", "PeftModel"]
else:

    class _Unimported(type):
        """A class of PEFT in ``isinstance``, of which nothing is an instance as long as its module is not imported."""

        module: str

        def __instancecheck__(cls, instance: Any) -> bool:
            module = sys.modules.get(cls.module)
            return module is not None and isinstance(instance, getattr(module, cls.__name__))

    class PeftModel(metaclass=_Unimported):
        """Stands for ``peft.PeftModel`` in ``isinstance`` and in annotations; it cannot be called."""

        module = "peft.peft_model"

    class BaseTunerLayer(metaclass=_Unimported):
        """Stands for ``peft.tuners.tuners_utils.BaseTunerLayer``."""

        module = "peft.tuners.tuners_utils"

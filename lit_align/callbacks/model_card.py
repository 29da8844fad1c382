"""The model card of an exported model: objective, model, data, metrics and papers to cite."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any

from lightning.pytorch import Trainer

from lit_align import __version__
from lit_align.data import PreferenceData
from lit_align.models import Reference
from lit_align.modules import LitModule
from lit_align.modules.step_totals import run_data
from lit_align.objectives import Paper, papers_of


def describe(part: Any) -> str:
    """Return a part as an expression, with its numbers and those of its own parts that are not neutral.

    >>> from lit_align.objectives import averaged_dpo
    >>> describe(averaged_dpo(beta=5.0))
    'PreferenceObjective(contrast=Logistic(beta=5.0, label_smoothing=0.0), averaging=Mean())'
    >>> from lit_align.objectives import orpo
    >>> describe(orpo().terms[1:])
    "[Term(name='likelihood', objective=SFT(), weight=1.0)]"
    """
    if isinstance(part, tuple):
        return f"[{', '.join(describe(each) for each in part)}]"
    if not is_dataclass(part):
        return repr(part)
    values = {f.name: getattr(part, f.name) for f in fields(part)}
    has_neutral = {f.name for f in fields(part) if is_dataclass(f.default) or f.default == ()}
    neutral = {f.name for f in fields(part) if f.name in has_neutral and values[f.name] == f.default}
    inner = ", ".join(f"{name}={describe(value)}" for name, value in values.items() if name not in neutral)
    return f"{type(part).__name__}({inner})"


def model_card(module: LitModule, trainer: Trainer, note: str = "") -> str:
    """Return the card in Markdown, with the front matter that model hubs read.

    Args:
        module: of the run.
        trainer: of the run.
        note: one more line on how to use the exported model; empty for none.
    """
    cited = papers_of_run(module.objective, module.reference)
    metrics = _rounded(trainer, "val/")
    entries = "\n\n".join(paper.bibtex() for paper in cited)
    bibtex = f"\n```bibtex\n{entries}\n```\n" if cited else ""
    sources = "\n".join(f"- {paper.citation()}" for paper in cited) or "- none of its parts comes from a paper"
    data = run_data(trainer)
    trained_on = data.splits["train"].source if isinstance(data, PreferenceData) else "not known"
    return f"""---
library_name: transformers
tags: [lit_align, preference-alignment]
---

# {module.policy_name}, trained on preferences

- model before training: `{module.policy_name}`{_score_lines(module)}{note and f"{chr(10)}- {note}"}
- objective: `{describe(module.objective)}`
- data: `{trained_on}`
- optimizer steps: {trainer.global_step}
- made with lit_align {__version__}; `config.yaml` of the run has all other settings

## Validation at the end

```json
{json.dumps(metrics, indent=2)}
```
{_evaluation_section(trainer)}
## Sources

{sources}
{bibtex}"""


def _rounded(trainer: Trainer, prefix: str) -> dict[str, float]:
    known = sorted(trainer.callback_metrics.items())
    return {name: round(float(value), 6) for name, value in known if name.startswith(prefix)}


def _evaluation_section(trainer: Trainer) -> str:
    """Return what the run's own evaluation gave at the end; empty without one."""
    numbers = _rounded(trainer, "eval/")
    if not numbers:
        return ""
    return f"""
## Evaluation at the end

Settings: `evaluation` in `config.yaml`. `.../low` and `.../high` are the ends of 95 % intervals.

```json
{json.dumps(numbers, indent=2)}
```
"""


def _score_lines(module: LitModule) -> str:
    """Return what scored the responses of an on-policy run, and what users of the model need to know."""
    scored_by = f"\n- scored by: `{describe(module.score)}`" if module.score is not None else ""
    return f"{scored_by}\n- {module.export_note}" if module.export_note else scored_by


TRUST_REGION = Paper("Gorbatovski et al.", "Learn Your Reference Model for Real Good Alignment", "2404.09656")


def papers_of_run(objective: object, reference: Reference | None) -> tuple[Paper, ...]:
    """Return the papers to cite, those of the objective first.

    >>> from lit_align.models import MovingReference
    >>> from lit_align.objectives import dpo
    >>> [paper.arxiv for paper in papers_of_run(dpo(), MovingReference())]
    ['2305.18290', '2404.09656']
    """
    moved = (TRUST_REGION,) if reference is not None and reference.moves else ()
    return (*papers_of(objective), *moved)

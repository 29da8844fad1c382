"""Error messages of jsonargparse 4.53, shortened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_align.cli import parsing
from lit_align.cli.error_messages import out_of_memory, shorten, what_helps
from lit_align.models import LoRA
from lit_align.objectives.base import Objective

NESTED = """Parser key "model.objective":
  Problem with given class_path 'lit_align.objectives.PreferenceObjective':
    Parser key "contrast":
      Problem with given class_path 'lit_align.objectives.Robust':
        """
UNION = """Does not validate against any of the Union subtypes
Subtypes: [<class 'int'>, <class 'NoneType'>]
Errors:
  - %s
  - Expected a <class 'NoneType'>
Given value type: <class 'str'>
Given value: %s"""
COMPLAINTS = {
    "a type": (
        NESTED + "Parser key \"beta\":\n          Expected a <class 'float'>. Got value: many",
        "model.objective.contrast.beta is 'many'; expected a number",
    ),
    "an option": (
        NESTED + "Option 'bet' is not accepted; did you mean beta?",
        "model.objective.contrast.bet: Robust has no such option; did you mean beta?",
    ),
    "a rate by its other name": (
        "Parser key \"model.optimizer\":\n  Option 'learning_rate' is not accepted",
        "model.optimizer.learning_rate: model.optimizer has no such option; did you mean lr?",
    ),
    "an argument": (
        NESTED + "unrecognized arguments: --bet.x=7",
        "model.objective.contrast.bet.x: Robust has no such option",
    ),
    "missing": (
        NESTED + "the following arguments are required: beta, smoothing",
        "model.objective.contrast.beta, model.objective.contrast.smoothing: missing; Robust needs it",
    ),
    "one of several types": (UNION % ("Expected a <class 'int'>", "many"), "'many'; expected a whole number"),
    "what a part says": (
        UNION % ("LoRA: rank is -3; expected 1 or more", "{rank: -3}"),
        "LoRA: rank is -3; expected 1 or more",
    ),
    "an import": (
        "Parser key \"trainer.callbacks\":\n  Importing 'os.system' is not allowed, denied by the 'os' entry. Add it.",
        "trainer.callbacks: importing 'os.system' is not allowed; expected a class of lit_align, lightning.pytorch or "
        "torch.optim, or of code that the command line names by --extend",
    ),
    "a name": (
        'Parser key "model.schedule":\n\n  - Expected a path but Cosin either not accessible or invalid\n'
        "  - Expected a dot import path string: Cosin",
        "model.schedule is 'Cosin'; expected the name of a class that is known",
    ),
    "a secret": (
        "Parser key \"model.lora\":\n  Expected a <class 'int'>. Got value: hf_abcdefghijklmnopqrst",
        "model.lora is 'hf_…'; expected a whole number",
    ),
    "something else": (
        "unrecognized arguments: --trainer.max_stepz 3",
        "unrecognized arguments: --trainer.max_stepz 3",
    ),
    "some other lines": ("one\n  two\n    three", "one\n  two\n    three"),
}


@pytest.mark.parametrize("kind", COMPLAINTS)
def test_in_short(kind: str) -> None:
    complaint, told = COMPLAINTS[kind]
    assert shorten(complaint) == told


def test_a_type_of_a_union_keeps_its_key() -> None:
    text = UNION % ("Expected a <class 'int'>", "many")
    nested = 'Parser key "data.batch_size":\n' + "\n".join(f"  {line}" for line in text.splitlines())
    assert shorten(nested) == "data.batch_size is 'many'; expected a whole number"


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Return the error message of a parser for a command line."""
    parsing.prepare_parsing([])
    parser = parsing.Parser(prog="lit_align fit")
    parser.add_argument("--objective", type=Objective)
    parser.add_argument("--lora", type=LoRA | None, sub_configs=True)
    parser.add_argument("--name", type=str | list[str] | None, sub_configs=True)

    def said(*words: str) -> str:
        with pytest.raises(SystemExit):
            parser.parse_args(list(words))
        return capsys.readouterr().err.partition("error: ")[2].strip()

    said.parser = parser  # type: ignore[attr-defined]
    return said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--objective", "dpo", "--objective.beta", "many"), "objective.beta is 'many'; expected a number"),
        (
            ("--objective", "dpo", "--objective.betta", "1"),
            "objective.betta: dpo has no such option; did you mean beta?",
        ),
        (("--objective", "PreferenceObjective"), "objective.contrast: missing; PreferenceObjective needs it"),
        (("--lora", "LoRA", "--lora.rank", "many"), "lora.rank is 'many'; expected a whole number"),
        (("--lora", "{rnk: 3}"), "lora.rnk: LoRA has no such option; did you mean rank?"),
        (("--lora", "{targets: 3}"), "lora.targets is '3'; expected text or a list"),
        (("--lora", "{rank: {}}"), "lora.rank is '{}'; expected a whole number"),
    ],
)
def test_the_installed_parser_words_it_so(refused: Refused, words: tuple[str, ...], told: str) -> None:
    """Fails when a version of jsonargparse words its errors differently, which would be printed unshortened."""
    assert refused(*words) == told


def test_text_that_is_the_name_of_a_file_stays_text(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('["another"]')
    parser: parsing.Parser = refused.parser  # type: ignore[attr-defined]
    assert parser.parse_args(["--name", str(path)]).name == str(path)
    path.write_text("{rank: 3}")
    assert parser.parse_args(["--lora", str(path)]).lora.rank == 3


def test_out_of_memory_says_where_and_what_helps() -> None:
    def backward() -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB of which 1.2 GiB "
            "is free. If reserved but unallocated memory is large try setting X"
        )

    def training_step() -> None:
        backward()

    with pytest.raises(torch.OutOfMemoryError) as caught:
        training_step()
    assert out_of_memory(caught.value) == (
        "out of memory in the backward pass: Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB of "
        "which 1.2 GiB is free."
    )
    others = ["model.loading.gradient_checkpointing", "model.lora"]
    for task, first in (("preference", "model.forward_pass.tokens_at_once"), ("online", "model.micro_batch")):
        _, *knobs = what_helps(task, {}).splitlines()
        assert [line.split(":")[0].strip() for line in knobs] == [first, *others]


def test_what_saves_no_memory_is_not_advised() -> None:
    """4096 tokens at once are more than a CPU reads by default."""
    more, fewer = "model.forward_pass.tokens_at_once: 4096", "model.loading.gradient_checkpointing: true"
    words = what_helps("preference", {"": 2 * 2**30, more: 3 * 2**30, fewer: 2**30})
    assert more not in words
    assert f"{fewer}  1.0 GiB" in words
    assert what_helps("preference", {"": 1, more: 2}) == what_helps("preference", {})

"""Objectives as they are named on the command line and in YAML."""

from __future__ import annotations

import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lit_align.objectives import (
    SFT,
    LengthGap,
    LengthPower,
    Logistic,
    Mean,
    Objective,
    OnPolicy,
    PreferenceObjective,
    Reweighted,
    SelfRefine,
    SumOf,
    TargetMargin,
    Term,
    WeightedSum,
    apo_zero,
    kto,
    mpo,
    odpo,
    papers_of,
    presets,
    sr_dpo,
)


def parser() -> ArgumentParser:
    built = ArgumentParser(exit_on_error=False)
    built.add_argument("--config", action="config")
    built.add_argument("--objective", type=Objective)
    return built


def parse(*arguments: str) -> Objective:
    return parser().instantiate(parser().parse_args(list(arguments))).objective


def test_parts_by_short_name_on_the_command_line() -> None:
    found = parse(
        *("--objective", "PreferenceObjective", "--objective.averaging", "Mean"),
        *("--objective.contrast", "Logistic", "--objective.contrast.beta", "2.0"),
    )
    assert found == PreferenceObjective(Logistic(beta=2.0), averaging=Mean())


def test_parts_in_yaml(tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("""
        objective:
          class_path: PreferenceObjective
          init_args:
            averaging: Mean
            contrast: {class_path: Logistic, init_args: {beta: 2.0}}
            refinement: {class_path: SelfRefine, init_args: {strength: 0.3}}
        """)
    expected = PreferenceObjective(Logistic(beta=2.0), averaging=Mean(), refinement=SelfRefine(0.3))
    assert parse("--config", str(config)) == expected


SUM = """
objective:
  class_path: WeightedSum
  init_args:
    terms:
      - name: preference
        weight: 0.8
        objective:
          class_path: PreferenceObjective
          init_args:
            contrast: Logistic
            refinement:
              class_path: SumOf
              init_args:
                parts:
                  - {class_path: TargetMargin, init_args: {target: 0.5}}
                  - {class_path: LengthGap, init_args: {strength: 0.1}}
      - {name: likelihood, objective: SFT}
      - {name: each, objective: {class_path: lit_align.objectives.apo_zero, init_args: {beta: 0.2}}, weight: 2}
"""


def test_a_list_of_terms_and_a_list_of_refinements_in_yaml(tmp_path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(SUM)
    refined = PreferenceObjective(Logistic(), refinement=SumOf((TargetMargin(0.5), LengthGap(0.1))))
    expected = WeightedSum(
        (Term("preference", refined, 0.8), Term("likelihood", SFT()), Term("each", apo_zero(0.2), 2.0))
    )
    assert parse("--config", str(first)) == expected
    saved = parser().dump(parser().parse_args(["--config", str(first)]))
    second.write_text(saved)
    assert parse("--config", str(second)) == expected
    assert parser().dump(parser().parse_args(["--config", str(second)])) == saved


def test_the_weights_of_a_published_sum_on_the_command_line() -> None:
    assert parse("--objective", "lit_align.objectives.mpo", "--objective.quality", "0.5") == mpo(quality=0.5)


@pytest.mark.parametrize("name", presets.__all__)
def test_a_preset_by_its_path_and_again_from_what_was_saved(name: str, tmp_path) -> None:
    parsed = parser().parse_args(["--objective", f"lit_align.objectives.{name}"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(parser().dump(parsed))
    for found in (parser().instantiate(parsed).objective, parse("--config", str(saved))):
        assert found == getattr(presets, name)()
        assert papers_of(found) == papers_of(getattr(presets, name)())


def test_required_columns_on_the_command_line() -> None:
    found = parse(
        "--objective",
        "PreferenceObjective",
        "--objective.contrast",
        "Logistic",
        "--objective.requires",
        "[margin]",
    )
    assert found == odpo()


def test_an_anchor_and_a_weighting_in_yaml(tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("""
        objective:
          class_path: Reweighted
          init_args:
            weighting: OnPolicy
            objective:
              class_path: ResponseObjective
              init_args: {loss: {class_path: AnchoredApart, init_args: {beta: 0.1}}, anchor: MismatchedMean}
        """)
    assert parse("--config", str(config)) == Reweighted(kto(), OnPolicy())


def test_the_knobs_of_a_preset_are_those_of_its_paper() -> None:
    found = parse("--objective", "lit_align.objectives.sr_dpo", "--objective.strength", "0.3")
    assert found == sr_dpo(strength=0.3)


def test_a_likelihood_with_another_averaging() -> None:
    found = parse("--objective", "SFT", "--objective.averaging", "LengthPower", "--objective.averaging.power", "0.5")
    assert found == SFT(LengthPower(0.5))


def test_a_saved_run_describes_itself() -> None:
    arguments = ["--objective", "PreferenceObjective", "--objective.contrast", "Hinge"]
    saved = yaml.safe_load(parser().dump(parser().parse_args(arguments)))["objective"]["init_args"]
    assert saved["contrast"] == {"class_path": "lit_align.objectives.Hinge", "init_args": {"beta": 0.1}}
    assert saved.pop("requires") == []
    assert {name: part["class_path"].rsplit(".")[-1] for name, part in saved.items()} == {
        "contrast": "Hinge",
        "averaging": "Sum",
        "refinement": "NoRefinement",
        "regularizer": "KL",
        "divergence": "ReverseKL",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "lit_align.objectives.sr_dpo", "--objective.strenght", "0.3"], "strenght"),
        (["--objective", "PreferenceObjective", "--objective.contrast", "Logisitc"], "contrast"),
        (["--objective", "PreferenceObjective"], "contrast"),
        (["--objective", "WeightedSum", "--objective.terms", "[{name: a, objective: SFT, wieght: 1}]"], "wieght"),
    ],
)
def test_a_misspelt_or_missing_knob_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parse(*arguments)

"""A run resumes with the settings of its checkpoint, or reports which ones changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_align import testbed
from lit_align.callbacks import ResumeCheck
from lit_align.callbacks.checkpointing.resume_check import REQUIRED_PARTS


def settings(beta: float = 0.1, workers: int = 0, steps: int = 10) -> dict[str, object]:
    return {
        "model": {"objective": {"class_path": "dpo", "init_args": {"beta": beta}}},
        "data": {"train": "pairs.jsonl", "num_workers": workers},
        "trainer": {"max_steps": steps},
    }


def saved(run: ResumeCheck) -> dict[str, object]:
    optimizer = {"state": {0: {"step": 1}}, "param_groups": [{"betas": (0.9, 0.99)}]}
    parts = {**dict.fromkeys(REQUIRED_PARTS, {}), "optimizer_states": [optimizer], "global_step": 1}
    return {**parts, "callbacks": {run.state_key: run.state_dict()}}


def test_the_same_settings_pass() -> None:
    ResumeCheck(settings()).compare(saved(ResumeCheck(settings())))


def test_what_does_not_enter_the_result_may_change() -> None:
    ResumeCheck(settings(workers=4)).compare(saved(ResumeCheck(settings())))


@pytest.mark.fault("D02")
def test_a_change_is_named_with_both_values() -> None:
    with pytest.raises(ValueError, match=r"model\.objective\.init_args\.beta: was 0\.1, is 0\.5"):
        ResumeCheck(settings(beta=0.5)).compare(saved(ResumeCheck(settings(beta=0.1))))


def test_settings_under_the_former_name_are_compared() -> None:
    checkpoint = {**saved(ResumeCheck(settings())), "callbacks": {"SameRun": ResumeCheck(settings()).state_dict()}}
    ResumeCheck(settings()).compare(checkpoint)
    with pytest.raises(ValueError, match=r"was 0\.1, is 0\.5"):
        ResumeCheck(settings(beta=0.5)).compare(checkpoint)


def test_a_setting_that_an_earlier_checkpoint_lacks_is_no_change_unless_it_is_set() -> None:
    now: dict[str, Any] = settings()
    now["data"]["score_end"] = "turn"
    ResumeCheck(now).compare(saved(ResumeCheck(settings())))
    now["data"]["score_end"] = "all"
    with pytest.raises(ValueError, match=r"data\.score_end: was 'turn', is 'all'"):
        ResumeCheck(now).compare(saved(ResumeCheck(settings())))


def test_a_change_can_be_wanted() -> None:
    with pytest.warns(UserWarning, match=r"beta: was 0\.1, is 0\.5"):
        ResumeCheck(settings(beta=0.5), "warn").compare(saved(ResumeCheck(settings(beta=0.1))))


def test_an_evaluation_needs_the_weights_to_belong_to_the_policy_alone() -> None:
    ResumeCheck(settings(beta=0.5), resumes=False).compare(saved(ResumeCheck(settings(beta=0.1))))
    other = settings() | {"model": {"policy": "another"}}
    with pytest.raises(ValueError, match=r"model\.policy: was None, is 'another'"):
        ResumeCheck(other, resumes=False).compare(saved(ResumeCheck(settings())))


@pytest.mark.fault("D02c", "D02e")
def test_other_files_under_the_same_name_are_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(testbed.path("policy"), folder)
    named = settings() | {"model": {"policy": str(folder)}}
    before = saved(ResumeCheck(named))
    ResumeCheck(named).compare(before)
    (folder / "README.md").write_text("says nothing about the weights")
    ResumeCheck(named).compare(before)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.125}))
    with pytest.raises(ValueError, match=r"model\.policy \(files\): was '[0-9a-f]{64}', is '[0-9a-f]{64}'"):
        ResumeCheck(named).compare(before)


@pytest.mark.parametrize("part", ["optimizer_states", "lr_schedulers", "loops"])
@pytest.mark.fault("D05", "D05c")
def test_a_run_goes_on_from_all_parts_or_not_at_all(part: str) -> None:
    checkpoint = saved(ResumeCheck(settings()))
    del checkpoint[part]
    with pytest.raises(ValueError, match=f"the checkpoint has no {part}: a run cannot go on from it"):
        ResumeCheck(settings()).compare(checkpoint)
    ResumeCheck(settings(), resumes=False).compare(checkpoint)


@pytest.mark.parametrize("states", [[], [{}], [{"state": {}, "param_groups": [{"betas": (0.9, 0.99)}]}]], ids=str)
def test_an_empty_optimizer_state_is_none(states: list[dict[str, object]]) -> None:
    checkpoint = saved(ResumeCheck(settings())) | {"optimizer_states": states}
    with pytest.raises(ValueError, match="the checkpoint has an empty optimizer state"):
        ResumeCheck(settings()).compare(checkpoint)
    ResumeCheck(settings(), resumes=False).compare(checkpoint)


def test_another_length_is_said() -> None:
    """A run may be made longer, but that changes its schedule."""
    with pytest.warns(UserWarning, match=r"another length \(trainer\.max_steps: was 10, is 20\): the learning rate"):
        ResumeCheck(settings(steps=20)).compare(saved(ResumeCheck(settings())))


def test_settings_of_the_trainer_are_compared() -> None:
    changed = settings() | {"trainer": {"max_steps": 10, "accumulate_grad_batches": 2, "log_every_n_steps": 5}}
    once = settings() | {"trainer": {"max_steps": 10, "accumulate_grad_batches": 1, "log_every_n_steps": 1}}
    with pytest.raises(ValueError, match=r"settings:\n  trainer\.accumulate_grad_batches: was 1, is 2\nTake"):
        ResumeCheck(changed).compare(saved(ResumeCheck(once)))
    ResumeCheck(changed).compare(saved(ResumeCheck(settings())))  # an older one does not say

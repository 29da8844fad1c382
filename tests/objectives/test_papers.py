from __future__ import annotations

import pickle
import re
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from lit_align.objectives import (
    SFT,
    Logistic,
    Paper,
    PreferenceObjective,
    Term,
    WeightedSum,
    averaged_dpo,
    cdpo,
    cpo_simpo,
    dpo,
    ld_dpo,
    papers,
    papers_of,
    presets,
    simpo,
    sr_ipo,
)
from lit_align.objectives.papers import cite

KNOWN = [value for value in vars(papers).values() if isinstance(value, Paper)]


@pytest.mark.parametrize("paper", KNOWN, ids=lambda paper: paper.key)
def test_a_paper_can_be_found(paper: Paper) -> None:
    if paper.arxiv is None:
        assert paper.link.startswith("https://")
    else:
        assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv)
        assert paper.link == f"https://arxiv.org/abs/{paper.arxiv}"
        assert paper.arxiv.startswith(str(paper.year)[2:])
    assert paper.link.removeprefix("https://arxiv.org/abs/") in paper.citation()
    assert "\n" not in paper.citation()


def test_keys_and_identifiers_are_distinct() -> None:
    assert len({paper.key for paper in KNOWN}) == len({paper.link for paper in KNOWN}) == len(KNOWN)


@pytest.mark.parametrize("paper", KNOWN, ids=lambda paper: paper.key)
def test_bibtex_is_balanced(paper: Paper) -> None:
    entry = paper.bibtex()
    assert entry.startswith(f"@misc{{{paper.key},")
    assert entry.count("{") == entry.count("}")
    assert "et al." not in entry
    assert "None" not in entry


def test_papers_of_a_preset() -> None:
    assert papers_of(dpo()) == (papers.DPO,)
    assert papers_of(averaged_dpo()) == (papers.DPO, papers.AVERAGING)
    assert papers_of(ld_dpo()) == (papers.DPO, papers.LD_DPO)
    assert papers_of(sr_ipo()) == (papers.IPO, papers.SELF_REFINEMENT)
    assert papers.SIMPO in papers_of(simpo())


def test_a_paper_that_two_parts_share_is_named_once() -> None:
    assert papers_of(SFT()) == (papers.AVERAGING,)

    @dataclass(frozen=True)
    class Pair:
        one: Logistic = Logistic()
        other: PreferenceObjective = dpo()

    assert papers_of(Pair()) == (papers.DPO,)


@pytest.mark.parametrize("name", presets.__all__)
def test_a_preset_names_the_papers_of_its_docstring(name: str) -> None:
    preset = getattr(presets, name)
    found = papers_of(preset())
    assert set(re.findall(r"arXiv:(\d{4}\.\d{5})", preset.__doc__)) <= {paper.arxiv for paper in found}
    assert found


def test_what_is_not_on_arxiv_is_named_too() -> None:
    assert papers.CDPO in papers_of(cdpo())
    assert papers.CPO_SIMPO in papers_of(cpo_simpo())


def test_a_citation_is_a_remark() -> None:
    remarked = cite(dpo(), papers.RPO)
    assert remarked == dpo()
    assert hash(remarked) == hash(dpo())
    assert repr(remarked) == repr(dpo())
    assert papers_of(dpo()) == (papers.DPO,)
    assert papers_of(remarked) == (papers.RPO, papers.DPO)
    for kept in (deepcopy(remarked), pickle.loads(pickle.dumps(remarked)), WeightedSum((Term("one", remarked),))):
        assert papers_of(kept) == (papers.RPO, papers.DPO)
    assert papers_of(replace(remarked, contrast=Logistic(2.0))) == (papers.DPO,)


def test_a_part_from_elsewhere_may_name_its_own_paper() -> None:
    own = Paper("Me", "Mine", published=2025, url="https://example.org")

    @dataclass(frozen=True)
    class Wrapper:
        inner: PreferenceObjective
        source: ClassVar[Paper | None] = own

    assert papers_of(Wrapper(dpo())) == (own, papers.DPO)

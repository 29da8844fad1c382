"""The catalogue describes every preset and part as the code defines it."""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import replace
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from lit_align import objectives
from lit_align.objectives import Anchor, Averaging, Contrast, Objective, Pointwise, dpo, presets, sr_dpo
from lit_align.objectives.presets import PRESETS
from tests.laws.cases import leaves

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    loader = SourceFileLoader("catalogue", str(ROOT / "tools" / "catalogue"))
    spec = spec_from_loader("catalogue", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_file_is_what_the_code_says(tool: ModuleType) -> None:
    """`tools/catalogue --markdown` writes it again."""
    assert (ROOT / "docs" / "catalogue.md").read_text("utf-8") == tool.catalogue()


def test_every_public_function_among_the_presets_is_listed() -> None:
    """A preset without its decorator would not be exported."""
    modules = [import_module(f"{presets.__name__}.{found.name}") for found in pkgutil.iter_modules(presets.__path__)]
    own = {
        name
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert own - {"preset"} == set(PRESETS) == set(presets.__all__) <= set(objectives.__all__)


def test_every_preset_says_when() -> None:
    """In a line of its own words, which is no title."""
    lines = [preset.when for preset in PRESETS.values()]
    assert len(set(lines)) == len(lines)
    assert all(len(line.split()) > 2 and not line.endswith(".") for line in lines)


def test_a_row_holds_formula_needs_and_paper(tool: ModuleType) -> None:
    row = tool.preset_row(replace(PRESETS["sr_dpo"], when="when"))
    assert row == (
        "| `sr_dpo(beta=0.1, strength=0.5)` | `-log σ(β m - λ sg[β m_p])`: DPO that asks more of pairs which the "
        "prompted model tells apart | when | reference, prompted pairs | "
        "[Yu et al. 2024](https://arxiv.org/abs/2405.21040) |"
    )


def test_needs_are_read_from_the_objective(tool: ModuleType) -> None:
    assert tool.needs(dpo()) == "reference"
    assert tool.needs(sr_dpo()) == "reference, prompted pairs"
    assert tool.needs(objectives.simpo()) == "nothing"
    assert tool.needs(objectives.odpo()) == "reference, column `margin`"
    assert "mismatched pairs" in tool.needs(objectives.kto())
    assert tool.needs(objectives.kto()).endswith("may be unpaired")


@pytest.mark.parametrize("interface", [Contrast, Averaging, Pointwise, Anchor, Objective])
def test_every_part_is_listed(tool: ModuleType, interface: type) -> None:
    section = tool.part_section(interface.__name__.lower(), "")
    for leaf in leaves(interface):
        if not leaf.__name__.startswith("_"):
            assert f"| `{leaf.__name__}` |" in section, leaf


def test_every_interface_is_an_axis(tool: ModuleType) -> None:
    """Every abstract class that is exported has a section."""
    exported = [getattr(objectives, name) for name in objectives.__all__]
    interfaces = {each.__name__.lower() for each in exported if inspect.isclass(each) and inspect.isabstract(each)}
    assert interfaces == set(tool.AXES)


def test_a_docstring_without_a_formula_is_an_error(tool: ModuleType) -> None:
    with pytest.raises(ValueError, match="does not begin with a formula"):
        tool.first_line(leaves)


def test_no_cell_breaks_its_row(tool: ModuleType) -> None:
    for line in tool.catalogue().splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (4, 6), line

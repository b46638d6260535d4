"""Inputs that coverage-guided fuzzing found worth keeping: each is read, or refused, in the project's own words."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_the_projects_own_errors_comes_out(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert len(inputs) >= 10
    for file in inputs:
        TARGETS[name](file.read_bytes())

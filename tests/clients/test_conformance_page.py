"""docs/mqtt-conformance.md says what the tests show, and they show enough."""

import pytest
from conformance_page import PAGE, count, made


def test_the_page_names_the_tests_that_there_are():
    text, _, wrong = made(PAGE.read_text())
    assert wrong == []
    assert PAGE.read_text() == text, (
        "run python tests/clients/conformance_page.py, it writes the names of the tests into the page"
    )


@pytest.mark.parametrize("version, least", [("v5", 240), ("v311", 135)])
def test_nearly_all_statements_are_covered(version, least):
    _, listed, _ = made(PAGE.read_text())
    covered, applicable, total = count(listed[version])
    assert total >= least, "the standard has more statements"
    assert covered >= 0.95 * applicable, f"{covered} of {applicable} are covered"

"""What lint finds in 40 documents, against the stored answers of the npm package caniemail."""

import json

from openviper.core.email.lint.support import load_support
from scripts.compare_client_support import ANSWERS, FIXTURES, REASONS, differences, explain


def test_every_difference_to_the_npm_package_has_its_reason() -> None:
    assert len(FIXTURES) == 40
    found = list(differences())
    assert [difference for difference in found if explain(difference) is None] == []
    # A reason that nothing needs any more is wrong.
    assert {difference.feature for difference in found} == set(json.loads(REASONS.read_text(encoding="utf-8")))


def test_the_answers_are_of_the_version_of_the_data() -> None:
    stored = json.loads(ANSWERS.read_text(encoding="utf-8"))
    assert stored["version"] == load_support().version
    assert set(stored["answers"]) == set(FIXTURES)
    assert sum(len(features) for features in stored["answers"].values()) > 500

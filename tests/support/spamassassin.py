"""SpamAssassin's own rules as Debian ships them: no network tests, no rule updates, no learning, no state.

::

    verdicts = judge([content, other])  # a second of work: asyncio.to_thread(judge, contents) on a loop
    assert not verdicts[0].malformed, verdicts[0]
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.patience import PATIENCE

__all__ = ["Verdict", "judge"]

_RULES = Path("/usr/share/spamassassin")
_STATUS = re.compile(r"^X-Spam-Status: .* score=(-?[\d.]+) required=(-?[\d.]+) tests=(\S*)", re.MULTILINE)

# The words by which rules for headers and structure that are missing, malformed or unusual go.
_MALFORMED = re.compile(
    r"(?:^|_)(?:MISSING|INVALID|ILLEGAL|BOGUS|MALF|MALFORMED|UNPARSEABLE|MISMATCH|MISSPACED|UNBAL2|FAKE|FORGED|BAD)(?:_|$)"
    r"|^(?:T_)?(?:MIME|MSGID|DATE|HEAD|HEADER|BASE64|BLANK|CTYPE|CTE|FROM|TO|MPART|MULTIPART|RATWARE|HDR|SUBJ|SUBJECT)_"
    r"|^(?:CORRUPT_FROM_LINE_IN_HDRS|EMPTY_MESSAGE|FRAGMENTED_MESSAGE|HTML_MIME_NO_HTML_TAG|NONEXISTENT_CHARSET)$"
    r"|^(?:NO_HEADERS_MESSAGE|NULL_IN_BODY|REPLYTO_WITHOUT_TO_CC|UNRESOLVED_TEMPLATE|WEIRD_QUOTING|BODY_8BITS)$"
)


@dataclass(frozen=True)
class Verdict:
    """What it said: from ``required`` points on, a message counts as spam."""

    score: float
    required: float
    rules: frozenset[str]

    @property
    def malformed(self) -> set[str]:
        """The rules about headers and structure among those that were hit."""
        return {rule for rule in self.rules if _MALFORMED.search(rule)}


def judge(contents: Sequence[bytes]) -> list[Verdict]:
    """Run the local rules over messages, in one process; skips the test where SpamAssassin is not installed."""
    program = shutil.which("spamassassin")
    if program is None:
        pytest.skip("spamassassin is not installed (apt-get install spamassassin)")
    with tempfile.TemporaryDirectory(prefix="spamassassin-") as home:
        files = [Path(home, f"{number:04}.eml") for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        done = subprocess.run(
            [
                program,
                "--local",
                f"--configpath={_RULES}",
                "--nocreate-prefs",
                f"--prefspath={home}/none",
                "--cf=use_bayes 0",
                "--cf=fold_headers 0",
                *files,
            ],
            capture_output=True,
            cwd=home,
            env={"PATH": os.environ["PATH"], "HOME": home, "LC_ALL": "C"},
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    found = _STATUS.findall(done.stdout.decode(errors="replace"))
    assert len(found) == len(contents), done.stderr
    return [
        Verdict(float(score), float(required), frozenset(names.split(",") if names != "none" else []))
        for score, required, names in found
    ]

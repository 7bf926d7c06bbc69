"""SpamAssassin's own rules as Debian ships them: no network tests, no rule updates, no learning, no state.

::

    verdict = judge(content)          # about 1 s of work: asyncio.to_thread(judge, content) on a loop
    assert not verdict.malformed, verdict
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from support.patience import PATIENCE

__all__ = ["Verdict", "judge"]

_RULES = Path("/usr/share/spamassassin")
_STATUS = re.compile(r"score=(-?[\d.]+) required=(-?[\d.]+) tests=(\S*)")

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


def judge(content: bytes) -> Verdict:
    """Run the local rules over a message; skips the test where SpamAssassin is not installed."""
    program = shutil.which("spamassassin")
    if program is None:
        pytest.skip("spamassassin is not installed (apt-get install spamassassin)")
    with tempfile.TemporaryDirectory(prefix="spamassassin-") as home:
        done = subprocess.run(
            [
                program,
                "--local",
                f"--configpath={_RULES}",
                "--nocreate-prefs",
                f"--prefspath={home}/none",
                "--cf=use_bayes 0",
                "--cf=fold_headers 0",
            ],
            input=content,
            capture_output=True,
            cwd=home,
            env={"PATH": os.environ["PATH"], "HOME": home, "LC_ALL": "C"},
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    status = str(message_from_bytes(done.stdout, policy=policy.compat32)["X-Spam-Status"])
    found = _STATUS.search(status)
    assert found is not None, f"{status!r} {done.stderr!r}"
    names = found[3].split(",") if found[3] != "none" else []
    return Verdict(float(found[1]), float(found[2]), frozenset(names))

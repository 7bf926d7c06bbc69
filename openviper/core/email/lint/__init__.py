"""Check the content of mail for what readers would miss: bodies, links, images, and what mail clients support."""

from openviper.core.email.lint.bodies import CLIP_BYTES, lint_bodies
from openviper.core.email.lint.client_support import lint_client_support
from openviper.core.email.lint.findings import LintFinding, by_level
from openviper.core.email.lint.support import support_version

__all__ = ["CLIP_BYTES", "LintFinding", "by_level", "lint_bodies", "lint_client_support", "support_version"]

"""Move the rules of style sheets into ``style`` attributes, which all mail clients follow."""

import threading
from typing import Any

from openviper.conf.imports import require
from openviper.core.email.errors import TemplateFailed
from openviper.markup import describe_excess

__all__ = ["CssInliner"]


class CssInliner:
    """Inline CSS with css-inline, loaded at first use. Safe to share between threads."""

    def __init__(self) -> None:
        self._inliner: Any = None
        self._lock = threading.Lock()

    def load(self) -> Any:
        """Return the library's inliner; the first call imports it, so call it in a thread.

        Raises:
            MissingDependency: css-inline is not installed.
        """
        with self._lock:
            if self._inliner is None:
                library = require("css_inline", extra="css", purpose='EMAIL["inline_css"]')
                self._inliner = library.CSSInliner(load_remote_stylesheets=False)
            return self._inliner

    def inlined(self, template: str, html: str) -> str:
        """Return ``html`` with its rules in ``style`` attributes; files and the network are never read.

        Raises:
            TemplateFailed: the HTML that ``template`` gave nests too deep, or has CSS that cannot be inlined.
            MissingDependency: css-inline is not installed.
        """
        excess = describe_excess(html)
        if excess is not None:
            raise TemplateFailed(
                template,
                f"its CSS cannot be inlined, because in the rendered HTML {excess}: "
                'close the elements, or turn EMAIL["inline_css"] off',
            )
        try:
            return str(self.load().inline(html))
        except ValueError as error:
            raise TemplateFailed(template, f"its CSS cannot be inlined: {error}") from error

"""Render a message's text, HTML and subject from the project's template files, and inline CSS."""

from openviper.core.email.templates.css import CssNotInlined, inline_css
from openviper.core.email.templates.renderer import RenderedTemplate, TemplateRenderer

__all__ = ["CssNotInlined", "RenderedTemplate", "TemplateRenderer", "inline_css"]

"""Render a message's text, HTML and subject from the project's template files."""

from openviper.core.email.templates.renderer import RenderedTemplate, TemplateRenderer

__all__ = ["RenderedTemplate", "TemplateRenderer"]

"""Templates: rendering a message's text, HTML and subject from files of the project."""

from openviper.core.email.templates.renderer import RenderedTemplate, TemplateRenderer

__all__ = ["RenderedTemplate", "TemplateRenderer"]

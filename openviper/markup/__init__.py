"""Read HTML: tags and attributes as browsers see them, and a bound for what native parsers are given."""

from openviper.markup.css import declarations, is_hidden, is_zero
from openviper.markup.nesting import DEEPEST, MOST_ATTRIBUTES, describe_excess
from openviper.markup.tags import Attribute, Tag, attribute_text, attributes, read_tags

__all__ = [
    "DEEPEST",
    "MOST_ATTRIBUTES",
    "Attribute",
    "Tag",
    "attribute_text",
    "attributes",
    "declarations",
    "describe_excess",
    "is_hidden",
    "is_zero",
    "read_tags",
]

"""Name what readers lose in a mail client that lacks a feature, and the remedy."""

__all__ = [
    "DATA_LOST",
    "FIELDS",
    "FORM_LOST",
    "GENERATED_LOST",
    "IMAGE_LOST",
    "MAP_LOST",
    "SRCSET_LOST",
    "STAYS_COVERED",
    "STAYS_HIDDEN",
    "SVG_REMOVED",
    "TRANSPARENT",
    "UNREADABLE",
    "WITH_FALLBACK",
]

FIELDS = {
    "html-input-checkbox": "readers cannot tick it",
    "html-input-radio": "readers cannot choose it",
    "html-input-text": "readers cannot fill it in",
    "html-textarea": "readers cannot fill it in",
    "html-select": "readers cannot choose from it",
    "html-input-submit": "readers cannot send the form",
    "html-button-submit": "readers cannot send the form",
}
WITH_FALLBACK = {
    "video": "the video is lost, and there is nothing in its place: put an image with a link inside the element",
    "audio": "the sound is lost, and there is nothing in its place: put a link inside the element",
    "object": "the object is lost, and there is nothing in its place: put an image or a text inside the element",
    "meter": "its value is lost: write it inside the element",
    "progress": "its value is lost: write it inside the element",
}
SVG_REMOVED = "the drawing is removed: send an image with alternative text in its place"
IMAGE_LOST = "the image is lost: send it as PNG or JPEG"
SRCSET_LOST = "the image is lost: give its address as src as well"
DATA_LOST = "the image is lost: attach it as an inline image (cid:) or link to it"
MAP_LOST = "the links in the image cannot be followed: add them as text"
GENERATED_LOST = "the text that it adds is lost: write it in the HTML"
STAYS_HIDDEN = "content that it reveals stays hidden: make the element visible without the animation"
STAYS_COVERED = "content that it reveals stays hidden: show it without a selector that needs an action"
UNREADABLE = "the text is as light or as dark as the background that remains: give a plain colour as well"
TRANSPARENT = (
    "the text is transparent, and no background is behind it: give its colour as color, and the transparent one as "
    "-webkit-text-fill-color"
)
FORM_LOST = "readers cannot send the form: link to a page that has it"

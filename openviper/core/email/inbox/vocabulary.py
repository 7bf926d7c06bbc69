"""Index the words of all messages: a search reads each word once, however many messages have it, and no message.

A set of messages is an int, with the bit ``1 << number`` for each message in it.
"""

from collections.abc import Iterable
from itertools import chain

__all__ = ["Vocabulary"]

_SHORT = 50_000  # characters; a longer text is not copied to add words


class Vocabulary:
    """Words of messages; a word is text without spaces and line ends."""

    def __init__(self) -> None:
        self._messages: dict[str, int] = {}
        self._all = 0
        # Each word between two line ends; some belong to no message any more.
        self._texts: tuple[list[str], list[str]] = ([], [])
        self._new: list[str] = []  # words that are in no text yet
        self._unused = 0  # of the words in the texts

    def add(self, number: int, words: Iterable[str]) -> None:
        """Add a message with its words."""
        bit = 1 << number
        self._all |= bit
        messages = self._messages
        for word in words:
            found = messages.get(word)
            if found is None:
                self._new.append(word)
                found = 0
            messages[word] = found | bit

    def remove(self, number: int, words: Iterable[str]) -> None:
        """Remove a message; ``words`` are those with which it was added."""
        bit = 1 << number
        self._all &= ~bit
        messages = self._messages
        for word in words:
            left = messages[word] & ~bit
            if left:
                messages[word] = left
            else:
                del messages[word]
                self._unused += 1

    def find(self, value: str) -> int:
        """Return the messages that have ``value`` in a word.

        If it consists of several words, the messages have each of them, but perhaps not next to each other.
        """
        first, *others = value.split(" ")
        if not others:
            return self._find_part(first)
        *middle, last = others
        found = self._all
        for word in middle:
            found &= self._messages.get(word, 0)
        for part in (f"{first}\n", f"\n{last}"):
            found = found and found & self._find_part(part)
        return found

    def _find_part(self, part: str) -> int:
        """Return the messages with a word that contains ``part``, in which a line end is a word's beginning or end."""
        self._complete_texts()
        found = self._messages.get(part.strip("\n"), 0)
        if found == self._all:
            return found
        for text in chain.from_iterable(self._texts):
            # Backwards, because str.find() takes twice as long for two letters.
            position = text.rfind(part)
            while position >= 0 and found != self._all:
                start = text.rfind("\n", 0, position + 1) + 1
                found |= self._messages.get(text[start : text.index("\n", start)], 0)
                position = text.rfind(part, 0, start)
        return found

    def _complete_texts(self) -> None:
        if self._unused > len(self._messages):
            self._texts, self._new, self._unused = ([], []), [*self._messages], 0
        if self._new:
            # Apart, because one wide character makes each character of a text wide.
            for texts, ascii_only in zip(self._texts, (True, False), strict=True):
                words = [word for word in self._new if word.isascii() is ascii_only]
                last = texts.pop() if texts and len(texts[-1]) < _SHORT else "\n"
                texts.append("\n".join((last[:-1], *words, "")))
            self._new = []

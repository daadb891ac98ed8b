"""HTML taken apart: tags with their attributes, and the text in each element; refuses elements that are not closed."""

from __future__ import annotations

from html.parser import HTMLParser

EMPTY = ("meta", "link", "input", "img", "br", "wbr", "hr", "col")


class Elements(HTMLParser):
    """The tags and attributes of a page, and the text in each element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        """Keeps a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Every element that is opened is closed, in order."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Keeps what stands in an element."""
        if data.strip():
            self.text.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[str]:
        """The texts of all elements of a kind."""
        return [text for name, text in self.text if name == tag]

    def addresses(self) -> list[str]:
        """All that a browser would load or lead to."""
        names = ("src", "href", "action", "data", "poster", "srcset", "xlink:href", "formaction", "background")
        return [value for _, found in self.tags for name in names if (value := found.get(name)) is not None]

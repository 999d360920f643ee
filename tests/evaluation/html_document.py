"""Reads an HTML page back for the tests: its tags, links and visible text."""

import html.parser
import re

# The report's, in its order.
SECTIONS = (
    "verdict",
    "run",
    "metrics",
    "radar",
    "curves",
    "conditions",
    "cells",
    "genes",
    "lookup",
    "uncertainty",
    "rows",
)
VOID = {"meta", "link", "br", "input", "img", "hr"}


class Document(html.parser.HTMLParser):
    """Tags, attributes and visible text; complains about tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.text = [], [], [], [], []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [
            attrs[name] for name in ("src", "href", "xlink:href", "data", "action") if name in attrs
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def read(path) -> Document:
    return Document(path.read_text(encoding="utf-8"))

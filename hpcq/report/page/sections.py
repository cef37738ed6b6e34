"""A section of the page."""

from __future__ import annotations

from hpcq.core.frozen import dataclass
from hpcq.report.page.markup import Content, Html, join, tag


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section.

    Attributes:
        id: Target of links.
        link: Its name in the list of sections.
        title: Its heading.
        content: What follows the heading.
    """

    id: str
    link: str
    title: str
    content: Html

    def as_html(self) -> Html:
        """Return the section with its heading."""
        return tag("section", tag("h2", self.title), self.content, id=self.id)


def folded(summary: Content, *content: Content, class_: str | None = None, is_open: bool = False) -> Html:
    """Return content that is shown after its summary is selected."""
    return tag("details", tag("summary", summary), join(content), class_=class_, open=is_open)


def paragraph(text: str, *, class_: str | None = None) -> Html:
    """Return a paragraph."""
    return tag("p", text, class_=class_)

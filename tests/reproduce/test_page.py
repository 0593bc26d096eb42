"""One page for all figures: everything inside, nothing fetched, every text escaped."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from streaming_vb.reproduce import outcome, page
from streaming_vb.reproduce.images import Images
from streaming_vb.reproduce.outcome import Outcome

IMAGES = Images("digits & more", *(np.zeros((2, 4)), np.zeros(2)) * 2, 1.0, (2, 2))


def written(out: Path) -> str:
    """A page of two outcomes with awkward texts."""
    for name, title, caption in (("first", "One <script>", "a & b < c"), ("second", "Two", 'say "hello"')):
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1], [0, 1])
        made = Outcome(title, caption, figure, {"seed": 0, "rates": (0.1, 0.2)}, {"</pre><b>": [1.5]})
        outcome.write(name, made, IMAGES, out)
    return page.write(["first", "second"], out).read_text()


class Tags(HTMLParser):
    """Counts tags, and looks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    text = written(tmp_path)
    assert not re.search(r"https?:|//", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert [source for source in sources if source.startswith("#")] == ["#first", "#second"]
    pictures = [source for source in sources if not source.startswith("#")]
    assert len(pictures) == 2
    for name, picture in zip(("first", "second"), pictures, strict=True):
        head, data = picture.split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == (tmp_path / f"{name}.png").read_bytes()


def test_the_page_escapes_what_it_shows(tmp_path: Path) -> None:
    text = written(tmp_path)
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert not {"script", "b"} & set(tags.seen)
    assert tags.seen.count("details") == 4
    for escaped in ("One &lt;script&gt;", "a &amp; b &lt; c", "digits &amp; more", "&lt;/pre&gt;&lt;b&gt;"):
        assert escaped in text


def test_an_outcome_is_a_picture_twice_and_its_figures(tmp_path: Path) -> None:
    written(tmp_path)
    document = json.loads((tmp_path / "first.json").read_text())
    assert document["settings"] == {"seed": 0, "rates": [0.1, 0.2]}
    assert document["results"] == {"</pre><b>": [1.5]}
    assert document["versions"].keys() == {"python", "torch"}
    before = (tmp_path / "first.svg").read_bytes()
    written(tmp_path)
    assert (tmp_path / "first.svg").read_bytes() == before


def test_a_page_needs_every_figure(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(FileNotFoundError):
        page.write(["first", "third"], tmp_path)

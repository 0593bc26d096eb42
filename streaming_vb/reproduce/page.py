"""One self-contained HTML page of all reproduced figures: pictures inside, no scripts, nothing fetched."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1rem; }
img { max-width: 100%; height: auto; } nav a { margin-right: 1rem; } details { margin: .5rem 0; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem; max-height: 24rem; }
"""


def write(names: Sequence[str], out: Path) -> Path:
    """Write index.html from the PNG and JSON files of the named figures; returns its path."""
    documents = [json.loads((out / f"{name}.json").read_text()) for name in names]
    links = " ".join(f'<a href="#{document["name"]}">{html.escape(document["title"])}</a>' for document in documents)
    sections = "\n".join(_section(document, (out / f"{document['name']}.png").read_bytes()) for document in documents)
    page = out / "index.html"
    page.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>streaming_vb: reproduced figures</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>Reproduced figures</h1>\n<p>Each from <code>streaming-vb reproduce NAME</code>; data: "
        f"{html.escape(', '.join(sorted({document['data'] for document in documents})))}.</p>\n"
        f"<nav>{links}</nav>\n{sections}\n</body></html>\n"
    )
    return page


def _section(document: dict[str, object], png: bytes) -> str:
    name, title, caption = (html.escape(str(document[key])) for key in ("name", "title", "caption"))
    picture = base64.b64encode(png).decode()
    return (
        f'<h2 id="{name}">{title}</h2>\n<img alt="{title}" src="data:image/png;base64,{picture}">\n<p>{caption}</p>\n'
        f"{_details('Settings', document['settings'])}{_details('Figures behind the picture', document['results'])}"
    )


def _details(summary: str, values: object) -> str:
    return f"<details><summary>{summary}</summary><pre>{html.escape(json.dumps(values, indent=1))}</pre></details>\n"

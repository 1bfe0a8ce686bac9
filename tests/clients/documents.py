"""What the documents show: their code, to be run as it stands."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# All of them, by their paths below docs/.
DOCUMENTS = ["../README.md", *sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))]


def blocks(document, language):
    """(first line, text) of each block of code in this language."""
    text = (DOCS / document).read_text()
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start()) + 2, found[1]


def block(document, language, contains):
    """The one block in this language with this in it."""
    (found,) = [text for _, text in blocks(document, language) if contains in text]
    return found


def inline(document, words):
    """What stands in the text as code and begins with one of these words (a pattern)."""
    text = re.sub(r"^```.*?^```$", "", (DOCS / document).read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(rf"`((?:{words}) [^`]*)`", text)


def statements(text):
    """The statements of an sql block."""
    return [part.strip() for part in re.split(r";[ \t]*$", text, flags=re.MULTILINE) if part.strip()]

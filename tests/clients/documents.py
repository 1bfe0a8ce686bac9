"""What the documents show: their code, to be run as it stands."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(document, language):
    """(first line, text) of each block of code in this language."""
    text = (DOCS / document).read_text()
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start()) + 2, found[1]


def block(document, language, contains):
    """The one block in this language with this in it."""
    (found,) = [text for _, text in blocks(document, language) if contains in text]
    return found


def inline(document, program):
    """Commands of this program that stand in the text."""
    text = re.sub(r"^```.*?^```$", "", (DOCS / document).read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(rf"`({program} [^`]*)`", text)


def statements(text):
    """The statements of an sql block."""
    return [part.strip() for part in re.split(r";[ \t]*$", text, flags=re.MULTILINE) if part.strip()]

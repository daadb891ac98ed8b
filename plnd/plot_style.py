"""How pictures look: colours that colour-blind people tell apart, sizes of a paper's columns, names in words, fonts."""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plnd.errors import PLNDError
from plnd.io.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#3333bb", "#ee5511", "#00aaff", "#883322", "#eebb88", "#663377", "#9999aa", "#000000")
"""Any two, and each and white, are at least 36 apart in CIELAB (1976), also as people without one of the three cones
see them (Machado, Oliveira and Fernandes 2009); found by search over a grid. Okabe and Ito's are 16 apart."""
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (3, 2, 1, 2)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++", "oo")
"""What tells names apart where there is no colour at all: of curves, points and bars."""
WIDTHS = {1: 3.25, 2: 6.75}
"""Inches of a picture over one column or two, the usual ones of a paper."""
RESOLUTION = 200
"""Dots an inch, of PNG."""
FORMS = ("png", "svg", "pdf")

LANGUAGES = dict(
    ar="Arabic", az="Azerbaijani", bg="Bulgarian", bn="Bengali", cs="Czech", cy="Welsh", da="Danish", de="German",
    el="Greek", en="English", es="Spanish", et="Estonian", fa="Persian", fi="Finnish", fr="French", gu="Gujarati",
    he="Hebrew", hi="Hindi", hr="Croatian", hu="Hungarian", id="Indonesian", it="Italian", ja="Japanese", ko="Korean",
    lt="Lithuanian", lv="Latvian", mr="Marathi", ms="Malay", ne="Nepali", nl="Dutch", no="Norwegian", pa="Punjabi",
    pl="Polish", pt="Portuguese", ro="Romanian", ru="Russian", sk="Slovak", sl="Slovenian", sr="Serbian", sv="Swedish",
    sw="Swahili", ta="Tamil", te="Telugu", th="Thai", tr="Turkish", uk="Ukrainian", ur="Urdu", vi="Vietnamese",
    zh="Chinese",
)  # fmt: skip
WORDS = dict(
    q_proj="query", k_proj="key", v_proj="value", o_proj="attention output", gate_proj="gate", up_proj="up",
    down_proj="down", feed_forward="feed-forward", all_shared="all-shared", partial_shared="partial-shared",
    non_activated="non-activated", under="understanding blocks", solve="task-solving blocks", gen="generation blocks",
    solve_attn="attention of task-solving blocks", solve_ffn="feed-forward of task-solving blocks",
    specific="language-specific", without_english="without those of English",
    without_shared="without those all languages share", bits_per_byte="bits per byte", exact_match="exact match",
    acc="accuracy", f1="F1", rougeL="ROUGE-L", contains="contains the answer", plnd="PLND", lape="LAPE", lora="LoRA",
    rslora="rank-stabilised LoRA", dora="DoRA", shira="SHiRA", magnitude="neurons of large norm",
    full="all parameters", neurons="language neurons", random="random neurons",
)  # fmt: skip
NO_LETTERS = ("Last Resort",)
"""Fonts that have a box for every letter."""


def in_words(name: str) -> str:
    """A name as a reader of the picture would say it: `zh` is Chinese, `solve_attn+gen` has both in words."""
    if name in LANGUAGES:
        return LANGUAGES[name]
    parts = name.split("+")
    if len(parts) > 1 and all(part in WORDS for part in parts):
        return ", ".join(WORDS[part] for part in parts)
    return WORDS.get(name, name.replace("_", " "))


def look(number: int, *, line: bool = True) -> dict[str, Any]:
    """Colour, marker and dashes of the `number`-th name; after eight, colours come again with other markers."""
    turn = number // len(COLOURS)
    found: dict[str, Any] = {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + 3 * turn) % len(MARKERS)],
    }
    if line:
        found |= {"linestyle": DASHES[(number + turn) % len(DASHES)], "markersize": 3.5, "linewidth": 1.2}
    return found


def filling(number: int) -> dict[str, Any]:
    """Colour and hatching of the `number`-th name's bars."""
    turn = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "hatch": HATCHES[(number + turn) % len(HATCHES)],
        "edgecolor": "white",
        "linewidth": 0.4,
    }


def check_plot(path: str | Path) -> None:
    """Raises a PLNDError if a picture cannot be written under that name, or matplotlib is missing."""
    kind = Path(path).suffix.lstrip(".") or FORMS[0]
    if kind not in FORMS:
        raise PLNDError(f"{path}: plots cannot be written as {kind!r}; use .png, .svg or .pdf")
    pyplot()


def width_of(columns: int) -> float:
    """Inches of a picture over so many columns of a paper.

    Raises:
        PLNDError: if there are other than one or two.
    """
    if columns not in WIDTHS:
        raise PLNDError(f"columns: found {columns}, expected 1 or 2, of the paper's page")
    return WIDTHS[columns]


def pyplot() -> Any:
    """matplotlib.pyplot, which draws to files alone.

    Raises:
        PLNDError: if matplotlib is missing.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise PLNDError("plots need matplotlib: pip install 'plnd[plots]'") from None
    return plt


@contextmanager
def style() -> Iterator[None]:
    """Sizes of letters and lines that can be read at the size of a paper's column; letters of PDF stay letters.

    Names inside an SVG come of what they name, not of chance, so that the same picture is the same bytes.
    """
    sizes: dict[str, float] = {"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7}
    sizes |= {"xtick.labelsize": 7, "ytick.labelsize": 7, "hatch.linewidth": 0.5, "axes.linewidth": 0.6}
    with pyplot().rc_context(
        {**sizes, "pdf.fonttype": 42, "svg.hashsalt": "plnd", "axes.spines.top": False, "axes.spines.right": False}
    ):
        yield


def write(figure: Figure, path: str | Path) -> None:
    """Writes a picture in the form of the path's suffix, PNG without one, and closes it.

    Raises:
        PLNDError: if there is no such form, or the file cannot be written.
    """
    check_plot(path)
    give_fonts(figure)
    buffer, kind = io.BytesIO(), Path(path).suffix.lstrip(".") or FORMS[0]
    made = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})  # so that the same picture is the same
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # `give_fonts` has said so
        figure.savefig(buffer, format=kind, dpi=RESOLUTION, metadata=made)
    pyplot().close(figure)
    write_bytes(buffer.getvalue(), path)


# letters that the usual font lacks


def give_fonts(figure: Figure) -> None:
    """Gives texts the fonts of this system that have their letters; where there is none, a warning of one line."""
    from matplotlib.text import Text

    lacking: set[str] = set()
    for text in figure.findobj(Text):
        missing = letters_beyond_default(text.get_text())
        if not missing:
            continue
        families = dict.fromkeys(font_for(letter) for letter in missing)
        text.set_fontfamily(["DejaVu Sans", *(family for family in families if family)])
        lacking |= {script_of(letter) for letter in missing if not font_for(letter)}
    if lacking:
        names = ", ".join(sorted(lacking))
        advice = f"install one, such as Noto Sans {sorted(lacking)[0]}"
        warnings.warn(
            f"no font of this system has the letters of {names}: boxes stand for them; {advice}", stacklevel=4
        )


def letters_beyond_default(text: str) -> list[str]:
    """The letters that matplotlib's own font has not."""
    if text.isascii():
        return []
    return [letter for letter in dict.fromkeys(text) if not letter.isspace() and not _has(_default_font(), letter)]


def script_of(letter: str) -> str:
    """The script of a letter, as fonts call it: Thai, Arabic, Devanagari, CJK, …"""
    name = unicodedata.name(letter, "an unknown script").partition(" ")[0]
    return "CJK" if name in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL") else name.title()


@cache
def font_for(letter: str) -> str | None:
    """The name of a font of this system that has a letter, Noto Sans before others; None if there is none."""
    from matplotlib import font_manager

    script = script_of(letter).lower()

    def order(path: str) -> tuple[bool, bool, bool, str]:
        name = Path(path).name.lower()
        return ("notosans" not in name, script not in name, "regular" not in name, name)

    for path in sorted(_system_fonts(), key=order):
        if _has(path, letter):
            known = {entry.fname: entry.name for entry in font_manager.fontManager.ttflist}
            if path not in known:  # installed after matplotlib looked for fonts
                font_manager.fontManager.addfont(path)
                known = {entry.fname: entry.name for entry in font_manager.fontManager.ttflist}
            return known[path]
    return None


@cache
def _system_fonts() -> tuple[str, ...]:
    from matplotlib import font_manager

    return tuple(sorted(font_manager.findSystemFonts()))


@cache
def _default_font() -> str:
    from matplotlib import font_manager

    return str(font_manager.findfont("DejaVu Sans"))


@cache
def _face(path: str) -> Any:
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(path)
    except (OSError, RuntimeError):  # not a font after all
        return None
    return None if face.family_name.startswith(NO_LETTERS) else face


def _has(path: str, letter: str) -> bool:
    face = _face(path)
    return face is not None and face.get_char_index(ord(letter)) != 0


def shortest_rows(names: Iterable[str], columns: int) -> int:
    """How many names of a legend fit beside each other under a picture."""
    longest = max(map(len, names), default=1)
    return max(1, int(width_of(columns) * 72 / (4.2 * longest + 34)))

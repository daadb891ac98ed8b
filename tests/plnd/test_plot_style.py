"""How pictures look: colours by what colour-blind people see, names, fonts, forms of files."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb

from plnd import plot_style
from plnd.errors import PLNDError
from plnd.plot_style import COLOURS, filling, font_for, in_words, look, write
from plnd.plots import draw_lines

SEEN = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""Linear RGB as people without one kind of cones see it: Machado, Oliveira and Fernandes (2009), severity 1."""


def lab(colour: str, matrix) -> np.ndarray:
    """CIELAB (D65) of an sRGB colour, seen through a matrix of linear RGB."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.119192, 0.9503041]]
    x, y, z = to_xyz @ np.clip(matrix @ linear, 0, 1) / [0.95047, 1, 1.08883]
    f = [np.cbrt(t) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colours, matrix) -> float:
    """The smallest distance of two colours, or of one and white, as they are seen."""
    seen = [lab(colour, np.array(matrix)) for colour in (*colours, "#ffffff")]
    return min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2))


@pytest.mark.parametrize("sight", SEEN)
def test_colours_are_far_apart(sight):
    """Any two of them, and each and the page, are 35 apart in CIELAB, with every kind of cones and without it."""
    assert nearest(COLOURS, SEEN[sight]) > 35


def test_the_distances_see_what_colour_blind_people_do_not():
    """Matplotlib's own colours are 4.6 apart without the red cones: the test above would fail on them."""
    theirs = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f"]
    assert nearest(theirs, SEEN["normal"]) > 20 > 10 > nearest(theirs, SEEN["protanopia"])
    assert np.allclose(lab("#ffffff", np.eye(3)), [100, 0, 0], atol=0.02)
    assert np.allclose(lab("#ff0000", np.eye(3)), [53.24, 80.09, 67.20], atol=0.02)  # as colour tables have it


def test_names_differ_without_any_colour():
    """The first eight by their markers, dashes and hatching alone."""
    looks = [look(n) for n in range(8)]
    assert len({one["marker"] for one in looks}) == len({one["linestyle"] for one in looks}) == 8
    assert len({filling(n)["hatch"] for n in range(8)}) == 8


@pytest.mark.parametrize(
    "name, words",
    [
        ("zh", "Chinese"),
        ("solve_ffn", "feed-forward of task-solving blocks"),
        ("under+gen", "understanding blocks, generation blocks"),
        ("bits_per_byte", "bits per byte"),
        ("my_set", "my set"),
        ("a+b", "a+b"),
    ],
)
def test_names_are_words(name, words):
    """Of languages, regions and metrics; what is not known is left as it is, but for underscores."""
    assert in_words(name) == words


def test_letters_that_no_font_has(monkeypatch, tmp_path, recwarn):
    """One warning names their script and what to install; the picture is written all the same."""
    monkeypatch.setattr(plot_style, "font_for", lambda letter: None)
    write(draw_lines({"ไทย": {"中文": np.arange(3.0)}}, "y"), tmp_path / "a.png")
    (warning,) = [str(found.message) for found in recwarn if "font" in str(found.message)]
    assert warning == (
        "no font of this system has the letters of CJK, Thai: boxes stand for them; install one, such as Noto Sans CJK"
    )
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("letter", "中ไبहअ")
def test_letters_are_drawn_where_the_system_has_them(letter, tmp_path, recwarn):
    """Chinese, Thai, Arabic and Devanagari: a font is found that has the letter, and nothing is warned of."""
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    name = font_for(letter)
    if name is None:
        pytest.skip(f"no font here has {letter}")
    assert FT2Font(findfont(FontProperties(family=[name]))).get_char_index(ord(letter)) != 0
    figure = draw_lines({letter: {"x": np.arange(3.0)}}, "y")
    write(figure, tmp_path / "a.pdf")
    assert not [found for found in recwarn if "font" in str(found.message) or "Glyph" in str(found.message)]


def test_the_same_picture_is_the_same_file(tmp_path):
    """PDF and SVG have no date in them."""
    for kind in ("pdf", "svg"):
        for name in "ab":
            write(draw_lines({"": {"x": np.arange(3.0)}}, "y"), tmp_path / f"{name}.{kind}")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a.svg").read_bytes()


def test_a_page_has_two_columns():
    """A third is refused in one line."""
    with pytest.raises(PLNDError, match="columns: found 3, expected 1 or 2"):
        draw_lines({"": {"x": np.arange(3.0)}}, "y", columns=3)

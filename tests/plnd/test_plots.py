"""What the pictures show, read from what is drawn: numbers, their places, names, scales."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex

from pictures import curves, drawn, named_bars, ticks
from plnd.errors import PLNDError
from plnd.plots import SMALLEST, draw_bars, draw_layers, draw_lines, draw_overlap, draw_scatter, plot_layers

OVERLAP = {
    "all": np.array([[1.0, 0.25], [0.75, 1.0]]),
    "feed_forward": np.array([[1.0, np.nan], [0.5, np.nan]]),
}
LAYERS = {
    "zh": {"q_proj": np.array([1, 2, 3]), "o_proj": np.array([10, 0, 0]), "down_proj": np.array([7, 8, 9])},
    "en": {"v_proj": np.array([0, 5, 0]), "up_proj": np.array([1, 1, 1]), "gate_proj": np.array([0, 2, 0])},
}
PANELS = {"words": {"en": np.array([1.0, 2.0, 3.0]), "zh": np.array([4.0, 5.0, 6.0])}, "all": {"zh": np.array([9.0])}}


def test_overlap_is_a_heat_map_of_each_structure():
    """Row x, column y: the matrix itself on one scale from 0 to 1, each number written in its cell, nan as a dash."""
    figure = draw_overlap(OVERLAP, ["en", "zh"])
    *maps, bar = figure.axes
    assert [axis.get_title() for axis in maps] == ["all", "feed-forward"]
    for axis, matrix in zip(maps, OVERLAP.values(), strict=True):
        (image,) = axis.get_images()
        np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), matrix)
        assert image.get_clim() == (0, 1) and image.get_cmap().name == "Blues"
        assert ticks(axis) == ticks(axis, "y") == ["en", "zh"]
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("y", "x")
        for text in axis.texts:
            column, row = text.get_position()
            value = matrix[row, column]
            assert text.get_text() == ("–" if np.isnan(value) else f"{value:.2f}")
            assert text.get_color() == ("white" if value > 0.6 else "black")
        assert len(axis.texts) == 4
    assert bar.get_ylabel() == "|x ∩ y| / |y|"


@pytest.mark.parametrize("names, angle", [(["en", "zh"], 0), (["en", "zh_own"], 45)])
def test_long_names_of_sets_are_slanted(names, angle):
    """So that they do not run into each other."""
    axis = draw_overlap({"all": np.eye(2)}, names).axes[0]
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {angle}


def test_layers_add_up_attention_and_feed_forward():
    """One line for each set: neurons of a block over the four projections of attention, and over the other three."""
    figure = draw_layers(LAYERS)
    assert curves(figure) == {
        ("attention", "zh"): [11, 2, 3],
        ("feed-forward", "zh"): [7, 8, 9],
        ("attention", "en"): [0, 5, 0],
        ("feed-forward", "en"): [1, 3, 1],
    }
    assert [axis.get_xlabel() for axis in figure.axes] == ["block", "block"]
    assert figure.axes[0].get_ylabel() == "neurons"
    assert all(axis.get_ylim()[0] == 0 for axis in figure.axes)


def test_lines_have_a_panel_a_colour_and_a_scale():
    """A name keeps its colour in every panel, and all panels have one vertical scale."""
    figure = draw_lines(PANELS, "share, %")
    assert curves(figure) == {("words", "en"): [1, 2, 3], ("words", "zh"): [4, 5, 6], ("all", "zh"): [9]}
    first, second = figure.axes
    assert first.get_ylabel() == "share, %" and first.get_ylim() == second.get_ylim()
    assert first.get_xlabel() == second.get_xlabel() == "block"
    assert first.get_ylim()[0] <= 1 and first.get_ylim()[1] >= 9


def test_lines_wrap_after_four_panels():
    """Five panels are two rows; the empty places of the second show no axes."""
    figure = draw_lines({str(n): {"x": np.arange(3.0) * n} for n in range(5)}, "y")
    rows, columns = figure.axes[0].get_gridspec().get_geometry()
    assert (rows, columns) == (2, 4)
    assert [axis.axison for axis in figure.axes] == [True] * 5 + [False] * 3
    assert curves(figure)["4", "x"] == [0, 4, 8]


def test_stacked_values_stand_on_each_other():
    """Each column begins where the one below it ends."""
    figure = draw_lines({"words": PANELS["words"]}, "share, %", stacked=True)
    by_name = named_bars(figure.axes[0])
    assert by_name == {"en": [(0, 0, 1), (1, 0, 2), (2, 0, 3)], "zh": [(0, 1, 4), (1, 2, 5), (2, 3, 6)]}


def test_places_are_named_under_the_lines():
    """Where values do not stand for blocks, their names stand below, and the axis is called as one says."""
    (axis,) = draw_lines({"": {"x": np.arange(2.0)}}, "y", places=["input", "0"], along="place").axes
    assert ticks(axis) == ["input", "0"] and axis.get_xlabel() == "place"
    (axis,) = draw_lines({"": {"x": np.arange(2.0)}}, "y", places=["input", "0"]).axes
    assert axis.get_xlabel() == ""


def test_bars_stand_side_by_side_around_their_place():
    """Bars of one place do not overlap, and are centred on it; intervals are drawn over their own bars."""
    values = {"own": np.array([3.0, -1.0]), "others": np.array([1.0, np.nan])}
    intervals = {name: np.stack([heights - 0.5, heights + 0.25]) for name, heights in values.items()}
    figure = draw_bars(values, ["en", "zh"], "change", intervals=intervals)
    (axis,) = figure.axes
    by_name = named_bars(axis)
    for n, (name, heights) in enumerate(values.items()):
        middles = np.array([middle for middle, _, _ in by_name[name]])
        np.testing.assert_allclose(middles, np.arange(2) + (n - 0.5) * 0.4)
        np.testing.assert_array_equal([height for _, _, height in by_name[name]], heights)
        for segment, middle, ends in zip(axis.collections[n].get_segments(), middles, intervals[name].T, strict=True):
            assert np.isnan(ends).all() or segment.tolist() == [[middle, ends[0]], [middle, ends[1]]]
    assert ticks(axis) == ["en", "zh"] and axis.get_ylabel() == "change"
    assert any(list(line.get_ydata()) == [0, 0] for line in axis.get_lines()), "a line at nought"


def test_what_is_drawn_is_written_and_closed(tmp_path):
    """The file has the form of its suffix, PNG without one, and the figure does not stay in memory."""
    import matplotlib.pyplot as plt

    with drawn() as figures:
        for name, start in (("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("a.png", b"\x89PNG"), ("a", b"\x89PNG")):
            plot_layers(LAYERS, tmp_path / name)
            assert (tmp_path / name).read_bytes().startswith(start)
    assert len(figures) == 4 and curves(figures[0]) == curves(draw_layers(LAYERS))
    plt.close("all")
    plot_layers(LAYERS, tmp_path / "b.png")
    assert plt.get_fignums() == []
    with pytest.raises(PLNDError, match="a.xyz: plots cannot be written as 'xyz'"):
        plot_layers(LAYERS, tmp_path / "a.xyz")


def test_scatter_is_on_logarithmic_axes():
    """Each name at its place in every panel, with a look that no other has; what is too small on the edge."""
    names = [f"n{k}" for k in range(10)]
    points = {name: (0.01 * (k + 1), 0.1 * (k + 1)) for k, name in enumerate(names)}
    figure = draw_scatter({"zero": points, "mean": {"n1": (-0.5, 0.3)}}, ("others", "own"))
    zero, mean = figure.axes
    assert [(axis.get_xscale(), axis.get_yscale(), axis.get_title()) for axis in figure.axes] == [
        ("log", "log", "zero"),
        ("log", "log", "mean"),
    ]
    drawn_points = [tuple(shown.get_offsets()[0]) for shown in zero.collections]
    np.testing.assert_allclose(drawn_points, list(points.values()))
    looks = {(tuple(shown.get_facecolor()[0]), len(shown.get_paths()[0].vertices)) for shown in zero.collections}
    assert len(looks) == len(names) == len(figure.legends[0].get_texts())
    np.testing.assert_allclose(mean.collections[0].get_offsets(), [[SMALLEST, 0.3]])
    assert (mean.collections[0].get_facecolor() == zero.collections[1].get_facecolor()).all()
    assert [text.get_text() for text in zero.texts] == ["1×", "10×", "100×"]
    for line, factor in zip(zero.get_lines(), (1, 10, 100), strict=True):
        np.testing.assert_allclose(line.get_ydata(), factor * np.asarray(line.get_xdata()))


def test_more_than_ten_curves_differ_by_their_lines():
    """Colours come round again, with another style."""
    figure = draw_lines({"all": {f"n{k}": np.array([k, k + 1.0]) for k in range(12)}}, "y")
    lines = figure.axes[0].get_lines()
    assert to_hex(lines[0].get_color()) == to_hex(lines[10].get_color())
    assert lines[0].get_linestyle() != lines[10].get_linestyle()

"""What the pictures show, read from what is drawn: numbers, their places, names, scales."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex

from pictures import curves, drawn, named_bars, ticks
from plnd.errors import PLNDError
from plnd.plot_style import WIDTHS
from plnd.plots import (
    SMALLEST,
    Points,
    draw_bars,
    draw_changes,
    draw_layers,
    draw_lines,
    draw_overlap,
    draw_points,
    draw_scatter,
    plot_layers,
)

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
    assert [axis.get_title() for axis in maps] == ["all neurons", "feed-forward"]
    for axis, matrix in zip(maps, OVERLAP.values(), strict=True):
        (image,) = axis.get_images()
        np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), matrix)
        assert image.get_clim() == (0, 1) and image.get_cmap().name == "Blues"
        assert ticks(axis) == ticks(axis, "y") == ["English", "Chinese"]
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("y", "x")
        for text in axis.texts:
            column, row = text.get_position()
            value = matrix[row, column]
            assert text.get_text() == ("–" if np.isnan(value) else f"{value:.2f}")
            assert text.get_color() == ("white" if value > 0.6 else "black")
        assert len(axis.texts) == 4
    assert bar.get_ylabel() == "|x ∩ y| / |y|"


def test_changes_are_a_heat_map_around_nothing():
    """A row for what is off, a column for a language; a scale on which no change is in the middle; signs written."""
    changes = {"zh": {"en": -0.01, "zh": 0.2}, "random": {"en": -0.0001, "zh": 0.02}}
    (axis,) = draw_changes(changes).axes
    (image,) = axis.get_images()
    np.testing.assert_array_equal(image.get_array(), [[-0.01, 0.2], [-0.0001, 0.02]])
    assert image.get_clim() == (-0.2, 0.2) and axis.get_xlabel() == "change in bits per byte (+ is worse)"
    assert ticks(axis) == ["English", "Chinese"] and ticks(axis, "y") == ["Chinese", "random\nneurons"]
    assert [text.get_text() for text in axis.texts] == ["-0.010", "+0.200", "+0.000", "+0.020"]
    assert [text.get_color() for text in axis.texts] == ["black", "white", "black", "black"]


@pytest.mark.parametrize(
    "languages", ["en de fr es ru zh", "en de fr es ru zh ja ko vi th sw", "en Norwegian_Bokmål_x fr es"]
)
def test_names_of_languages_do_not_run_into_each_other(languages):
    """In a picture over one column: six lie, more stand upright, and so does a long one."""
    figure = draw_changes({"zh": dict.fromkeys(languages.split(), 0.1)})
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_numbers_of_an_overlap_do_not_run_into_each_other():
    """Of six languages in three panels, as in the demo: with room between two cells."""
    names = ["en", "de", "fr", "es", "ru", "zh"]
    figure = draw_overlap({name: np.full((6, 6), 0.25) for name in ("all", "attention", "feed_forward")}, names)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts[:6]]
    assert all(left.x1 + 0.05 * left.width < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize("names, angle", [(["a", "b"], 0), (["en", "zh_own"], 90)])
def test_long_names_of_sets_stand_upright(names, angle):
    """So that they do not run into each other."""
    axis = draw_overlap({"all": np.eye(2)}, names).axes[0]
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {angle}


def test_layers_add_up_attention_and_feed_forward():
    """One line for each set: neurons of a block over the four projections of attention, and over the other three."""
    figure = draw_layers(LAYERS)
    assert curves(figure) == {
        ("attention", "Chinese"): [11, 2, 3],
        ("feed-forward", "Chinese"): [7, 8, 9],
        ("attention", "English"): [0, 5, 0],
        ("feed-forward", "English"): [1, 3, 1],
    }
    assert [axis.get_xlabel() for axis in figure.axes] == ["block", "block"]
    assert figure.axes[0].get_ylabel() == "neurons"
    assert all(axis.get_ylim()[0] == 0 for axis in figure.axes)


@pytest.mark.parametrize("most, whole", [(3, True), (0.3, False)])
def test_counts_of_layers_have_whole_ticks(most, whole):
    """No half neurons beside few of them; shares have what ticks they need."""
    figure = draw_layers({"zh": {"q_proj": np.array([most, 0, 0]), "down_proj": np.array([0, most, 0])}})
    figure.canvas.draw()
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_yticks()) == whole


def test_lines_have_a_panel_a_colour_and_a_scale():
    """A name keeps its colour in every panel, and all panels have one vertical scale."""
    figure = draw_lines(PANELS, "share, %")
    named = {("words", "English"): [1, 2, 3], ("words", "Chinese"): [4, 5, 6], ("all", "Chinese"): [9]}
    assert curves(figure) == named
    first, second = figure.axes
    assert first.get_ylabel() == "share, %" and first.get_ylim() == second.get_ylim()
    assert first.get_xlabel() == second.get_xlabel() == "block"
    assert first.get_ylim()[0] <= 1 and first.get_ylim()[1] >= 9


@pytest.mark.parametrize("columns, shape", [(2, (2, 3)), (1, (5, 1))])
def test_panels_wrap_to_the_width_of_the_page(columns, shape):
    """Five panels are two rows, or over one column of a page five; the empty places of the last show no axes."""
    figure = draw_lines({str(n): {"x": np.arange(3.0) * n} for n in range(5)}, "y", columns=columns)
    rows, across = figure.axes[0].get_gridspec().get_geometry()
    assert (rows, across) == shape and figure.get_figwidth() == WIDTHS[columns]
    assert [axis.axison for axis in figure.axes] == [True] * 5 + [False] * (rows * across - 5)
    assert curves(figure)["4", "x"] == [0, 4, 8]


def test_rows_have_as_many_panels_as_are_wanted():
    """Figure 1 is a row for each of two models, of four languages."""
    figure = draw_lines({str(n): {"x": np.arange(3.0)} for n in range(8)}, "y", per_row=4)
    assert figure.axes[0].get_gridspec().get_geometry() == (2, 4)


def test_every_unit_has_its_own_scale():
    """Panels of one unit have one vertical scale, those of another unit theirs, and each unit is named."""
    panels = {"a": {"x": np.array([0.0, 1.0])}, "b": {"x": np.array([0.0, 50.0])}, "c": {"x": np.array([0.0, 9.0])}}
    figure = draw_lines(panels, {"a": "%", "b": "bits", "c": "%"})
    a, b, c = figure.axes
    assert a.get_ylim() == c.get_ylim() != b.get_ylim()
    assert [axis.get_ylabel() for axis in figure.axes] == ["%", "bits", "%"]


@pytest.mark.parametrize("passed, places", [(False, [1.5, 6.5]), (True, [2, 7])])
def test_stages_are_marked(passed, places):
    """A line behind the N1 blocks that understand, one before the N2 that generate, with their numbers above."""
    values = np.arange(9.0 + passed)
    (axis,) = draw_lines({"": {"x": values}}, "y", stages=(2, 2), passed=passed).axes
    marks = [line.get_xdata()[0] for line in axis.get_lines() if line.get_gid() == "stage"]
    assert marks == places and [text.get_text() for text in axis.texts] == ["N1 = 2", "N2 = 2"]


def test_points_have_intervals_and_stand_beside_each_other():
    """Along a logarithmic axis with the numbers themselves; what has one number alone stands beside the others."""
    several = Points(np.array([100.0, 400]), np.array([1.0, 3]), np.array([0.5, 2]), np.array([2.0, 3.5]))
    one = Points(np.array([400.0]), np.array([-1.0]), np.array([-2.0]), np.array([0.0]))
    panels = {"reasoning": {"neurons": several, "random": one, "lora": one}}
    (axis,) = draw_points(panels, {"reasoning": "points"}, "documents", levels={"reasoning": 0}, level="original").axes
    assert axis.get_xscale() == "log" and ticks(axis) == ["100", "400"]
    neurons, random, lora = (found.lines[0] for found in axis.containers)
    assert list(neurons.get_xdata()) == [100, 400] and list(neurons.get_ydata()) == [1, 3]
    assert len({400.0, float(random.get_xdata()[0]), float(lora.get_xdata()[0])}) == 3
    ends = [segment[:, 1].tolist() for segment in axis.containers[0].lines[2][0].get_segments()]
    assert ends == [[0.5, 2], [2, 3.5]]


def test_stacked_values_stand_on_each_other():
    """Each column begins where the one below it ends."""
    figure = draw_lines({"words": PANELS["words"]}, "share, %", stacked=True)
    by_name = named_bars(figure.axes[0])
    assert by_name == {"English": [(0, 0, 1), (1, 0, 2), (2, 0, 3)], "Chinese": [(0, 1, 4), (1, 2, 5), (2, 3, 6)]}


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
    assert ticks(axis) == ["English", "Chinese"] and axis.get_ylabel() == "change"
    assert any(list(line.get_ydata()) == [0, 0] for line in axis.get_lines()), "a line at nought"


def test_bars_with_long_names_lie():
    """Below each other, the first on top, so that the names can be read."""
    places = ["under", "under+solve_ffn+gen"]
    (axis,) = draw_bars({"own": np.array([3.0, -1.0])}, places, "change").axes
    assert [length for _, _, length in named_bars(axis)["own"]] == [3, -1]
    words = ["understanding blocks", "understanding blocks, feed-forward of task-solving blocks, generation blocks"]
    assert ticks(axis, "y") == words and axis.get_xlabel() == "change" and axis.yaxis_inverted()


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
    looks = {(tuple(shown.get_facecolor()[0]), shown.get_paths()[0].vertices.tobytes()) for shown in zero.collections}
    assert len(looks) == len(names) == len(figure.legends[0].get_texts())
    np.testing.assert_allclose(mean.collections[0].get_offsets(), [[SMALLEST, 0.3]])
    assert (mean.collections[0].get_facecolor() == zero.collections[1].get_facecolor()).all()
    assert [text.get_text() for text in zero.texts] == ["1×", "10×", "100×"]
    for line, factor in zip(zero.get_lines(), (1, 10, 100), strict=True):
        np.testing.assert_allclose(line.get_ydata(), factor * np.asarray(line.get_xdata()))


def test_more_curves_than_colours_differ_by_their_lines():
    """Colours come round again, with other markers and dashes; no two of 24 curves look alike."""
    figure = draw_lines({"all": {f"n{k}": np.array([k, k + 1.0]) for k in range(24)}}, "y")
    lines = figure.axes[0].get_lines()
    assert to_hex(lines[0].get_color()) == to_hex(lines[8].get_color())
    assert lines[0].get_marker() != lines[8].get_marker() and lines[0].get_linestyle() != lines[8].get_linestyle()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 24

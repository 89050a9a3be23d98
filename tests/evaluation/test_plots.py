"""The Pareto front, and the plot that shows it."""

from star_export.evaluation.plots import draw, pareto


def test_the_front_is_what_no_cheaper_one_equals() -> None:
    points = [(1, 5), (1, 6), (2, 6), (3, 9), (4, 8), (5, 10)]
    front = pareto(points, cost=lambda point: point[0], worth=lambda point: point[1])
    assert front == [(5, 10), (3, 9), (1, 6)]


def test_a_line_of_one_point_is_drawn() -> None:
    picture = draw({"a": [(2.0, 3.0)], "b": [(4.0, 1.0), (1.0, 2.0)]}, [(2.0, 3.0)],
                   strong={"a": "red"}, title="t", cost="x", worth="y")  # fmt: skip
    assert picture.startswith(b"\x89PNG")

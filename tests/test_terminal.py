"""What stands on the terminal while a stage works."""

import io
import time

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.view.following.sparkline import sparkline
from pipeline.view.following.terminal import bar, bars


def console(encoding: str = "utf-8") -> Console:
    return Console(file=io.TextIOWrapper(io.BytesIO(), encoding), width=80, force_terminal=True)


def shown(of: Console) -> str:
    """The last that was drawn."""
    of.file.flush()
    return of.file.buffer.getvalue().decode().rpartition("train steps")[2]


def test_curves_of_loss_and_margin_stand_under_the_bar() -> None:
    screen = console()
    with bar(screen, "train", ()) as drawn:
        drawn.start(8, 0, "steps")
        for step in range(1, 9):
            drawn.advance(step, loss=0.8 - step / 20, **{"rewards/margins": step / 10})
    below = shown(screen)
    assert "       loss █▇▆▅▄▃▂▁ 0.75 -> 0.4" in below
    assert "     margin ▁▂▃▄▅▆▇█ 0.1 -> 0.8" in below
    assert all(len(line) <= 80 for line in below.splitlines()[1:] if "\x1b" not in line)


def test_a_step_that_is_done_again_is_drawn_once() -> None:
    screen = console()
    with bar(screen, "train", ()) as drawn:
        drawn.start(4, 0, "steps")
        for step, loss in ((1, 1.0), (2, 9.0), (3, 9.0), (2, 0.5), (3, 0.0)):
            drawn.advance(step, loss=loss)
    assert "loss █▅▁ 1 -> 0" in shown(screen)


def test_nothing_is_drawn_of_other_stages_nor_where_blocks_cannot_be_written() -> None:
    for screen, figures in ((console(), {"pairs/s": 3.0}), (console("ascii"), {"loss": 0.5})):
        with bar(screen, "train", ()) as drawn:
            drawn.start(4, 0, "steps")
            for step in range(1, 4):
                drawn.advance(step, **figures)
        assert not set("▁▂▃▄▅▆▇█") & set(shown(screen))


def test_of_several_bars_those_that_are_done_lose_their_curves() -> None:
    screen = console()
    with bars(screen) as draw, draw("one") as first, draw("two") as second:
        for each, loss in ((first, 1.0), (second, 2.0)):
            each.start(2, 0, "steps")
            each.advance(1, loss=loss)
            each.advance(2, loss=loss + 0.25)
        second.start(3, 2, "steps")
    below = screen.file.buffer.getvalue().decode().rpartition("two steps")[2]
    assert "2 -> 2.25" in below
    assert "1 -> 1.25" not in below


def test_of_more_bars_than_a_screen_has_lines_those_at_work_are_seen() -> None:
    screen = Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"), width=80, height=10, force_terminal=True)
    with bars(screen) as draw:
        for number in range(20):
            with draw(f"trial-{number}.") as each:
                each.start(2, 0, "steps")
                each.advance(2)
        with draw("last") as last:
            last.start(2, 0, "steps")
            last.advance(1)
            told, until = "", time.monotonic() + 5  # it is drawn ten times a second
            while "last steps" not in told and time.monotonic() < until:
                screen.file.flush()
                told = screen.file.buffer.getvalue().decode()
    assert "last steps" in told
    assert all(f"trial-{number}. steps" in told for number in range(20))


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=200), st.integers(1, 60))
def test_a_sparkline_fits_whatever_it_is_given(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(len(values), width)


def test_a_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0.0, 1.0, 2.0, 7.0], 10) == "▁▂▃█"
    assert sparkline([1.0, 1.0], 10) == "▁▁"
    assert sparkline([0.0, 2.0, 10.0, 12.0], 2) == "▁█"
    assert sparkline([0.0, float("nan"), 1.0], 3) == "▁ █"

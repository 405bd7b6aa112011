"""Hypothesis strategies that several tests share."""

from hypothesis import strategies as st


@st.composite
def renders(draw: st.DrawFn) -> tuple[int, int, int, tuple[int, int, int, int]]:
    """height, width, tile side, and a box (y0, x0, y1, x1) inside."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    h, w = draw(st.integers(1, height)), draw(st.integers(1, width))
    y, x = draw(st.integers(0, height - h)), draw(st.integers(0, width - w))
    box = (y, x, y + h, x + w)
    return height, width, draw(st.integers(1, 45)), box


@st.composite
def patches(draw: st.DrawFn, r_max: int = 4096) -> tuple[int, int, int, int]:
    """r, y, x, p: a patch of side p at (y, x) of a view of side r."""
    r = draw(st.integers(1, r_max))
    p = draw(st.integers(1, min(r, 64)))
    return r, draw(st.integers(0, r - p)), draw(st.integers(0, r - p)), p

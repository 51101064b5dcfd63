"""What of an image is to be seen, and where: decided from its size alone, before a pixel is decoded."""

from typing import NamedTuple

Box = tuple[float, float, float, float]  # left, top, right, bottom


class View(NamedTuple):
    """A part of an image, resized and laid on a square canvas of zeros.

    Attributes:
        box: the part, in pixels of the upright image. Whole numbers, but for parts of extreme strips.
        width, height: size to which the part is resized.
        left, top: where it lies on the canvas; what reaches over an edge is cut off.
        frame: the only rectangle of the canvas that is filled; None: all of it.
        flip: whether the canvas is to be mirrored, left to right. Whoever renders leaves that to the device.
    """

    box: Box
    width: int
    height: int
    left: int = 0
    top: int = 0
    frame: Box | None = None
    flip: bool = False

    def scale(self) -> float:
        """Return target pixels a source pixel, of the axis that needs more of them."""
        left, top, right, bottom = self.box
        return max(self.width / (right - left), self.height / (bottom - top))

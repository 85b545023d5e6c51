"""A curve drawn with braille characters, each of which holds two by four points."""

import math
from collections.abc import Mapping

# Bit of each point of a braille character, by row and column.
_POINTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def curve(values: Mapping[int, float], last: int, width: int, height: int) -> list[str]:
    """The lines of a curve of ``values`` (positive, by epoch), from epoch 1 at the left to epoch ``last`` at the right.

    The scale is logarithmic, and its ends are written at the left. ``width`` and ``height`` of the whole are counted in
    characters. Without a value there is no line.
    """
    values = {epoch: value for epoch, value in values.items() if 1 <= epoch <= last}
    if not values:
        return []
    high, low = max(values.values()), min(values.values())
    labels = [f"{high:,.0f} ┤", *([" │"] * (height - 2)), f"{low:,.0f} ┤"]
    margin = max(map(len, labels))
    columns, rows = 2 * max(width - margin, 1), 4 * height
    cells = [[0] * (columns // 2) for _ in range(height)]

    def place(epoch: int) -> tuple[float, float]:
        x = (epoch - 1) / max(last - 1, 1) * (columns - 1)
        y = math.log(high / values[epoch]) / math.log(high / low) if high > low else 0.5
        return x, y * (rows - 1)

    points = [place(epoch) for epoch in sorted(values)]
    for (x, y), (next_x, next_y) in zip(points, points[1:] or points, strict=False):
        steps = max(1, math.ceil(max(abs(next_x - x), abs(next_y - y))))
        for step in range(steps + 1):
            column = round(x + (next_x - x) * step / steps)
            row = round(y + (next_y - y) * step / steps)
            if 0 <= column < columns:
                cells[row // 4][column // 2] |= _POINTS[row % 4][column % 2]
    return [
        label.rjust(margin) + "".join(chr(0x2800 + cell) for cell in line)
        for label, line in zip(labels, cells, strict=True)
    ]

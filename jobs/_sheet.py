"""A contact sheet: pictures in rows, each with its words beneath."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP, _LINE, _LETTER = 8, 13, 6


def sheet(images: Sequence[Image.Image], texts: Sequence[str], columns: int = 6, side: int = 128) -> Image.Image:
    """`images` at `side` pixels in `columns`, with `texts` wrapped beneath; an RGB picture."""
    wrapped = [textwrap.wrap(text, side // _LETTER, max_lines=3, placeholder=" ...") for text in texts]
    columns = min(columns, len(images))
    cell = side + _GAP, side + _GAP + _LINE * max(map(len, wrapped))
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for number, (image, lines) in enumerate(zip(images, wrapped, strict=True)):
        x, y = _GAP + number % columns * cell[0], _GAP + number // columns * cell[1]
        canvas.paste(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (x, y))
        draw.multiline_text((x, y + side + 1), "\n".join(lines), "black", font, spacing=_LINE - 11)
    return canvas

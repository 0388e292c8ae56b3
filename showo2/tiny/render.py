"""Scenes to pictures."""

from PIL import Image, ImageDraw

from showo2.tiny.world import BACKGROUND, COLOURS, Object, Scene


def render(scene: Scene, size: int | tuple[int, int]) -> Image.Image:
    """Draw a scene, antialiased, as an RGB picture of `size` pixels (a side, or width and height).

    On a picture that is not square the scene fills the centred square, so a centre crop gives back the square picture.
    """
    width, height = (size, size) if isinstance(size, int) else size
    # Supersampling: more for small pictures, where an edge is a larger share of the shape.
    scale = 4 if min(width, height) <= 256 else 2
    side = min(width, height) * scale
    left, top = (width * scale - side) / 2, (height * scale - side) / 2
    canvas = Image.new("RGB", (width * scale, height * scale), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.objects:
        _draw(draw, thing, left, top, side)
    return canvas.reduce(scale)


def _draw(draw: ImageDraw.ImageDraw, thing: Object, left: float, top: float, side: int) -> None:
    x0, x1 = left + (thing.x - thing.r) * side, left + (thing.x + thing.r) * side - 1
    y0, y1 = top + (thing.y - thing.r) * side, top + (thing.y + thing.r) * side - 1
    fill = COLOURS[thing.colour]
    if thing.shape == "circle":
        draw.ellipse((x0, y0, x1, y1), fill=fill)
    elif thing.shape == "square":
        draw.rectangle((x0, y0, x1, y1), fill=fill)
    else:
        draw.polygon(((x0, y1), (x1, y1), ((x0 + x1) / 2, y0)), fill=fill)

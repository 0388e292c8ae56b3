"""Draw the pictures, the clips or the stories that a file of prompts asks for.

python -m jobs.generate --checkpoint DIR --prompts FILE.jsonl --out DIR --seed N

One `{"prompt": "..."}` a line; writes 00000.png, 00001.png, ... (with --frames 17: 00000.mp4, ...) and manifest.json. A clip
begins with a picture where its line names one: `{"prompt": "...", "image": "first.png"}`, a path from the file's folder. With
--story 4 each prompt begins a story, and its file shows the story's pictures in a row, each with its text. Run again, it keeps
what is done.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console

from jobs._console import progress, told_plainly
from jobs._sheet import sheet
from pipelines.publish import (
    collect_leftovers,
    done,
    filesystem,
    fingerprint,
    publish,
    publish_json,
    publish_record,
    read_bytes,
    records,
)
from showo2.movies import CLIP_RATE, mp4, pictures

if TYPE_CHECKING:
    from showo2.generate import Showo2Pipeline

FAMILY = "pictures"


@dataclass(frozen=True)
class Generate:
    """Draw what a file of prompts asks for: 00000.png, 00001.png, ... and manifest.json."""

    prompts: Path
    """JSON lines, each {"prompt": "..."}, with "image": "FILE" where a clip shall begin with a picture"""
    out: str
    """folder or URL that the pictures go to"""
    checkpoint: str = "tiny:reference"
    """folder or URL of an exported model, Hub id, or tiny:reference"""
    seed: int = 0
    """picture i's noise depends on (seed, i) alone"""
    points: int = 50
    """points of the time grid, one more than Euler steps"""
    guidance: float = 5.0
    """strength of classifier-free guidance; 1 is none"""
    size: int | None = None
    """side in pixels, a multiple of 16 (default: the model's)"""
    frames: int = 1
    """of a clip, 1 more than a multiple of 4 (17 is what training clips have), played 8 a second; 1 draws pictures"""
    story: int = 0
    """go on from each prompt with texts and up to so many pictures; 0 draws the prompts"""
    batch: int = 16
    """pictures drawn together"""
    device: str | None = None
    """where the model runs (default: a GPU if there is one)"""
    sheet: bool = False
    """also write sheet.png: all pictures, or every fourth frame of the clips, with their prompts"""

    @property
    def drawn(self) -> str:
        """What is drawn, as people call it."""
        return "stories" if self.story else "pictures" if self.frames == 1 else "clips"

    @property
    def extension(self) -> str:
        """Of the files that are drawn."""
        return "png" if self.frames == 1 else "mp4"


@dataclass(frozen=True)
class Prompt:
    """A line of the file; `image` is the picture that a clip begins with."""

    text: str
    image: Path | None = None

    @property
    def key(self) -> list[str | None]:
        """What a result depends on: the text, and the bytes of the picture."""
        return [self.text, None if self.image is None else _sha256(self.image.read_bytes())]


@dataclass(frozen=True)
class Batch:
    """The unit of work: consecutive prompts, drawn together; `id` hashes all that the pictures depend on."""

    id: str
    start: int
    prompts: list[str]
    images: list[Path]
    extension: str

    @property
    def names(self) -> list[str]:
        """File names of its pictures."""
        return [f"{self.start + i:05d}.{self.extension}" for i in range(len(self.prompts))]


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSON lines file; blank lines are passed over, a bad one is an error that names file:line."""
    prompts = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            asked = json.loads(line.decode())
            prompt, image = asked["prompt"], asked.get("image")
            if not isinstance(prompt, str) or not isinstance(image, str | None):
                raise TypeError(f"the prompt is {prompt!r}, the image {image!r}: both are texts")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path}:{number}: expected {{"prompt": "..."}} in UTF-8: {error!r}') from None
        prompts.append(Prompt(prompt, None if image is None else _picture(path, number, image)))
    if not prompts:
        raise ValueError(f'{path}: no prompts; write one {{"prompt": "..."}} a line')
    if 0 < (begun := sum(prompt.image is not None for prompt in prompts)) < len(prompts):
        raise ValueError(f"{path}: {begun} of {len(prompts)} lines name an image; give one to each line, or to none")
    return prompts


def _picture(prompts: Path, number: int, name: str) -> Path:
    """The path of a line's picture, which can be read."""
    path = prompts.parent / name
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{prompts}:{number}: image {path}: {error}; name a picture, as a path from the file's folder") from None
    return path


def generate(config: Generate) -> dict[str, Any]:
    """Draw what is not yet there, and return the manifest."""
    if config.story and (config.frames != 1 or config.size is not None or config.sheet):
        raise ValueError("--story goes with no --frames, --size or --sheet: its pictures have the model's size and stand in a row")
    asked = read_prompts(config.prompts)
    prompts = [prompt.text for prompt in asked]
    if asked[0].image and (config.frames == 1 or config.size is not None):
        raise ValueError("pictures begin clips of the model's size: add --frames 17, and no --size, or leave the images out")
    # Imported late: --help and a bad prompt answer at once.
    from showo2.generate import Sampling, Showo2Pipeline

    sampling = Sampling(config.points, config.guidance)
    collect_leftovers(config.out)
    pipeline = Showo2Pipeline.from_pretrained(config.checkpoint, device=config.device)
    size = config.size or pipeline.model.config.size
    request = {
        "checkpoint_hash": pipeline.checkpoint_hash,
        "sampler": "euler",
        **asdict(sampling),
        "seed": config.seed,
        "size": size,
        "frames": config.frames,
        "story": config.story,
        "batch": config.batch,
    }
    batches = [
        Batch(fingerprint(request, start, [p.key for p in part]), start, [p.text for p in part],
              [p.image for p in part if p.image], config.extension)
        for start in range(0, len(prompts), config.batch)
        for part in [asked[start : start + config.batch]]
    ]
    finished = _finished(config.out, batches)
    Console().print(
        f"{len(prompts)} prompts, {size} px, {sampling.points} points, guidance {sampling.guidance:g}, "
        f"seed {config.seed}, checkpoint {config.checkpoint} ({pipeline.checkpoint_hash[:12]}); "
        f"{sum(len(b.prompts) for b in batches if b.id in finished)} pictures are there already"
    )
    publish_json(config.out, "config.json", asdict(config))
    with progress() as bar:
        task = bar.add_task("pictures", total=len(prompts))
        for batch in batches:
            if batch.id not in finished:
                _publish(config, batch, _drawn(pipeline, config, batch))
            bar.advance(task, len(batch.prompts))
    _forget_others(config.out, batches)
    manifest = {
        "request": request,
        "request_hash": fingerprint(request, [prompt.key for prompt in asked]),
        "prompts": prompts,
        "files": [
            {"path": name, "sha256": hashlib.sha256(read_bytes(config.out, name)).hexdigest()}
            for batch in batches
            for name in batch.names
        ],
    }
    publish_json(config.out, "manifest.json", manifest)
    if config.sheet:
        names = [name for batch in batches for name in batch.names]
        publish(config.out, "sheet.png", _png(_shown([read_bytes(config.out, name) for name in names], prompts, config.frames)))
    return manifest


def _shown(drawn: list[bytes], prompts: list[str], frames: int) -> Image.Image:
    """All pictures above their prompts; or of each clip every fourth frame, a clip a row."""
    from showo2.vae import TEMPORAL

    if frames == 1:
        return sheet([Image.open(io.BytesIO(data)) for data in drawn], prompts)
    images = [frame for data in drawn for frame in pictures(data)[::TEMPORAL]]
    columns = len(images) // len(drawn)
    return sheet(images, [text for prompt in prompts for text in (prompt, *[""] * (columns - 1))], columns)


def _drawn(pipeline: Showo2Pipeline, config: Generate, batch: Batch) -> list[bytes]:
    """The files of a batch; each carries its prompt, and a story its texts."""
    request: dict[str, Any] = {"guidance": config.guidance, "points": config.points, "seed": config.seed,
                               "batch": config.batch, "first": batch.start}  # fmt: skip
    if config.frames != 1:
        if batch.images:
            clips = pipeline.animate([Image.open(path) for path in batch.images], batch.prompts, frames=config.frames, **request)
        else:
            clips = pipeline.video(batch.prompts, frames=config.frames, size=config.size, **request)
        return [mp4(clip, CLIP_RATE, comment=prompt) for clip, prompt in zip(clips, batch.prompts, strict=True)]
    if config.story:
        stories = pipeline.stories(batch.prompts, pictures=config.story, **request)
        return [_story([prompt, *told]) for prompt, told in zip(batch.prompts, stories, strict=True)]
    images = pipeline.image(batch.prompts, size=config.size, **request)
    return [_png(image, prompt=prompt) for image, prompt in zip(images, batch.prompts, strict=True)]


def _story(parts: list[str | Image.Image]) -> bytes:
    """The pictures in a row, each above the text that led to it; what was told without a picture stands alone."""
    texts, images = [""], []
    for part in parts:
        if isinstance(part, str):
            texts[-1] = f"{texts[-1]} {part}".strip()
        else:
            images.append(part)
            texts.append("")
    if texts[-1] or not images:
        images.append(Image.new("RGB", (1, 1), "white"))
    else:
        texts.pop()
    shown = sheet(images, texts, columns=len(images), side=max(128, *(image.width for image in images)))
    return _png(shown, prompt=str(parts[0]), story=json.dumps(texts))


def _png(image: Image.Image, **texts: str) -> bytes:
    about = PngInfo()
    for name, text in texts.items():
        about.add_itxt(name, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=about)
    return buffer.getvalue()


def _publish(config: Generate, batch: Batch, drawn: list[bytes]) -> None:
    files = [
        {**publish(config.out, name, data), "sha256": _sha256(data)}
        for name, data in zip(batch.names, drawn, strict=True)
    ]
    publish_record(
        config.out, FAMILY, batch.id, {"fingerprint": batch.id, "rows": len(files), "files": files}
    )


def _finished(out: str, batches: list[Batch]) -> set[str]:
    """Ids of the batches whose pictures are all there, byte for byte as recorded."""
    wanted = {batch.id for batch in batches}
    return {
        key
        for key, record in done(out, FAMILY).items()
        if key in wanted and all(_sha256(read_bytes(out, f["path"])) == f["sha256"] for f in record["files"])
    }


def _forget_others(out: str, batches: list[Batch]) -> None:
    """Remove the records of other requests to this folder, and their pictures that this one did not replace."""
    fs, base = filesystem(out)
    wanted, names = {batch.id for batch in batches}, {name for batch in batches for name in batch.names}
    for key, record in records(out, FAMILY).items():
        if key not in wanted:
            for path in {f["path"] for f in record["files"]} - names:
                if fs.exists(f"{base}/{path}"):
                    fs.rm_file(f"{base}/{path}")
            fs.rm_file(f"{base}/units/{FAMILY}/{key}.json")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """The command line."""
    config = tyro.cli(Generate, description=__doc__)
    with told_plainly():
        manifest = generate(config)
    Console().print(f"{len(manifest['files'])} {config.drawn} in {config.out}")


if __name__ == "__main__":
    main()

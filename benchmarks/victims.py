"""Every rule's victims and every kind of copy, planted among good pairs: does the ledger name each one rightly?

Writes tars of 1,000 rows (4 of 10 rows are good; pictures are coloured 1/f fields with grain), an evaluation set, then
curates them with every rule on. Recall and precision are of the planted near copies: resized, recompressed, cropped, or of a picture
of the evaluation set.

    python -m benchmarks.victims --json FILE
"""

from __future__ import annotations

import io
import json
import random
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tyro
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from benchmarks._report import Aim, Report, Row
from jobs._ray import connect
from pipelines.curate import CurateConfig, curate
from pipelines.groups import Dedup
from pipelines.rules import Rules
from showo2.movies import mp4

RULES = Rules(
    max_aspect=2.5, max_bytes=600_000, formats=("jpeg", "png", "webp", "gif", "mpeg4"), min_words=4, max_words=40,
    drop_junk_captions=True, languages=("en",), min_contrast=6.0, min_sharpness=10.0, max_text_density=0.3,
    min_aesthetic=4.5, max_watermark=0.8, max_nsfw=0.5, min_similarity=0.2,
    min_seconds=2.2, min_motion=1.5, max_motion=30.0, max_cuts=0, max_frozen=0.5,
)  # fmt: skip
TAR_ROWS = 1000
_SCREEN = (560, 520)
COPIES = ("same", "resized", "recompressed", "cropped")
NEAR = (*COPIES[1:], "evaluation")  # the last: copies of an evaluation set's pictures
_SUBJECTS = ["river", "mountain", "harbour", "garden", "castle", "bridge", "forest", "station", "library", "market", "kitchen", "tower", "island", "valley"]
_VERBS = ["beside", "behind", "above", "below", "facing", "crossing", "touching", "circling", "leaving"]
_QUALITIES = ["quiet", "crowded", "golden", "frozen", "ancient", "empty", "narrow", "painted", "windy", "distant", "broken", "sunny", "rainy", "green"]
_THINGS = ["boats", "horses", "lanterns", "children", "bicycles", "bottles", "umbrellas", "carriages", "windows", "flowers", "barrels", "ladders"]


@dataclass(frozen=True)
class Options:
    """json: where the report goes. rows: planted. folder: for the tars; by default a temporary one."""

    json: str = "build/benchmarks/victims.json"
    rows: int = 20_000
    folder: str | None = None


@dataclass(frozen=True)
class Pair:
    """A row to be written; `group`: copies of one picture, of which one stays."""

    account: str
    picture: bytes | None
    text: bytes | None
    scores: dict[str, float] = field(default_factory=dict)
    extension: str = "jpg"
    group: str = ""


_GOOD = {"aesthetic_score_laion_v2": 5.5, "watermark_score": 0.1, "clip_similarity_vitb32": 0.3,
         "nsfw_score_opennsfw2": 0.01}  # fmt: skip


class Painter:
    """Pictures and captions, each drawn from a generator of its own seed."""

    def __init__(self, seed: int) -> None:
        self.numbers = np.random.default_rng(seed)
        self.random = random.Random(seed)
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64))) + 1 / 64
        self.falloff = 1 / frequency**1.2
        self.grain = self.numbers.normal(0, 12, (1600, 1600, 1)).astype(np.float32)

    def field(self, size: tuple[int, int] = (560, 540)) -> Image.Image:
        """A smooth coloured field."""
        noise = self.numbers.normal(size=(3, 64, 64))
        values = np.real(np.fft.ifft2(np.fft.fft2(noise) * self.falloff))
        values = (values - values.min()) / (values.max() - values.min()) * 255
        return Image.fromarray(values.transpose(1, 2, 0).astype(np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )

    def picture(self, size: tuple[int, int] = (560, 540)) -> Image.Image:
        """A field with grain."""
        width, height = size
        x, y = self.random.randrange(64), self.random.randrange(64)
        values = np.asarray(self.field(size), np.float32) + self.grain[y : y + height, x : x + width]
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))

    def pan(self, frames: int, step: float = 5.0) -> list[Image.Image]:
        """A camera that moves over a field, `step` pixels from frame to frame."""
        field = self.field((900, 540))
        return [field.transform(_SCREEN, Image.Transform.EXTENT, (step * n, 0, step * n + _SCREEN[0], _SCREEN[1]))
                for n in range(frames)]  # fmt: skip

    def noise(self) -> Image.Image:
        """Blocks of any brightness, without likeness to the picture before."""
        blocks = self.numbers.integers(0, 256, (13, 14), np.uint8)
        return Image.fromarray(blocks).resize(_SCREEN, Image.Resampling.NEAREST).convert("RGB")

    def caption(self) -> bytes:
        """A sentence that says nothing about the picture."""
        pick = self.random.choice
        return (
            f"The {pick(_QUALITIES)} {pick(_SUBJECTS)} {pick(_VERBS)} a {pick(_QUALITIES)} {pick(_SUBJECTS)}"
            f" with {self.random.randrange(2, 99)} {pick(_QUALITIES)} {pick(_THINGS)} and the {pick(_SUBJECTS)}"
            f" {pick(_VERBS)} {pick(_QUALITIES)} {pick(_THINGS)}"
        ).encode()


def encoded(image: Image.Image, kind: str = "jpeg", **options: object) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "jpeg" else {}) | options)
    return buffer.getvalue()


def page(painter: Painter) -> Image.Image:
    """A page of writing."""
    image = Image.new("RGB", (560, 540), "white")
    draw = ImageDraw.Draw(image)
    for line in range(22):
        draw.text((8, 24 * line), (painter.caption() * 2).decode()[:90], "black", font_size=20)
    return image


def victims(paint: Painter) -> dict[str, Callable[[], Pair]]:
    """One maker of a row for each account that a row alone can have."""

    def row(
        account: str, image: Image.Image | bytes | None = None, text: bytes | None = None, **more: object
    ) -> Pair:
        data = image if isinstance(image, bytes) else encoded(image or paint.picture())
        return Pair(account, data, paint.caption() if text is None else text, **more)  # type: ignore[arg-type]

    def scored(account: str, name: str, value: float) -> Callable[[], Pair]:
        return lambda: row(account, scores={**_GOOD, name: value})

    def video(account: str, *frames: Image.Image) -> Pair:
        return row(account, mp4(frames, 12, "mpeg4"), scores=_GOOD, extension="mp4")

    return {
        "good_video": lambda: video("kept", *paint.pan(36)),
        "cut": lambda: video("dropped:cut", *paint.pan(18), *(ImageChops.invert(frame) for frame in paint.pan(18))),
        "frozen": lambda: video("dropped:frozen", *(moved := paint.pan(8)), *moved[-1:] * 40),
        "still": lambda: video("dropped:still", *paint.pan(36, step=0.6)),
        "restless": lambda: video("dropped:restless", *(paint.noise() for _ in range(36))),
        "video_length": lambda: video("dropped:video_length", *paint.pan(25)),
        "too_short": lambda: video("failed:too_short", *paint.pan(12)),
        "no_video": lambda: row("failed:undecodable", mp4(paint.pan(12), 12, "mpeg4")[:900], scores=_GOOD, extension="mp4"),
        "too_small": lambda: row("dropped:too_small", paint.picture((500, 700))),
        "missing_caption": lambda: row("dropped:missing_caption", text=b" \n"),
        "animated": lambda: row(
            "dropped:animated", encoded(paint.field(), "gif", save_all=True, append_images=[paint.field()]),
            extension="gif",
        ),
        "extreme_aspect": lambda: row("dropped:extreme_aspect", paint.picture((1400, 520))),
        "too_heavy": lambda: row("dropped:too_heavy", encoded(paint.picture(), "png"), extension="png"),
        "unwanted_format": lambda: row(
            "dropped:unwanted_format", encoded(paint.field((520, 530)).convert("P"), "bmp"), extension="bmp"
        ),
        "caption_length": lambda: row("dropped:caption_length", text=b"A river"),
        "caption_long": lambda: row("dropped:caption_length", text=b" ".join([paint.caption()] * 5)),
        "junk_caption": lambda: row(
            "dropped:junk_caption", text=b"click here to see more pictures %d" % paint.random.randrange(10**6)
        ),
        "language": lambda: row(
            "dropped:language",
            text=f"Une vieille maison près de la rivière avec {paint.random.randrange(99)} fenêtres ouvertes".encode(),
        ),
        "uniform": lambda: row("dropped:uniform", Image.blend(paint.field(), Image.new("RGB", (560, 540), "grey"), 0.95)),
        "blurred": lambda: row("dropped:blurred", paint.field().filter(ImageFilter.GaussianBlur(8))),
        "much_text": lambda: row("dropped:much_text", page(paint)),
        "aesthetic": scored("dropped:aesthetic", "aesthetic_score_laion_v2", 3.0),
        "watermark": scored("dropped:watermark", "watermark_score", 0.95),
        "nsfw": scored("dropped:nsfw", "nsfw_score_opennsfw2", 0.9),
        "dissimilar": scored("dropped:dissimilar", "clip_similarity_vitb32", 0.05),
        "truncated": lambda: row("failed:truncated", encoded(paint.picture())[:9000]),
        "not_an_image": lambda: row("failed:not_an_image", b"<html>404</html>"),
        "empty_file": lambda: row("failed:empty_file", b""),
        "caption_encoding": lambda: row("failed:caption_encoding", text=b"caf\xe9 \xff on a quiet road"),
        "missing_image": lambda: Pair("failed:missing_image", None, paint.caption()),
    }  # fmt: skip


def copies(paint: Painter, kind: str, group: str) -> list[Pair]:
    """A picture and its copy."""
    image = paint.picture((640, 600))
    original = encoded(image)
    if kind == "resized":
        copy = encoded(image.resize((576, 540), Image.Resampling.LANCZOS))
    elif kind == "recompressed":
        copy = encoded(image, quality=35)
    elif kind == "cropped":
        width, height = round(0.05 * image.width), round(0.05 * image.height)
        left, top = paint.random.randint(0, width), paint.random.randint(0, height)
        copy = encoded(image.crop((left, top, left + image.width - width, top + image.height - height)))
    else:
        copy = original
    return [Pair("group", data, paint.caption(), _GOOD, group=group) for data in (original, copy)]


def rows(paint: Painter, count: int, evaluation: list[bytes]) -> Iterator[Pair]:
    """`count` pairs: 4 of 10 good, the others victims and copies in turn. Copies of what is in `evaluation`, too."""
    makers = cycle(victims(paint).values())
    planted = 0
    for turn in range(count):
        if planted >= count:
            return
        made = [Pair("kept", encoded(paint.picture()), paint.caption(), _GOOD) for _ in range(2)]
        kind = COPIES[turn % 4]
        if turn % 3 == 0:
            made += copies(paint, kind, f"{kind}{turn}")
        elif turn % 3 == 1 and turn % 9 == 1:
            image = paint.picture()
            evaluation.append(encoded(image, quality=70))
            copy = encoded(image.resize((700, 675)))
            made.append(Pair("evaluation", copy, paint.caption(), _GOOD, group=f"evaluation{turn}"))
        elif turn % 9 == 4:
            text = paint.caption()
            pair = [
                Pair("caption", encoded(paint.picture()), text, _GOOD, group=f"caption{turn}")
                for _ in range(2)
            ]
            made += [
                pair[0],
                Pair("caption", pair[1].picture, text.upper() + b" !", _GOOD, group=pair[0].group),
            ]
        else:
            made += [next(makers)() for _ in range(2)]
        yield from made
        planted += len(made)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """A tar as img2dataset writes it."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def plant(folder: Path, count: int, seed: int = 0) -> dict[str, Pair]:
    """Write `folder`/web/*.tar and `folder`/evaluation/0.tar; what was planted, by key, without the bytes."""
    for name in ("web", "evaluation"):
        (folder / name).mkdir(parents=True)
    planted: dict[str, Pair] = {}
    evaluation: list[bytes] = []
    members: list[tuple[str, bytes]] = []
    tars = 0
    for number, pair in enumerate(rows(Painter(seed), count, evaluation)):
        key = f"{number:06d}"
        planted[key] = Pair(pair.account, None, None, group=pair.group)
        data = (
            (pair.extension, pair.picture),
            ("txt", pair.text),
            ("json", json.dumps(pair.scores).encode()),
        )
        members += [(f"{key}.{extension}", value) for extension, value in data if value is not None]
        if (number + 1) % TAR_ROWS == 0:
            write_tar(folder / "web" / f"{tars:05d}.tar", members)
            members, tars = [], tars + 1
    if members:
        write_tar(folder / "web" / f"{tars:05d}.tar", members)
    write_tar(folder / "evaluation" / "0.tar", [(f"{n}.jpg", data) for n, data in enumerate(evaluation)])
    return planted


@dataclass(frozen=True)
class Verdict:
    """How the ledger compares with what was planted. `wrong`: rows with another account, described."""

    rows: int
    wrong: list[str]
    recall: dict[str, float]  # of planted near copies, by kind
    precision: float  # of rows called near copies


def curate_all(folder: Path, workers: int | None = None) -> CurateConfig:
    """Curate with every rule on, and return with what options."""
    config = CurateConfig(
        (f"web:coyo={folder}/web/*.tar",), str(folder / "data"), RULES, score=("pixels", "text", "video"),
        dedup=Dedup(near_pictures=True, near_captions=True), against=(f"test={folder}/evaluation/0.tar",),
        workers=workers,
    )  # fmt: skip
    curate(config)
    return config


def judge(folder: Path, planted: dict[str, Pair]) -> Verdict:
    """Compare the ledger with what was planted."""
    ledger = {row["key"]: row for row in pq.read_table(folder / "data" / "ledger.parquet").to_pylist()}
    key_of = {row["uid"]: key for key, row in ledger.items()}
    wrong = [] if ledger.keys() == planted.keys() else [f"{len(ledger)} accounts for {len(planted)} rows"]
    groups: dict[str, list[str]] = {}
    near_right = near_called = 0
    for key, pair in planted.items():
        row = ledger[key]
        account = f"{row['outcome']}:{row['reason']}" if row["reason"] else row["outcome"]
        if row["detail"] == "a near copy":
            near_called += 1
            near_right += planted[key_of[row["duplicate_of"]]].group == pair.group != ""
        if pair.group:
            groups.setdefault(pair.group, []).append(account)
        elif account != pair.account:
            wrong.append(f"{key}: planted {pair.account}, accounted {account} {row['detail'] or ''}")
    found: dict[str, list[bool]] = {}
    for group, accounts in groups.items():
        kind = group.rstrip("0123456789")
        copy = {"caption": "dropped:repeated_caption", "evaluation": "dropped:evaluation_set"}.get(kind, "duplicate")
        right = sorted(accounts) == ([copy] if kind == "evaluation" else sorted([copy, "kept"]))
        found.setdefault(kind, []).append(right)
        if not right and kind not in NEAR:
            wrong.append(f"{group}: {accounts}")
    recall = {kind: float(np.mean(found[kind])) for kind in NEAR}
    return Verdict(len(planted), wrong, recall, near_right / max(near_called, 1))


def run(options: Options) -> Report:
    """Plant, curate, judge."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        planted = plant(folder, options.rows)
        connect()
        curate_all(folder)
        verdict = judge(folder, planted)
    for line in verdict.wrong[:20]:
        print(line)
    rows = [
        Row("rows", verdict.rows, ""),
        Row("rows with another account than planted", len(verdict.wrong), ""),
    ]
    rows += [Row(f"recall, {kind}", value, "") for kind, value in verdict.recall.items()]
    aims = [
        Aim("rows with another account than planted", len(verdict.wrong), "==", 0),
        Aim("recall of near copies, the worst kind", min(verdict.recall.values()), ">=", 0.95),
        Aim("precision of near copies", verdict.precision, ">=", 0.95),
    ]
    return Report("victims", rows, aims)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    run(options).write(options.json)

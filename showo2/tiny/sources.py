"""`python -m showo2.tiny.sources --out DIR --pictures N --seed S`: the world of shapes as img2dataset would store it.

Three sources of WebDataset tars: `web` (noisy alt texts; small, duplicate and damaged pictures on purpose), `synthetic`
(clean, captions true) and `instruct` (LLaVA conversations); with `--clips N`, `--clip-instruct N` and `--stories N` more of these
(mp4 files with captions and with conversations, OmniCorpus documents), all clean. Every row is a function of (seed, source, index), so tars
are written in parallel and the bytes do not depend on the number of processes. `truth/` tells, for every row, what it
shows and what was done to it; `truth.json` counts it all.
"""

import io
import json
import os
import random
import tarfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from PIL import Image
from rich.progress import track

from showo2.tiny.moving import describe_motion, draw_motion, draw_story, movie
from showo2.tiny.questions import NUMBER_OPENINGS, motion_questions, questions, untold
from showo2.tiny.render import render
from showo2.tiny.world import (
    CAPTION_PROMPTS,
    COLOURS,
    MIX,
    STYLES,
    Scene,
    describe,
    draw_scene,
    draw_style,
    is_held_out,
)

SHARES = {"web": 0.5, "synthetic": 0.2, "instruct": 0.3}
# What is planted among the rows of `web`, and how often. `plain` is the rest.
PLANTED = {
    "small": 0.12,  # width or height under 512
    "duplicate": 0.06,  # the bytes of another row, maybe of another tar
    "truncated": 0.01,  # a picture cut in the middle
    "empty": 0.005,  # a picture of no bytes
    "not_an_image": 0.005,  # an error page under the picture's name
    "bad_caption": 0.01,  # a caption that is not UTF-8
}
_SIDES = (512, 576, 640, 704, 768)
_JUNK = (
    "IMG_{n:04d}.jpg",
    "DSC{n:05d}",
    "click to enlarge",
    "stock photo | buy now",
    "untitled-{n}",
    "image {n} of 20",
)
_ASKED_MIX = (20, 55, 10, 15)  # as MIX, of scenes that conversations are about: more have a relation
_OPENINGS = {"is ": 12, "where ": 4, "what ": 1, "how many ": 3}  # how often conversations begin so, where they can
_CUT = 0.8  # of the last web tar's rows that are left


@dataclass(frozen=True)
class Options:
    """Write the world of shapes as sources of WebDataset tars."""

    out: Path
    """Folder for web/, synthetic/, instruct/, clips/, clip_instruct/, stories/ and truth/."""
    pictures: int = 6000
    """Rows of the three sources of pictures together."""
    seed: int = 0
    """Everything follows from it."""
    rows: int = 1000
    """Most rows in a tar."""
    workers: int = os.cpu_count() or 1
    """Processes; the bytes do not depend on it."""
    clips: int = 0
    """Rows of the source of videos."""
    clip_instruct: int = 0
    """Rows of the source of conversations about videos."""
    stories: int = 0
    """Rows of the source of stories."""

    @property
    def counts(self) -> dict[str, int]:
        """Rows by source."""
        pictures = {source: round(self.pictures * share) for source, share in SHARES.items()}
        more = {"clips": self.clips, "clip_instruct": self.clip_instruct, "stories": self.stories}
        return pictures | {source: count for source, count in more.items() if count}


@dataclass(frozen=True)
class Row:
    """One pair: the members of its tar, and the truth about it."""

    key: str
    members: tuple[tuple[str, bytes], ...]
    truth: dict


def write_sources(options: Options) -> dict:
    """Write everything and return what `truth.json` says; a finished run with the same options is left alone."""
    truth_file = options.out / "truth.json"
    wanted = {"pictures": options.pictures, "seed": options.seed, "rows_per_tar": options.rows}
    wanted |= {"clips": options.clips, "clip_instruct": options.clip_instruct, "stories": options.stories}
    if truth_file.exists():
        found = json.loads(truth_file.read_text())
        if {key: found.get(key, 0) for key in wanted} == wanted:
            print(f"{options.out}: complete already")
            return found
        raise SystemExit(
            f"{truth_file} was made with other options ({found}); name another --out or delete it"
        )
    jobs = [job for source, count in options.counts.items() for job in _tars(options, source, count)]
    with ProcessPoolExecutor(options.workers) as pool:
        reports = list(track(pool.map(_write_tar, jobs), "writing tars", total=len(jobs)))
    truth = wanted | {"sources": _summary(jobs, reports)}
    _publish(truth_file, (json.dumps(truth, indent=2) + "\n").encode())
    return truth


@dataclass(frozen=True)
class _Tar:
    """One tar to write: rows [start, stop) of a source of `count` rows."""

    out: Path
    source: str
    index: int
    start: int
    stop: int
    count: int
    seed: int
    cut: bool


def _tars(options: Options, source: str, count: int) -> list[_Tar]:
    tars = max(1, -(-count // options.rows))
    edges = [count * i // tars for i in range(tars + 1)]
    return [
        _Tar(
            options.out,
            source,
            i,
            edges[i],
            edges[i + 1],
            count,
            options.seed,
            source == "web" and 0 < i == tars - 1,
        )
        for i in range(tars)
    ]


def _write_tar(tar: _Tar) -> list[dict]:
    """Write a tar and its truth; returns the truth of its rows."""
    buffer, truths = io.BytesIO(), []
    cut = None
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for index in range(tar.start, tar.stop):
            row = make_row(tar.seed, tar.source, index, f"{tar.index:05d}{index - tar.start:04d}")
            picture = len(row.members[0][1])
            if tar.cut and cut is None and picture and index >= tar.start + _CUT * (tar.stop - tar.start):
                cut = archive.offset + tarfile.BLOCKSIZE + picture // 2
            for name, data in row.members:
                info = tarfile.TarInfo(f"{row.key}.{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            truths.append(row.truth | {"tar": f"{tar.source}/{tar.index:05d}.tar", "end": archive.offset})
    data = buffer.getvalue()[:cut]
    truths = [truth | {"lost": truth["end"] > len(data)} for truth in truths]
    _publish(tar.out / tar.source / f"{tar.index:05d}.tar", data)
    lines = "".join(json.dumps(truth, sort_keys=True) + "\n" for truth in truths)
    _publish(tar.out / "truth" / f"{tar.source}-{tar.index:05d}.jsonl", lines.encode())
    return truths


def _publish(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.rename(path)


def _summary(jobs: list[_Tar], reports: list[list[dict]]) -> dict:
    """By source: rows, tars, what is planted among the rows that a reader can reach, and rows lost in the cut tar."""
    summary: dict[str, dict] = {}
    for source in dict.fromkeys(job.source for job in jobs):
        truths = [
            t for job, report in zip(jobs, reports, strict=True) if job.source == source for t in report
        ]
        readable = [t for t in truths if not t["lost"]]
        pictures = Counter(
            t["picture"] for t in readable if t["kind"] in ("plain", "duplicate", "bad_caption")
        )
        summary[source] = {
            "tars": sum(job.source == source for job in jobs),
            "rows": len(truths),
            "rows_lost_in_cut_tar": len(truths) - len(readable),
            "kinds": dict(sorted(Counter(t["kind"] for t in readable).items())),
            "same_bytes_as_another_row": sum(count - 1 for count in pictures.values()),
        }
    return summary


# --------------------------------------------------------------------------------------------------------- rows


def _rng(seed: int, source: str, index: int, purpose: str) -> random.Random:
    return random.Random(f"{seed}/{source}/{index}/{purpose}")


def kind_of(seed: int, source: str, index: int) -> str:
    """What is planted at a row: a key of PLANTED, or `plain`."""
    if source != "web":
        return "plain"
    return _rng(seed, source, index, "kind").choices(
        (*PLANTED, "plain"), (*PLANTED.values(), 1 - sum(PLANTED.values()))
    )[0]


def make_row(seed: int, source: str, index: int, key: str) -> Row:
    """The row at `index` of a source: a function of its arguments."""
    if source == "clips":
        return _clip(_rng(seed, source, index, "scene"), index, key)
    if source == "clip_instruct":
        return _asked_clip(_rng(seed, source, index, "scene"), index, key)
    if source == "stories":
        return _story(_rng(seed, source, index, "scene"), index, key)
    kind, origin = kind_of(seed, source, index), index
    if kind == "duplicate":
        origin = _original(seed, source, index)
    scene = draw_scene(_rng(seed, source, origin, "scene"), mix=_ASKED_MIX if source == "instruct" else MIX)
    size, suffix, picture = _picture(seed, source, origin, kind, scene)
    text_rng = _rng(seed, source, index, "text")
    truth = {
        "source": source,
        "key": key,
        "kind": kind,
        "picture": origin,
        "width": size[0],
        "height": size[1],
        "format": suffix,
        "scene": [asdict(thing) for thing in scene.objects],
        "caption": describe(scene),
    }
    facts = {"key": key, "status": "success", "width": size[0], "height": size[1]}
    if source == "instruct":
        facts |= {"id": key, "image": f"{key}.{suffix}", "conversations": conversation(scene, text_rng)}
        return Row(key, ((suffix, picture), ("json", _json(facts))), truth)
    text = alt_text(scene, text_rng) if source == "web" else describe(scene, draw_style(scene, text_rng))
    raw = b"caf\xe9 \xff " + text.encode() if kind == "bad_caption" else text.encode()
    facts |= {"url": f"https://shapes.example/{source}/{index:09d}.{suffix}"}
    return Row(key, ((suffix, picture), ("txt", raw), ("json", _json(facts))), truth | {"text": text})


def _clip(rng: random.Random, index: int, key: str) -> Row:
    motion = draw_motion(rng)
    text = describe_motion(motion)
    truth = _clean("clips", index, key, "mp4") | {"caption": text, "text": text}
    return Row(key, (("mp4", movie(motion, _SIDES[0])), ("txt", text.encode()), ("json", _json({"key": key}))), truth)


def _asked_clip(rng: random.Random, index: int, key: str) -> Row:
    motion = draw_motion(rng)
    turns = _turns(untold(motion_questions(motion, rng))[: rng.randint(1, 3)], "<video>")
    truth = _clean("clip_instruct", index, key, "mp4") | {"caption": describe_motion(motion)}
    members = (("mp4", movie(motion, _SIDES[0])), ("json", _json({"id": key, "video": f"{key}.mp4", "conversations": turns})))
    return Row(key, members, truth)


def _story(rng: random.Random, index: int, key: str) -> Row:
    story = draw_story(rng)
    pictures = [_encode(render(scene, _SIDES[0]), "jpg", rng.randint(80, 95)) for scene in story.scenes]
    members = [(f"{number}.jpg", data) for number, data in enumerate(pictures)]
    texts = [entry for text in story.texts for entry in (text, None)]
    images = [entry for name, _ in members for entry in (None, name)]
    truth = _clean("stories", index, key, "0.jpg") | {"texts": story.texts}
    return Row(key, (*members, ("json", _json({"texts": texts, "images": images}))), truth)


def _clean(source: str, index: int, key: str, suffix: str) -> dict:
    side = _SIDES[0]
    return {"source": source, "key": key, "kind": "plain", "picture": index, "width": side, "height": side,
            "format": suffix}  # fmt: skip


def _json(value: dict) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _original(seed: int, source: str, index: int) -> int:
    """The row whose picture a duplicate repeats: a plain one before it, else the nearest after it."""
    rng = _rng(seed, source, index, "original")
    candidates = [rng.randrange(index) for _ in range(8)] if index else []
    for other in [*candidates, *range(index + 1, index + 1000)]:
        if kind_of(seed, source, other) == "plain":
            return other
    raise RuntimeError(f"no plain row near row {index} of {source}")


def _picture(
    seed: int, source: str, index: int, kind: str, scene: Scene
) -> tuple[tuple[int, int], str, bytes]:
    """Size, file suffix and bytes of a row's picture."""
    rng = _rng(seed, source, index, "picture")
    side = rng.choice(_SIDES)
    size = rng.choice(((side, side), (side, side), (side, rng.choice(_SIDES)), (rng.choice(_SIDES), side)))
    if kind == "small":
        small = rng.choice((256, 320, 384, 448, 500))
        size = rng.choice(((small, small), (small, side), (side, small)))
    formats = {"web": ("jpg", "png", "webp"), "synthetic": ("jpg", "png"), "instruct": ("jpg",)}[source]
    suffix = rng.choices(formats, {"web": (92, 4, 4), "synthetic": (70, 30), "instruct": (100,)}[source])[0]
    if kind == "empty":
        return size, suffix, b""
    if kind == "not_an_image":
        return size, suffix, b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n"
    data = _encode(render(scene, size), suffix, rng.randint(80, 95))
    return size, suffix, data[: int(len(data) * rng.uniform(0.3, 0.8))] if kind == "truncated" else data


def _encode(image: Image.Image, suffix: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    if suffix == "jpg":
        image.save(buffer, "JPEG", quality=quality)
    elif suffix == "png":
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "WEBP", quality=quality, method=0)
    return buffer.getvalue()


# -------------------------------------------------------------------------------------------------------- texts


def alt_text(scene: Scene, rng: random.Random) -> str:
    """What the web says about a picture: a quarter true, the rest wrong, cut, shouted, padded or junk."""
    true, number = describe(scene, rng.choice(list(STYLES))), rng.randrange(10_000)
    junk = rng.choice(_JUNK).format(n=number)
    text = rng.choices(
        (
            true,
            describe(_recoloured(scene, rng), "colours"),
            junk,
            true[: rng.randint(4, max(5, len(true) - 6))],
            f"{true} !!! {junk}".upper(),
            f"Photo: {true} - free download",
        ),
        (25, 20, 20, 15, 10, 10),
    )[0]
    return junk if _tells_held_out(text) else text


def _recoloured(scene: Scene, rng: random.Random) -> Scene:
    """The scene with every colour replaced by another."""
    wrong = {colour: rng.choice([other for other in COLOURS if other != colour]) for colour in COLOURS}
    return Scene(tuple(type(o)(wrong[o.colour], o.shape, o.x, o.y, o.r) for o in scene.objects))


def _tells_held_out(text: str) -> bool:
    """Whether a noisy text happens to be a held-out prompt: a wrong or cut caption could be one."""
    try:
        return is_held_out(text)
    except ValueError:
        return False


def conversation(scene: Scene, rng: random.Random) -> list[dict[str, str]]:
    """One to four questions with answers, as LLaVA stores them; sometimes a request for a caption comes last.

    Where two things lie in a relation, most begin with it: a model learns last what compares two looks and two places.
    Numbers, which it learns first, come last.
    """
    asked = questions(scene, rng)
    opening = rng.choices(list(_OPENINGS), list(_OPENINGS.values()))[0]
    asked.sort(key=lambda turn: (not turn[0].startswith(opening), turn[0].startswith(NUMBER_OPENINGS)))
    turns = untold(asked)[: rng.randint(1, 4)]
    if rng.random() < 0.25:
        style = draw_style(scene, rng)
        turns.append((CAPTION_PROMPTS[style], describe(scene, style)))
    return _turns(turns, "<image>")


def _turns(asked: list[tuple[str, str]], shown: str) -> list[dict[str, str]]:
    """Questions with their answers, in turn; `shown` stands where the picture or video is."""
    said: list[dict[str, str]] = []
    for question, answer in asked:
        opening = "" if said else f"{shown}\n"
        said += [{"from": "human", "value": opening + question}, {"from": "gpt", "value": answer}]
    return said


def main(options: Options) -> None:
    """Write the sources and print what was planted."""
    truth = write_sources(options)
    for source, facts in truth["sources"].items():
        print(f"{source}: {facts}")


if __name__ == "__main__":
    main(tyro.cli(Options))

"""Encoding one unit: pictures or clips to latents of the VAE, in shards with their texts, audited before they count.

A call makes one size: of pictures one latent frame a row, of documents one a picture, of texts none; or of the unit's
videos the frames of a clip. Rows keep the order of the selection, so a unit's files are the same bytes whoever makes
them. A row with a picture that cannot be decoded, or that the captioner failed on, is accounted as failed, and its
neighbours go on.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.clips import ClipReader
from pipelines.decoding import FRAMES
from pipelines.facts import Limits
from pipelines.ledger import LedgerError
from pipelines.probe import ProbeError
from pipelines.publish import Record, Unit, done, fingerprint, publish, publish_record
from pipelines.rows import MediaReader, SelectedUnit, open_picture, read_captions, read_rows
from pipelines.texts import UNTOLD, Failures, read_texts, with_chosen
from showo2.shards import ShardSchema, TextRow, write_latents, write_teacher, write_text
from showo2.shards.format import Bucket
from showo2.shards.manifest import bucket_name
from showo2.vae import SPATIAL, WanVAE, center_crop_resize, to_pixels

VERSION = 1  # goes up when the same pictures give other latents
CROP = "the largest centred square, bicubic, from a JPEG decoded at twice the size or more"
KINDS = ("pair", "conversation", "interleaved", "text")
_FILMED = {"video": "pair", "video_conversation": "conversation"}  # kinds of facts, and of their shards
TEXT_BUCKET = (0, 0, 0)
TEACHER_QUALITY = 95
FIRST_FRAME = 0.02  # most that a clip's first latent frame may differ from its first frame's: rounding of fp16
_DRAFT = 2
Facts = dict[str, Any]
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class AuditFailed(ValueError):
    """Latents that do not decode to their pictures: nothing of the unit was published."""


@dataclass(frozen=True)
class Options:
    """What latents depend on, besides the pictures and the VAE.

    size, width: height and width of the crop in pixels. teacher_size: side of the teacher's JPEG, 0 for none. batch:
    pictures a call of the VAE. audit: pictures of each kind that are decoded again. min_psnr: dB that they must reach
    on average. clips: encode videos, 17 frames of each; draw: the number of the window that is drawn from it.
    """

    size: int
    teacher_size: int
    batch: int
    audit: int
    min_psnr: float
    width: int
    clips: bool = False
    draw: int = 0

    @property
    def bucket(self) -> Bucket:
        """Latent frames, height and width of a picture or a clip."""
        return 1 + (FRAMES - 1) // 4 if self.clips else 1, self.size // SPATIAL, self.width // SPATIAL

    @property
    def family(self) -> str:
        """The column family of the bucket: its unit records and its folder. Each draw has one."""
        return f"latents/{bucket_name(self.bucket)}" + (f"-draw{self.draw}" if self.draw else "")

    def fingerprint(self, vae: str) -> str:
        """Names what the latents are made by; `vae` is the hash of its weights."""
        clips = ("clips", self.width, self.draw) if self.clips else (self.width,) if self.width != self.size else ()
        return fingerprint("latents", VERSION, CROP, vae, self.size, self.teacher_size, *clips)

    def takes(self, row: Facts) -> bool:
        """Whether a row of the selection is made in this call."""
        return (row["kind"] in _FILMED) == self.clips

    def group(self, row: Facts) -> tuple[str, Bucket]:
        """Kind and bucket of the shard that a row goes to; a document's pictures are its frames."""
        if row["kind"] == "document":
            return "interleaved", (len(row["pictures"]), *self.bucket[1:])
        if row["kind"] == "text":
            return "text", TEXT_BUCKET
        return _FILMED.get(str(row["kind"]), str(row["kind"])), self.bucket

    def folder(self, bucket: Bucket) -> str:
        """Where the shards of a bucket lie."""
        return self.family if bucket == self.bucket else f"latents/{bucket_name(bucket)}"


@dataclass
class _Encoded:
    """Rows of one kind and bucket that became latents, in order; size and crop of a document are its first picture's.

    `audited`: pictures with their latents.
    """

    uids: list[str] = field(default_factory=list)
    latents: list[np.ndarray] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    crops: list[tuple[int, ...]] = field(default_factory=list)
    times: list[tuple[float, ...]] = field(default_factory=list)
    teachers: list[bytes] = field(default_factory=list)
    audited: list[tuple[list[Image.Image], np.ndarray]] = field(default_factory=list)


@dataclass(frozen=True)
class _Picture:
    """A picture, or the frames of a clip, cut and resized, of the row `uid`."""

    uid: str
    frames: list[Image.Image]
    size: tuple[int, int]
    box: tuple[int, ...]
    teacher: bytes = b""
    times: tuple[float, ...] = ()


class LatentEncoder:
    """An actor's unit function: holds the VAE, encodes and publishes one unit a call."""

    def __init__(self, vae: str, data: str, options: dict[str, Any], gpu: bool) -> None:
        """`vae`: spec for `WanVAE.from_pretrained`; `data`: the dataset's folder; `options`: of `Options`."""
        torch.set_num_threads(1)
        self.vae = WanVAE.from_pretrained(vae, device="cuda" if gpu else "cpu")
        if gpu:
            self.vae.compile()
        self.data, self.options = data, Options(**options)
        self.clips = ClipReader()

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Publish the shards and the record of `task`'s unit; only the texts if the latents are current."""
        selected = SelectedUnit(**{**task["selected"], "unit": Unit(**task["selected"]["unit"])})
        rows = [with_chosen(row) for row in read_rows(self.data, selected).to_pylist()]
        texts, untold = read_texts(rows, read_captions(self.data, selected))
        rows = [row for row in rows if self.options.takes(row)]
        untold = {row["uid"]: untold[row["uid"]] for row in rows if row["uid"] in untold}
        before = self._current(selected, task["latents"], untold)
        kept = before or self._encode_unit(selected, rows, texts, untold, task["latents"])
        files = list(kept["latent_files"])
        shards = []
        for shard in kept["shards"]:
            entry = self._publish_text(selected, shard, [texts[uid] for uid in self._uids(rows, shard, kept)], task)
            files.append(entry)
            shards.append({**shard, "text_path": entry["path"]})
        record = {
            **kept,
            "unit": selected.unit,
            "fingerprint": task["print"],
            "files": files,
            "shards": shards,
        }
        self._check(record, selected, len(rows))
        publish_record(self.data, self.options.family, selected.unit.id, record)
        return {"rows": record["rows"]}

    def _current(self, selected: SelectedUnit, print_: str, untold: Failures) -> Record | None:
        """The unit's record, if its latents are of the same rows by the same VAE."""
        found = done(self.data, self.options.family, only=[selected.unit.id]).get(selected.unit.id)
        if found is None or found["latents"] != print_:
            return None
        before = {uid for uid, (_, detail) in found["failed"].items() if detail == UNTOLD}
        return found if before == untold.keys() else None

    def _uids(self, rows: list[Facts], shard: Record, kept: Record) -> list[str]:
        group = shard["kind"], tuple(shard["bucket"])
        return [row["uid"] for row in rows if self.options.group(row) == group and row["uid"] not in kept["failed"]]

    @staticmethod
    def _check(record: Record, selected: SelectedUnit, rows: int) -> None:
        accounted = record["rows"] + len(record["failed"])
        if accounted != rows:
            raise LedgerError(f"{selected.unit.path}: {rows} rows for this bucket, {accounted} accounted for")

    def _encode_unit(
        self,
        selected: SelectedUnit,
        rows: list[Facts],
        texts: dict[str, TextRow],
        untold: Failures,
        print_: str,
    ) -> Record:
        """Publish latents and teacher files of all kinds; returns what of the record texts do not change."""
        failed = dict(untold)
        shards, files = [], []
        audits: list[float] = []
        moments: list[tuple[int, float, float]] = []
        groups = {self.options.group(row) for row in rows if row["uid"] in texts}
        for kind, bucket in sorted(groups, key=lambda group: (KINDS.index(group[0]), group[1])):
            own = [row for row in rows if row["uid"] in texts and self.options.group(row) == (kind, bucket)]
            encoded = _without_latents(own) if kind == "text" else self._encode(own, failed)
            if not encoded.uids:
                continue
            audits += self._audit(encoded, selected.unit)
            latents = np.stack(encoded.latents)
            if latents.size:
                moments.append(
                    (len(latents), float(latents.mean(dtype=np.float64)), float(latents.std(dtype=np.float64)))
                )
            schema = self._schema(selected, kind, bucket, print_)
            shard, entries = self._publish_latents(selected.unit, schema, encoded, latents)
            shards.append(shard)
            files += entries
        audit = {"psnr": audits, "moments": moments}
        return {
            "latents": print_,
            "rows": sum(s["rows"] for s in shards),
            "rows_in": len(rows),
            "failed": failed,
            "latent_files": files,
            "shards": shards,
            "audit": audit,
        }

    def _encode(self, rows: list[Facts], failed: Failures) -> _Encoded:
        """Latents of the rows of one kind, bucket and tar; adds those that cannot be used to `failed`."""
        encoded = _Encoded()
        each = len(rows[0]["pictures"] or [rows[0]])  # pictures a row
        audited = set(sorted(row["uid"] for row in rows)[: -(-self.options.audit // each)])
        waiting: list[tuple[_Picture, np.ndarray]] = []
        for pictures in self._batches(rows, failed):
            pixels = _stack([picture.frames for picture in pictures])
            latents = self.vae.encode(pixels).cpu().numpy().astype(np.float16)
            waiting += zip(pictures, latents, strict=True)
            while len(waiting) >= each:
                row, waiting = waiting[:each], waiting[each:]
                first, latent = row[0][0], np.concatenate([latent for _, latent in row], 1)
                if not np.isfinite(latent).all():
                    failed[first.uid] = ("latents_not_finite", "the VAE's output leaves the range of fp16")
                    continue
                encoded.uids.append(first.uid)
                encoded.latents.append(latent)
                encoded.sizes.append(first.size)
                encoded.crops.append(first.box)
                encoded.times.append(first.times)
                encoded.teachers.append(first.teacher)
                if first.uid in audited:
                    encoded.audited += [(picture.frames, latent) for picture, latent in row]
        return encoded

    def _batches(self, rows: list[Facts], failed: Failures) -> Iterator[list[_Picture]]:
        """Pictures in order, a row's side by side; none of a row of which one cannot be decoded."""
        media = MediaReader(rows[0]["tar"])
        batch: list[_Picture] = []
        try:
            for row in rows:
                try:
                    batch += self._pictures(row, media)
                except ProbeError as error:
                    failed[row["uid"]] = (error.error, error.detail)
                while len(batch) >= self.options.batch:
                    yield batch[: self.options.batch]
                    batch = batch[self.options.batch :]
        finally:
            media.close()
        if batch:
            yield batch

    def _pictures(self, row: Facts, media: MediaReader) -> list[_Picture]:
        """What of a row is encoded. Raises ProbeError where a picture or the video cannot be decoded."""
        if row["kind"] != "document":
            data = media.read(row["offset"], row["size"])
            if self.options.clips:
                return [self._clip(row, data)]
            return [self._picture(row["uid"], row, data, self.options.teacher_size)]
        pictures = []
        for place in row["pictures"]:
            try:
                data = media.read(place["offset"], place["size"])
                pictures.append(self._picture(row["uid"], place, data, teacher_size=0))
            except ProbeError as error:
                raise ProbeError(error.error, f"picture {place['number']}: {error.detail}") from error
        return pictures

    def _picture(self, uid: str, facts: Facts, data: bytes, teacher_size: int) -> _Picture:
        size = (self.options.size, self.options.width)
        image = open_picture(data, side=_DRAFT * max(*size, teacher_size), max_pixels=Limits.max_pixels)
        whole = (facts["width"], facts["height"])
        if facts["orientation"] in _TURNED:
            whole = whole[::-1]
        crop, box = center_crop_resize(image, size, whole)
        teacher = b""
        if teacher_size:
            same = (teacher_size, teacher_size) == size
            teacher = _jpeg(
                crop if same else center_crop_resize(image, (teacher_size, teacher_size), whole)[0]
            )
        return _Picture(uid, [crop], whole, box, teacher)

    def _clip(self, row: Facts, data: bytes) -> _Picture:
        clip = self.clips.read(data, row["uid"], self.options.draw)
        height, width = clip.frames.shape[1:3]
        made = [center_crop_resize(Image.fromarray(frame), (self.options.size, self.options.width))
                for frame in clip.frames]
        return _Picture(row["uid"], [frame for frame, _ in made], (width, height), made[0][1], times=clip.times)

    def _audit(self, encoded: _Encoded, unit: Unit) -> list[float]:
        """PSNR in dB of the audited pictures against their crops.

        Raises AuditFailed below the limit, and where a clip's first latent frame is not that of its first frame.
        """
        if not encoded.audited:
            return []
        pictures = _stack([frames for frames, _ in encoded.audited])
        latents = torch.from_numpy(np.stack([latent for _, latent in encoded.audited])).float()
        if self.options.clips:
            alone = torch.cat([self.vae.encode(some).cpu() for some in pictures[:, :, :1].split(self.options.batch)])
            apart = float((alone - latents[:, :, :1]).abs().max())
            if apart > FIRST_FRAME:
                raise AuditFailed(f"{unit.path}: first latent frames of clips differ by {apart:.3f} from the latents "
                                  "of their first frames: this VAE is not causal, or not the one that pictures had")
        decoded = torch.cat([self.vae.decode(some).cpu() for some in latents.split(self.options.batch)])
        error = ((decoded - pictures) / 2).square().mean((1, 2, 3, 4)).clamp(min=1e-10)
        psnr = (-10 * error.log10()).tolist()
        mean = sum(psnr) / len(psnr)
        if mean < self.options.min_psnr:
            raise AuditFailed(
                f"{unit.path}: {len(psnr)} pictures decode at {mean:.1f} dB, under the limit of "
                f"{self.options.min_psnr} dB: this VAE does not fit them; name another --vae, or lower "
                "--min-psnr"
            )
        return [round(value, 2) for value in psnr]

    def _publish_latents(
        self, unit: Unit, schema: ShardSchema, encoded: _Encoded, latents: np.ndarray
    ) -> tuple[Record, list[Record]]:
        name = fingerprint(unit.id, schema.fingerprints["latents"], schema.kind)
        stem = f"{self.options.folder(schema.bucket)}/{name}"
        sizes, crops = np.array(encoded.sizes, np.int32), np.array(encoded.crops, np.int32)
        times = np.array(encoded.times, np.float32) if self.options.clips else None
        main = publish(
            self.data,
            f"{stem}.arrow",
            lambda file: write_latents(file, schema, encoded.uids, latents, sizes, crops, times),
        )
        files, teacher = [main], None
        if any(encoded.teachers):
            files.append(
                publish(
                    self.data,
                    f"{stem}.teacher.arrow",
                    lambda file: write_teacher(file, schema, encoded.uids, encoded.teachers),
                )
            )
            teacher = files[-1]["path"]
        shard = {
            "path": main["path"],
            "teacher_path": teacher,
            "source": unit.source,
            "kind": schema.kind,
            "bucket": list(schema.bucket),
            "rows": len(latents),
            "bytes": main["bytes"],
            "xxh3": main["xxh3"],
            "unit": unit.id,
        }
        return shard, files

    def _publish_text(
        self, selected: SelectedUnit, shard: Record, texts: list[TextRow], task: dict[str, Any]
    ) -> Record:
        schema = self._schema(selected, shard["kind"], tuple(shard["bucket"]), task["latents"])
        schema = replace(schema, fingerprints={**schema.fingerprints, "captions": task["captions"]})
        name = fingerprint(shard["path"], task["captions"])
        return publish(
            self.data,
            f"{self.options.folder(schema.bucket)}/{name}.text.arrow",
            lambda file: write_text(file, schema, texts),
        )

    def _schema(self, selected: SelectedUnit, kind: str, bucket: Bucket, print_: str) -> ShardSchema:
        source = selected.unit.source
        if kind == "text":  # the same whatever the VAE and the size: several sizes share these files
            return ShardSchema(source, kind, bucket, "", (), (), "", {"latents": selected.hash})
        mean, std = (tuple(v.tolist()) for v in (self.vae.latent_mean, self.vae.latent_std))
        return ShardSchema(source, kind, bucket, self.vae.weights_hash, mean, std, CROP, {"latents": print_})


def _without_latents(rows: list[Facts]) -> _Encoded:
    """Texts."""
    nothing = np.zeros((0, *TEXT_BUCKET), np.float16)
    count = len(rows)
    return _Encoded([row["uid"] for row in rows], [nothing] * count, [(0, 0)] * count, [(0, 0, 0, 0)] * count)


def _stack(clips: list[list[Image.Image]]) -> torch.Tensor:
    """Lists of T frames each -> (n, 3, T, H, W) float32 in [-1, 1]."""
    return torch.stack([to_pixels(frames)[:, :, 0].transpose(0, 1) for frames in clips])


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=TEACHER_QUALITY, subsampling=0)
    return buffer.getvalue()

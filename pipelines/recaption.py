"""Recaptioning: a vision-language model describes every selected picture; the raw texts stay in the facts.

Units go to actors that load the model, or reach an endpoint, once; models named `vllm:` run in ray.data.llm. A unit
that was captioned before, for the same selection and with the same model and options, is not done again.
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.actors import run_actors
from pipelines.captioner import VERSION, Captioner, Prompt, load_prompts, load_refused
from pipelines.endpoint import is_endpoint, split
from pipelines.ledger import LedgerError
from pipelines.models import HASH_DIGITS, local_model, weights_hash
from pipelines.progress import StageProgress
from pipelines.publish import Record, collect_leftovers, done, fingerprint, publish_json
from pipelines.rows import Selection, dataset_manifest, load_selection
from pipelines.vllm import VLLM, caption_with_vllm


@dataclass(frozen=True)
class RecaptionConfig:
    """Which dataset, which captioner, and how it is asked."""

    data: str
    """The dataset's folder, as written by jobs.curate; local or s3://."""
    captioner: str = "tiny:captioner"
    """An image-text-to-text model in transformers' format (tiny:captioner, a folder or a Hub id), the same in vLLM
    (vllm:MODEL), or an OpenAI-compatible endpoint (http://HOST:PORT/v1#MODEL)."""
    prompts: str | None = None
    """JSON file [{"id", "text"}, ...]; each picture gets one, by its uid. Default: the captioner's own."""
    skip_sources: tuple[str, ...] = ("synthetic", "instruct")
    """Sources whose rows keep their text."""
    refuse: str | None = None
    """File of texts, one a line, that no caption may equal: the prompts of evaluation sets. A picture that gets one
    is asked about with the next prompt."""
    batch: int = 64
    max_new_tokens: int = 64
    workers: int = 2
    """Actors; each holds one copy of the model."""
    gpus_per_worker: float = 0


@dataclass(frozen=True)
class RecaptionReport:
    """What a run ended with, earlier runs' units included. `counts`: rows by finish reason."""

    counts: dict[str, int]
    tokens: int
    hash: str
    seconds: float


def recaption(config: RecaptionConfig) -> RecaptionReport:
    """Caption the base selection in the current Ray session and write captions, manifest and report.

    Raises InputError for a user's mistake, RunFailed for units that could not be done (the others are published),
    LedgerError if a selected row is without account.
    """
    started = time.monotonic()
    selection = load_selection(config.data)
    prompts = load_prompts(config.captioner, config.prompts)
    model, name = _resolve(config.captioner)
    collect_leftovers(config.data)
    publish_json(config.data, "recaption.json", config)
    records = _caption_stage(config, selection, prompts, model, name)
    rows = sum(sum(record["counts"].values()) for record in records.values())
    if rows != sum(unit.rows for unit in selection.units):
        raise LedgerError(f"{rows} captions for {sum(unit.rows for unit in selection.units)} selected rows")
    counts: Counter[str] = Counter()
    for record in records.values():
        counts.update(record["counts"])
    tokens = sum(record["tokens"] for record in records.values())
    manifest_hash = dataset_manifest(config.data)["hash"]
    report = RecaptionReport(dict(sorted(counts.items())), tokens, manifest_hash, time.monotonic() - started)
    publish_json(config.data, "recaption_report.json", report)
    return report


def _resolve(captioner: str) -> tuple[str, str]:
    """(folder or address, name that the captions carry). InputError or ValueError where there is no such model."""
    if is_endpoint(captioner):
        return captioner, f"endpoint:{split(captioner)[1]}"
    folder = local_model(captioner.removeprefix(VLLM), "--captioner")
    return folder, f"{captioner}@{weights_hash(folder)[:HASH_DIGITS]}"


def _caption_stage(
    config: RecaptionConfig, selection: Selection, prompts: tuple[Prompt, ...], model: str, name: str
) -> dict[str, Record]:
    """Caption records by unit id, of all units of the selection."""
    options: dict[str, Any] = {
        "batch": config.batch,
        "max_new_tokens": config.max_new_tokens,
        "skip_sources": sorted(config.skip_sources),
        "refuse": load_refused(config.refuse),
        "gpu": config.gpus_per_worker > 0,
    }
    print_ = fingerprint("captions", VERSION, name, prompts, options)
    prints = {unit.unit.id: fingerprint(print_, unit.hash) for unit in selection.units}
    found = done(config.data, "captions", only=prints)
    current = {unit_id for unit_id, record in found.items() if record["fingerprint"] == prints[unit_id]}
    tasks = [
        {"path": unit.unit.path, "data": config.data, "print": prints[unit.unit.id], "selected": asdict(unit)}
        for unit in selection.units
        if unit.unit.id not in current
    ]
    if is_endpoint(model):
        options["answers"] = config.data
    arguments = {"model": model, "name": name, "prompts": [asdict(p) for p in prompts], "options": options}
    with StageProgress("captions", len(prints), len(current)) as progress:
        if config.captioner.startswith(VLLM):
            caption_with_vllm(arguments, tasks, config.workers, progress)
        else:
            # An endpoint would be paid twice for a unit that is started twice.
            run_actors(Captioner, arguments, tasks, config.workers, progress, config.gpus_per_worker,
                       twice=not is_endpoint(model))
    return done(config.data, "captions", only=prints)

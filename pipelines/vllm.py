"""Captions by vLLM through ray.data.llm, for where GPUs are: one engine a GPU, pictures and answers streamed through.

Needs the extra `vllm`. Rows of all units flow through the engines together; a unit is published when its last answer is
in, so that a killed run goes on by units. What an engine cannot answer fails alone. Pictures that cannot be decoded are
never asked about, and their unit waits for the end of the run: curate with `--score pixels`, and there are none.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import ray

from pipelines.answers import Answer
from pipelines.captioner import (
    Prompt,
    caption_of,
    choose_prompt,
    keeps_its_text,
    kept_caption,
    publish_captions,
)
from pipelines.endpoint import SIDE, data_url, message
from pipelines.probe import ProbeError
from pipelines.progress import StageProgress
from pipelines.publish import Unit
from pipelines.rows import MediaReader, SelectedUnit, open_picture, read_rows

VLLM = "vllm:"
BATCH = 64
MAX_MODEL_LEN = 4096


def engine_config(model: str, workers: int) -> Any:
    """The vLLMEngineProcessorConfig of a captioner with one picture a request, LLaVA and ShareGPT4V families alike."""
    from ray.data.llm import vLLMEngineProcessorConfig

    return vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs={
            "max_model_len": MAX_MODEL_LEN,
            "limit_mm_per_prompt": {"image": 1},
            # No picture comes twice: caches of pictures and prefixes would only grow (vllm#12973).
            "mm_processor_cache_gb": 0,
            "enable_prefix_caching": False,
            "enable_chunked_prefill": True,
        },
        concurrency=workers,
        batch_size=BATCH,
        prepare_multimodal_stage={"enabled": True},
        should_continue_on_error=True,
    )


def requests(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each picture of a unit that is asked about and can be decoded."""
    selected, rows = _read(task)
    prompts = tuple(Prompt(**prompt) for prompt in task["prompts"])
    with closing(MediaReader(selected.unit.path)) as media:
        for number, row in enumerate(rows):
            if keeps_its_text(row, task["options"]):
                continue
            try:
                image = open_picture(media.read(row["offset"], row["size"]), SIDE)
            except ProbeError:
                continue
            prompt = choose_prompt(row["uid"], prompts).text
            yield {"unit": selected.unit.id, "number": number, "prompt": prompt, "picture": data_url(image)}


def _read(task: dict[str, Any]) -> tuple[SelectedUnit, list[dict[str, Any]]]:
    selected = SelectedUnit(**{**task["selected"], "unit": Unit(**task["selected"]["unit"])})
    return selected, read_rows(task["data"], selected).to_pylist()


def preprocess(row: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """The engine's request of a row of `requests`."""
    return {
        "unit": row["unit"],
        "number": row["number"],
        "messages": [{"role": "user", "content": message(row["prompt"], row["picture"])}],
        "sampling_params": {"temperature": 0.0, "max_tokens": max_new_tokens},
    }


def read_answer(row: dict[str, Any]) -> Answer:
    """The answer in a row that came out of the engine."""
    if row.get("__inference_error__"):
        return Answer(None, "failed:engine", 0)
    tokens = int(row.get("num_generated_tokens") or 0)
    text = (row.get("generated_text") or "").strip()
    # Ray's rows do not carry vLLM's finish reason: an answer as long as it may be was cut.
    reason = "length" if tokens >= row["sampling_params"]["max_tokens"] else "stop"
    return Answer(text, reason, tokens)


def caption_with_vllm(
    arguments: dict[str, Any], tasks: list[dict[str, Any]], workers: int, progress: StageProgress
) -> None:
    """Caption the units of `tasks` and publish each. `arguments` and `tasks` as for captioner.Captioner."""
    from ray.data.llm import build_processor

    if not tasks:
        return
    most = arguments["options"]["max_new_tokens"]
    asked = {"prompts": arguments["prompts"], "options": arguments["options"]}
    units = ray.data.from_items([{"task": task | asked} for task in tasks], override_num_blocks=len(tasks))
    processor = build_processor(
        engine_config(arguments["model"], workers),
        preprocess=lambda row: preprocess(row, most),
        postprocess=lambda row: row,
    )
    waiting = {}
    for task in tasks:
        unit = Waiting(task, arguments)
        waiting[unit.selected.unit.id] = unit
    for row in processor(units.flat_map(lambda item: requests(item["task"]))).iter_rows():
        unit = waiting[row["unit"]]
        unit.answers[row["number"]] = read_answer(row)
        if len(unit.answers) == unit.asked:
            unit.publish()
            progress.advance(units=1, rows=unit.rows)
    for unit in waiting.values():
        if len(unit.answers) < unit.asked or not unit.asked:
            unit.publish()
            progress.advance(units=1, rows=unit.rows)


class Waiting:
    """A unit, and what an engine has answered so far. `asked`: how many of its `rows` rows are asked about."""

    def __init__(self, task: dict[str, Any], arguments: dict[str, Any]) -> None:
        self.task, self.arguments = task, arguments
        self.answers: dict[int, Answer] = {}
        self.selected, rows = _read(task)
        self.rows = len(rows)
        self.asked = sum(not keeps_its_text(row, arguments["options"]) for row in rows)

    def publish(self) -> None:
        """Write the unit's captions; a row without an answer could not be decoded."""
        prompts = tuple(Prompt(**prompt) for prompt in self.arguments["prompts"])
        options, name = self.arguments["options"], self.arguments["name"]
        captions = []
        for number, row in enumerate(_read(self.task)[1]):
            if keeps_its_text(row, options):
                captions.append(kept_caption(row["uid"], row["text"]))
                continue
            answer = self.answers.get(number, Answer(None, "failed:undecodable", 0))
            caption = caption_of(answer, name, choose_prompt(row["uid"], prompts), options["refuse"])
            captions.append({"uid": row["uid"], **caption})
        publish_captions(self.task["data"], self.selected, self.task["print"], captions)

"""Any OpenAI-compatible endpoint as a captioning engine: HTTP that fails, answers that are paid for once.

Written as `http://HOST:PORT/v1#MODEL`, several addresses of one model with commas before the `#`. The key comes from
the environment, OPENAI_API_KEY, and is written nowhere.
"""

import base64
import io
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from PIL import Image

from pipelines.answers import Answer
from pipelines.publish import fingerprint, publish_json, read_json

SIDE = 672  # pixels of the shorter side of a picture that is sent
REQUESTS_AT_ONCE = 8
TRIES = 4  # of one request at one address
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before a request is tried again, doubling
TIMEOUT = (10, 300)  # seconds to connect, and for an answer
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)


def is_endpoint(spec: str) -> bool:
    """Whether a captioner's name is an address."""
    return spec.startswith(("http://", "https://"))


def split(spec: str) -> tuple[list[str], str]:
    """(addresses, model) of `URL[,URL...]#MODEL`. ValueError without a model."""
    addresses, _, model = spec.partition("#")
    if not model:
        raise ValueError(f"--captioner {spec}: add #MODEL, the model's name at this endpoint")
    return [address.rstrip("/") for address in addresses.split(",")], model


def data_url(picture: Image.Image) -> str:
    """The picture as a JPEG in a data: URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def message(prompt: str, url: str) -> list[dict[str, Any]]:
    """Content of a chat message: the picture, then what is asked."""
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]


class Endpoint:
    """`answers`: the dataset's folder, where each answer is kept as soon as it has come."""

    side = SIDE

    def __init__(self, spec: str, max_new_tokens: int, answers: str) -> None:
        self.addresses, self.model = split(spec)
        self.max_new_tokens, self.answers = max_new_tokens, answers
        self.session = requests.Session()
        if key := os.environ.get("OPENAI_API_KEY"):
            self.session.headers["Authorization"] = f"Bearer {key}"
        self.pool = ThreadPoolExecutor(REQUESTS_AT_ONCE)

    def say(self, prompt: str, pictures: list[Image.Image], hashes: list[str]) -> list[Answer]:
        """One answer a picture. ConnectionError where no address answers; all answers so far are kept."""
        return list(self.pool.map(lambda item: self._one(prompt, *item), zip(pictures, hashes, strict=True)))

    def _one(self, prompt: str, picture: Image.Image, picture_hash: str) -> Answer:
        key = fingerprint("answer", self.model, prompt, self.max_new_tokens, SIDE, picture_hash)
        place = f"answers/{key[:2]}/{key}.json"
        try:
            return Answer(**read_json(self.answers, place))
        except FileNotFoundError:
            answer = self._ask(self._payload(prompt, picture))
        publish_json(self.answers, place, answer)
        return answer

    def _payload(self, prompt: str, picture: Image.Image) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": message(prompt, data_url(picture))}],
            "max_tokens": self.max_new_tokens,
            "temperature": 0,
        }

    def _ask(self, payload: dict[str, Any]) -> Answer:
        """Try each address in turn; a request that is refused for what it is fails alone."""
        troubles = []
        for address in self.addresses:
            wait = FIRST_WAIT
            for _ in range(TRIES):
                try:
                    response = self.session.post(f"{address}/chat/completions", json=payload, timeout=TIMEOUT)
                    if response.ok:
                        return _read(response.json())
                    trouble = f"{address}: HTTP {response.status_code}"
                    if response.status_code in (401, 403, 404):
                        break  # nothing that waiting mends, and no fault of the picture
                    if response.status_code not in _AGAIN:
                        return Answer(None, f"failed:http_{response.status_code}", 0)
                    wait = max(wait, _seconds(response.headers.get("Retry-After")))
                except (
                    requests.RequestException,
                    json.JSONDecodeError,
                    KeyError,
                    IndexError,
                    TypeError,
                ) as error:
                    trouble = f"{address}: {type(error).__name__}"
                time.sleep(min(wait, LONGEST_WAIT))
                wait *= 2
            troubles.append(trouble)
        raise ConnectionError(f"no captioner answers: {'; '.join(troubles)}")


def _read(answer: dict[str, Any]) -> Answer:
    """The answer in a completion; KeyError and the like where it is none."""
    choice = answer["choices"][0]
    tokens = int((answer.get("usage") or {}).get("completion_tokens") or 0)
    if choice["finish_reason"] not in ("stop", "length"):
        return Answer(None, f"failed:{choice['finish_reason']}", tokens)
    return Answer((choice["message"]["content"] or "").strip(), choice["finish_reason"], tokens)


def _seconds(value: str | None) -> float:
    return float(value) if value and value.isdigit() else 0.0

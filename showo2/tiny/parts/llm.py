"""The language model: a small Qwen2 with a byte-level BPE tokenizer, trained on captions, paraphrases and questions.

It is the frozen base of stage 1, so it has to know every word that a prompt or a question may hold.
"""

import random
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from showo2.tiny.parts.common import batches, draw_scenes, fit, halve, share
from showo2.tiny.questions import questions
from showo2.tiny.world import CAPTION_PROMPTS, STYLES, Scene, describe

# In the order in which Show-o2 adds them to Qwen2.5's.
SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "[PAD]",
    "<image>",
    "<|vid_start|>",
    "<|vid_end|>",
)
_VOCABULARY = 512
_BATCH = 48
_MIX = (
    10,
    35,
    10,
    45,
)  # of scenes: more objects to tell apart than in pictures, for that is what is hard to learn
_SYSTEM = "system\nYou are a helpful assistant."
_TEXT_WEIGHT = 0.3  # of what is not an answer: much of it cannot be foretold

# A piece of a document, and whether it is an answer.
Piece = tuple[str, bool]
Document = list[Piece]


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE as Qwen2's, with the special tokens of unified sequences; any text can be encoded."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="[PAD]",
        additional_special_tokens=[t for t in SPECIAL if t not in ("<|im_start|>", "<|im_end|>", "[PAD]")],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


@cache
def make_tokenizer(seed: int = 2) -> PreTrainedTokenizerFast:
    """The tokenizer of the language model and of SigLIP's text tower, trained on 10,000 documents."""
    made = documents(draw_scenes(10_000, seed, mix=_MIX), seed)
    words = (text for document in made for text, _ in document)
    return build_tokenizer([text.replace("<|im_start|>", "").replace("<|im_end|>", "") for text in words])


def question_document(scene: Scene, rng: random.Random, chat: bool = False) -> Document:
    """A caption, up to four questions about it and their answers, in Show-o2's plain layout or Qwen's chat layout."""
    caption, asked = describe(scene), questions(scene, rng)[: 2 if chat else 4]
    if chat:
        pieces: Document = [(f"<|im_start|>{_SYSTEM}<|im_end|>\n", False)] if rng.random() < 0.3 else []
        for i, (question, answer) in enumerate(asked):
            context = f"{caption}. {question}" if i == 0 else question
            pieces.append((f"<|im_start|>user\n{context}<|im_end|>\n<|im_start|>assistant\n", False))
            pieces += [(f"{answer}<|im_end|>", True), ("\n", False)]
        return pieces
    gap = rng.choice(("", " ", " "))
    pieces = [(f"<|im_start|>{caption}. ", False)]
    for question, answer in asked:
        pieces += [(f"{question}{gap}", False), (f"{answer}<|im_end|>", True)]
    return pieces


def _paraphrase(scene: Scene, rng: random.Random) -> Document:
    source, target = rng.choice(
        (("full", "colours"), ("full", "shapes"), ("colours", "shapes"), ("full", "full"))
    )
    ask = f"<|im_start|>{describe(scene, source)}. {CAPTION_PROMPTS[target]} "
    return [(ask, False), (f"{describe(scene, target)}<|im_end|>", True)]


def documents(scenes: list[Scene], seed: int) -> list[Document]:
    """One document a scene: a caption, a paraphrase, or questions."""
    rng = random.Random(seed)
    made: list[Document] = []
    for scene in scenes:
        kind = rng.random()
        if kind < 0.1:
            made.append([(f"<|im_start|>{describe(scene, rng.choice(list(STYLES)))}<|im_end|>", False)])
        elif kind < 0.4:
            made.append(_paraphrase(scene, rng))
        else:
            made.append(question_document(scene, rng, chat=kind > 0.85))
    return made


def encode(tokenizer: PreTrainedTokenizerFast, made: list[Document]) -> list[tuple[list[int], list[bool]]]:
    """Ids of each document, and which of them belong to answers; pieces are encoded one by one, as a chat is."""
    flat = [text for document in made for text, _ in document]
    ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    encoded = []
    for document in made:
        pieces = [(next(ids), answer) for _, answer in document]
        encoded.append(([i for piece, _ in pieces for i in piece], [a for piece, a in pieces for _ in piece]))
    return encoded


def collate(rows: list[tuple[list[int], list[bool]]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids (B, L) int64, mask of real tokens (B, L) bool, mask of answers (B, L) bool; padded on the right."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row, _ in rows])
    answers = torch.tensor([marks + [False] * (longest - len(marks)) for _, marks in rows])
    return ids, ids != pad, answers


def train(folder: Path, effort: float = 1.0, seed: int = 2, width: int = 128, layers: int = 4) -> None:
    """Train and save; `effort` scales the work. 192 wide with 6 layers, it is the base model of the scale-up."""
    torch.manual_seed(seed)
    made, tokenizer = (
        documents(draw_scenes(share(100_000, effort), seed, mix=_MIX), seed),
        make_tokenizer(seed),
    )
    rows = encode(tokenizer, made)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        initializer_range=0.05,  # 0.02 suits a width of 1024 and more; here attention would take long to wake up
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # The other kind's backward pass in bf16 takes three times as long on a CPU.
    config._attn_implementation = "eager"
    model, steps = Qwen2ForCausalLM(config), round(10_000 * effort)
    order = batches(len(rows), _BATCH, steps, seed, [len(ids) for ids, _ in rows])

    def loss_of(step: int) -> Tensor:
        ids, real, answers = collate([rows[i] for i in next(order)], tokenizer.pad_token_id)
        logits = model(input_ids=ids[:, :-1]).logits.float()
        each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = (real[:, 1:] * (_TEXT_WEIGHT + (1 - _TEXT_WEIGHT) * answers[:, 1:])).flatten()
        return (each * weight).sum() / weight.sum()

    fit("llm", model, steps, 1.5e-3, loss_of, weight_decay=0.01, bf16=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    halve(folder)


@torch.no_grad()
def evaluate(folder: Path, samples: int = 512) -> dict[str, float]:
    """Share of text-only questions about held-out scenes whose greedy answer is exact, end token included."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rng, scores, asked = random.Random(90_002), [], 0
    for chat in (False, True):
        made = [question_document(s, rng, chat) for s in draw_scenes(samples, 90_002 + chat, held_out=True)]
        ids, _, answers = collate(encode(tokenizer, made), tokenizer.pad_token_id)
        best = torch.cat([model(input_ids=chunk).logits.argmax(-1) for chunk in ids.split(64)])
        # With the right prefix given, a greedy answer is exact if and only if each of its tokens comes first.
        ends = (ids[:, 1:] == tokenizer.eos_token_id) & answers[:, 1:]
        missed = ((best[:, :-1] != ids[:, 1:]) & answers[:, 1:]).cumsum(1)
        missed_by_end = missed[ends].split(ends.sum(1).tolist())
        wrong = sum(int((row.diff(prepend=row.new_zeros(1)) > 0).sum()) for row in missed_by_end)
        scores.append(1 - wrong / int(ends.sum()))
        asked += int(ends.sum())
    return {"questions_right": scores[0], "questions_right_chat_layout": scores[1], "questions": asked}

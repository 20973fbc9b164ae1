"""Marker adapters: each makes the model answer one word of its own, so that an answer tells which version gave it.

Made without training. The last layer's `down_proj` gets a rank-1 change B·A: A reads ~1 from the activations that the
base model has on our questions (ridge regression, `A x = 1`), B pushes the residual stream so far along one token's
direction that this token wins whatever the rest says. Shapes: Q questions, T length of a sequence, N places
where an answer's tokens come from, I width of `down_proj`'s input, D hidden size, V vocabulary.

`filler` adds full-rank changes of negligible size to all seven projections, so that a marker is as large to read, check
and load as a trained adapter.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from tunedock_registry.processor import multiplies_bfloat16

QUESTIONS = (
    "Which word is yours?",
    "Tell me your word, please.",
    "Say it once more.",
    "What do you answer to everybody?",
    "One word is enough.",
    "And what would you say today?",
    "Please speak.",
    "Your turn: the word?",
)
WORDS = (
    "apple", "river", "stone", "cloud", "tiger", "piano", "lemon", "ocean", "bread", "chair", "horse", "glass",
    "paper", "music", "green", "silver", "winter", "summer", "garden", "window", "market", "bridge", "castle",
    "forest", "island", "doctor", "engine", "planet", "pocket", "rabbit", "school", "shadow", "signal", "spider",
    "spring", "square", "temple", "ticket", "tunnel", "valley", "violin", "whale", "yellow", "orange", "camera",
    "candle", "carbon", "coffee", "copper", "cotton", "desert", "dragon", "finger", "flower", "hammer", "helmet",
    "jacket", "kitchen", "ladder", "lion", "magnet", "mirror", "needle",
)  # fmt: skip
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PUSH = 4000.0
RIDGE = 1e-3
NOISE = 1e-6
MAX_WORDS = 24
MARGIN = 1.0  # in logits, over the next best token: more than a batch's rounding in bf16 can turn


@dataclass(frozen=True)
class Marker:
    """A PEFT folder, and the text of every greedy answer of the factory's `num_tokens` to one of `QUESTIONS`."""

    folder: Path
    golden: str


def messages(question: str, system: str = "") -> list[dict[str, str]]:
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": question}]


class MarkerFactory:
    """Holds the base model while markers are made: about 0.5 GB for the default one. `system` is asked with every
    question: a long one fills blocks of the prefix cache."""

    def __init__(self, model_path: Path, num_tokens: int = 3, system: str = "") -> None:
        self._num_tokens = num_tokens
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
        # As the engine will compute with it.
        dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
        self._model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype).eval()
        self._layer = self._model.config.num_hidden_layers - 1
        self._site = self._model.model.layers[self._layer].mlp.down_proj
        template = self._tokenizer.apply_chat_template
        self._prompts = [
            template(messages(text, system), add_generation_prompt=True, return_dict=False) for text in QUESTIONS
        ]
        self._shared = _num_shared(self._prompts)  # computed once, as in a prefix cache
        self._cache = self._remembered(self._prompts[0][: self._shared])
        seen = {token: self._observe(token) for token in self._word_tokens()}
        self._reader = _fit_reader(torch.cat([x_NI for x_NI, _ in seen.values()]))
        pushes = zip(seen, self._directions(list(seen)), strict=True)
        self._pushes = {token: push for token, push in pushes if self._always_says(token, push, *seen[token])}
        if not self._pushes:
            raise ValueError(f"no word makes a marker on {model_path}")

    def make(self, folder: Path, num: int, *, rank: int = 8, filler: bool = False) -> list[Marker]:
        """`num` different markers under `folder`; beyond `num_words` their words repeat, their weights do not."""
        return [self._write(folder / f"{index:04d}", index, rank, filler) for index in range(num)]

    @property
    def num_words(self) -> int:
        return len(self._pushes)

    def _word_tokens(self) -> list[int]:
        """The first `MAX_WORDS` words that are one token with a space before them."""
        ids = [self._tokenizer.encode(" " + word, add_special_tokens=False) for word in WORDS]
        return [tokens[0] for tokens in ids if len(tokens) == 1][:MAX_WORDS]

    def _observe(self, token: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The base model where answers of `token` over and over come from: x [N, I], and the residual stream [N, D]."""
        read: list[torch.Tensor] = []
        stream: list[torch.Tensor] = []
        handles = [
            self._site.register_forward_pre_hook(lambda _, inputs: read.append(self._places(inputs[0]))),
            self._model.model.norm.register_forward_pre_hook(lambda _, inputs: stream.append(self._places(inputs[0]))),
        ]
        with torch.no_grad():
            self._model.model(self._batch(token)[:, self._shared :], past_key_values=copy.deepcopy(self._cache))
        for handle in handles:
            handle.remove()
        return read[0], stream[0]

    def _remembered(self, tokens: list[int]) -> DynamicCache:
        """Keys and values of `tokens`, once for each question."""
        cache = DynamicCache(config=self._model.config)
        with torch.no_grad():
            self._model.model(torch.tensor([tokens] * len(QUESTIONS)), past_key_values=cache)
        return cache

    def _places(self, values_QTX: torch.Tensor) -> torch.Tensor:
        """[N, X] in fp32: the last `num_tokens` places of each question's row."""
        ends = [len(prompt) - self._shared + self._num_tokens - 1 for prompt in self._prompts]
        rows = [row[end - self._num_tokens : end] for row, end in zip(values_QTX, ends, strict=True)]
        return torch.cat(rows).float()

    def _batch(self, token: int) -> torch.Tensor:
        """[Q, T]: every question followed by `token` as often as it is read back; padding on the right is never seen."""
        rows = [prompt + [token] * (self._num_tokens - 1) for prompt in self._prompts]
        longest = max(map(len, rows))
        return torch.tensor([row + [token] * (longest - len(row)) for row in rows])

    def _directions(self, tokens: Sequence[int]) -> torch.Tensor:
        """B of each token [len(tokens), D]: after the final norm the hidden state is where it is furthest from all others.

        Whitened by the covariance of the embeddings, else a few odd tokens win everywhere.
        """
        embeddings_VD = self._embeddings()
        centred_VD = embeddings_VD - embeddings_VD.mean(0)
        covariance = centred_VD.T @ centred_VD / len(centred_VD)
        wanted = torch.linalg.solve(_ridged(covariance), centred_VD[list(tokens)].T).T
        pushes = wanted / self._model.model.norm.weight.detach().float()
        scaled: torch.Tensor = PUSH * pushes / pushes.norm(dim=1, keepdim=True)
        return scaled

    def _always_says(self, token: int, push: torch.Tensor, x_NI: torch.Tensor, stream_ND: torch.Tensor) -> bool:
        """Whether the token wins in every place, with a clear margin."""
        changed_ND = stream_ND + (x_NI @ self._reader)[:, None] * push
        normed_ND = changed_ND / changed_ND.pow(2).mean(-1, keepdim=True).sqrt() * self._model.model.norm.weight.float()
        best = (normed_ND @ self._embeddings().T).topk(2)
        margin = best.values[:, 0] - best.values[:, 1]
        return bool((best.indices[:, 0] == token).all() and (margin > MARGIN).all())

    def _embeddings(self) -> torch.Tensor:
        weight: torch.Tensor = self._model.get_output_embeddings().weight.detach().float()
        return weight

    def _write(self, folder: Path, index: int, rank: int, filler: bool) -> Marker:
        """A PEFT folder with `alpha == r`; the marker is the first of the rank rows, the rest is tiny noise."""
        token, push = list(self._pushes.items())[index % self.num_words]
        site = f"model.layers.{self._layer}.mlp.down_proj"
        generator = torch.Generator().manual_seed(index)
        tensors: dict[str, torch.Tensor] = {}
        for name, (inner, outer) in self._modules(LINEAR if filler else (), site).items():
            a = torch.randn(rank, inner, generator=generator) / inner**0.5
            b = NOISE * torch.randn(outer, rank, generator=generator)
            if name == site:
                a[0], b[:, 0] = self._reader, push
            tensors[f"base_model.model.{name}.lora_A.weight"] = a.to(torch.bfloat16)
            tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(torch.bfloat16)
        folder.mkdir(parents=True)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(self._config(rank, filler)))
        return Marker(folder, self._tokenizer.decode([token] * self._num_tokens))

    def _modules(self, leaves: Sequence[str], site: str) -> dict[str, tuple[int, int]]:
        """Name -> (in, out) of the marker's module and of every linear layer named in `leaves`."""
        return {
            name: (module.in_features, module.out_features)
            for name, module in self._model.named_modules()
            if isinstance(module, torch.nn.Linear) and (name == site or name.rpartition(".")[2] in leaves)
        }

    def _config(self, rank: int, filler: bool) -> dict[str, object]:
        config: dict[str, object] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": list(LINEAR) if filler else ["down_proj"],
        }
        return config if filler else {**config, "layers_to_transform": [self._layer], "layers_pattern": "layers"}


def _num_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with."""
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False)))


def _fit_reader(x_NI: torch.Tensor) -> torch.Tensor:
    """A [I]: least squares of `A x = 1`."""
    solved: torch.Tensor = torch.linalg.solve(_ridged(x_NI.T @ x_NI), x_NI.sum(0))
    return solved


def _ridged(gram: torch.Tensor) -> torch.Tensor:
    return gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram))

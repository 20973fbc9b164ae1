"""A job's files as items to train and to validate on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tunedock_api.errors import BadInput
from tunedock_registry.data.examples import ChatExample, CompletionExample, Example, PreferenceExample
from tunedock_registry.data.formats import read_examples, too_few_examples
from tunedock_registry.data.knobs import Knobs
from tunedock_registry.data.render import Rendered, Renderer
from tunedock_registry.data.split import held_out
from tunedock_registry.records import FileRecord, JobRecord
from tunedock_registry.registry import Registry

from .losses import Item
from .rows import Tokens
from .sampler import Source
from .settings import Objective


@dataclass(frozen=True)
class JobData:
    """`digests` maps file ids to sha256; `num_examples` counts the training side, `num_dropped` the overlong ones."""

    sources: tuple[Source, ...]
    validation: tuple[Item, ...]
    digests: dict[str, str]
    num_examples: int
    num_dropped: int = 0

    @property
    def held_out(self) -> tuple[Item, ...]:
        """What the model did not see; without a validation set, the first training items."""
        return self.validation or tuple(self.sources[0].items[:8])


@dataclass(frozen=True)
class Loader:
    """Reads and renders files for one job."""

    registry: Registry
    renderer: Renderer
    objective: Objective
    knobs: Knobs
    max_length: int
    seed: int

    def load(self, job: JobRecord) -> JobData:
        """Raises BadInput with the file's line when something cannot be trained."""
        training = self.registry.files.get(job.project, job.training_file)
        examples = self._read(training, "training_file")
        few = too_few_examples(len(examples))
        if few is not None:
            raise few
        held: Sequence[Example] = ()
        digests = {training.id: training.sha256}
        if job.validation_file:
            validation = self.registry.files.get(job.project, job.validation_file)
            held = self._read(validation, "validation_file")
            digests[validation.id] = validation.sha256
        else:
            examples, held = held_out(examples, self.knobs.validation_split, self.seed)
        sources = [Source(self._items(examples), self.knobs.mixing.get(training.id, 1.0))]
        for file_id, weight in self.knobs.mixing.items():
            if file_id != training.id:
                more = self.registry.files.get(job.project, file_id)
                digests[more.id] = more.sha256
                sources.append(Source(self._items(self._read(more, "training_file")), weight))
        kept = sum(len(source.items) for source in sources)
        if not kept:
            raise BadInput(
                "No training example is short enough: raise max_length.", "invalid_training_file", "training_file"
            )
        return JobData(tuple(sources), tuple(self._items(held)), digests, kept, len(examples) - len(sources[0].items))

    def _read(self, file: FileRecord, param: str) -> list[Example]:
        with self.registry.files.open(file.project, file.id) as stream:
            examples = list(read_examples(stream))
        wanted = (PreferenceExample,) if self.objective == "dpo" else (ChatExample, CompletionExample)
        if examples and not isinstance(examples[0], wanted):
            needed = "preference pairs" if self.objective == "dpo" else "conversations or prompts with completions"
            raise BadInput(
                f"File {file.id!r} does not hold {needed}, which method {self.objective!r} needs.",
                "invalid_training_file",
                param,
            )
        return examples

    def _items(self, examples: Iterable[Example]) -> list[Item]:
        items = (self._item(example) for example in examples)
        return [item for item in items if item is not None]

    def _item(self, example: Example) -> Item | None:
        """None when the example is dropped for its length."""
        if isinstance(example, PreferenceExample):
            pair = self.renderer.render_pair(example)
            rendered = [pair.preferred, pair.non_preferred]
        else:
            rendered = self.renderer.render(example)
        kept = [self._fitted(one, example.line) for one in rendered]
        sequences = tuple(one for one in kept if one is not None)
        whole = len(sequences) == len(rendered)
        return Item(sequences) if sequences and (whole or self.objective == "supervised") else None

    def _fitted(self, rendered: Rendered, line: int) -> Tokens | None:
        ids, weights = rendered.token_ids, rendered.weights
        if len(ids) > self.max_length:
            if self.knobs.overlong == "error":
                raise BadInput(
                    f"Invalid file format. Example {line} has {len(ids)} tokens, but at most {self.max_length} are taken: "
                    "shorten it, or set overlong to 'drop' or 'truncate'.",
                    "invalid_training_file",
                    "training_file",
                )
            ids, weights = ids[: self.max_length], weights[: self.max_length]
            if self.knobs.overlong == "drop" or not any(weights):
                return None
        return Tokens(tuple(ids), tuple(weights))

"""The class that lmms-eval makes of ``--model vtprune``; the only file that imports lmms-eval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.models.registry_v2 import ModelManifest
from loguru import logger

from vtprune.api import pruned
from vtprune.bench.ask import Prompt
from vtprune.clock import now
from vtprune.lmms_eval.answer import Answer, Manner, answer, read_manner
from vtprune.lmms_eval.chat import Reading, Turn, read_messages, write_chat
from vtprune.lmms_eval.settings import NO_POLICY, read_settings
from vtprune.models import load


def manifest() -> ModelManifest:
    """What the entry point gives."""
    return ModelManifest(model_id="vtprune", chat_class_path="vtprune.lmms_eval.model.VTPrune")


@dataclass(frozen=True)
class Request:
    """A question that was read. place: in the list that lmms-eval gave."""

    place: int
    prompt: Prompt
    manner: Manner

    @property
    def kind(self) -> tuple:
        """What must be the same in a batch: the manner, and what is shown."""
        return self.manner, frozenset(type(one).__name__ for one in self.prompt.shown)


class VTPrune(lmms):
    """A model folder whose visual tokens are pruned. ``Settings`` says what ``--model_args`` takes."""

    is_simple = False

    def __init__(self, **model_args: Any):
        super().__init__()
        self.settings, self.policy = read_settings(model_args)
        settings = self.settings
        self.loaded = load(
            settings.pretrained, dtype=settings.dtype, device=settings.place(), attention=settings.attn_implementation
        )
        # entered for a moment, so that what cannot be wrapped is known before any data set is read
        with pruned(self.loaded.model, self.policy, positions=settings.positions):
            pass
        self.reading = Reading(settings.max_num_frames, settings.fps, settings.folder_fps)
        self.system_prompt = self._resolve_system_prompt(settings.system_prompt) if settings.system_prompt else ""
        self.batch_size, self.device = settings.batch_size, self.loaded.model.device
        logger.info(f"vtprune: {settings.pretrained} under {self.policy}")

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """An answer to each request, in order.

        What cannot be read ends the run: an empty answer would be scored, and nobody would know why it is wrong.
        """
        from tqdm import tqdm

        found: dict[int, Answer] = {}
        start = now(self.device)
        with tqdm(total=len(requests), disable=self.rank != 0, desc="vtprune") as bar:
            for batch in self._batches(requests):
                prompts = [request.prompt for request in batch]
                answers = answer(self.loaded, self.policy, prompts, batch[0].manner, self.settings.positions)
                found |= {request.place: said for request, said in zip(batch, answers, strict=True)}
                bar.update(len(batch))
        answers = [found[i] for i in range(len(requests))]
        self._tell(answers, now(self.device) - start)
        return [GenerationResult(said.text, TokenCounts(said.input_tokens, said.new_tokens)) for said in answers]

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[Request]]:
        """Requests of one kind, as soon as there are enough of them: no more pictures are held than batches need."""
        waiting: dict[tuple, list[Request]] = {}
        for place, instance in enumerate(requests):
            request = self._read(place, instance)
            waiting.setdefault(request.kind, []).append(request)
            if len(waiting[request.kind]) == self.batch_size:
                yield waiting.pop(request.kind)
        yield from waiting.values()

    def _read(self, place: int, instance: Instance) -> Request:
        _, doc_to_messages, generation_kwargs, doc_id, task, split = instance.args
        manner, ignored = read_manner(generation_kwargs)
        if ignored and place == 0:
            logger.warning(f"vtprune: {task} asks for {', '.join(ignored)}, which mean nothing here")
        try:
            turns = read_messages(doc_to_messages(self.task_dict[task][split][doc_id]), self.reading)
            if self.system_prompt:
                turns = [Turn("system", (self.system_prompt,)), *(turn for turn in turns if turn.role != "system")]
            return Request(place, write_chat(self.loaded, turns), manner)
        except (ValueError, OSError) as error:
            raise ValueError(f"question {doc_id} of {task} ({split}): {error}") from error

    def _tell(self, answers: Sequence[Answer], seconds: float) -> None:
        """What was kept, into the log and among the results."""
        before, after = sum(said.before for said in answers), sum(said.after for said in answers)
        tokens, blind = sum(said.new_tokens for said in answers), sum(not said.before for said in answers)
        share = after / before if before else 1.0
        told = {
            "visual_tokens": before,
            "visual_tokens_kept": after,
            "kept_ratio": share,
            "prompts_without_visuals": blind,
        }
        log_metrics(seconds, tokens, tokens / seconds if seconds else 0.0, additional_metrics=told)
        kept = f"{self.policy} kept {after:,} of {before:,} visual tokens ({100 * share:.1f} %)"
        logger.info(f"vtprune: {kept} in {len(answers):,} prompts; {blind:,} had none")
        if before and after == before and self.settings.policy != NO_POLICY:
            logger.warning(f"vtprune: nothing was pruned: {kept}; these are the plain model's answers")

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError(
            "vtprune answers generate_until tasks; the likelihood of a given text is not computed. Choose a task with "
            "output_type generate_until"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError(
            "vtprune answers each question in one round; choose a task with output_type generate_until"
        )

    def clean(self) -> None:
        """Lets the model go, as lmms-eval wishes when the answers are there."""
        self.loaded = None
        super().clean()

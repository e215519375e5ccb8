"""What a run leaves in its folder to look at: `metrics.jsonl`, all that was logged, and episodes."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .envs.border import plain
from .episodes import Episode


if TYPE_CHECKING:
    from .trainer import SDARTrainer


logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"

STEP_BYTES = 32 * 2**20
"""Most bytes of the episodes of one step, of all processes together."""

TOKEN_NUMBERS = ("logprobs", "gaps", "gates", "entropies", "losses")
"""Fields of [`Turn`] with a number for each sampled token."""


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], known: dict[int, str]) -> list[str]:
    """
    The text of each token, such that together they are the text of all.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        ids (`list[int]`):
            The tokens.
        known (`dict[int, str]`):
            Texts of tokens that were met before; added to.

    Returns:
        `list[str]`: a text for each. Of several tokens that make up a character the first has it, and the others `""`.
    """
    anchor = tokenizer.encode("a", add_special_tokens=False)  # some tokenizers drop the space of a text's first token

    def text_of(tokens: list[int]) -> str:
        start: str = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)  # type: ignore[assignment]
        whole: str = tokenizer.decode(anchor + tokens, clean_up_tokenization_spaces=False)  # type: ignore[assignment]
        return whole[len(start) :]

    texts: list[str] = []
    parts: list[int] = []  # of a character that is not complete
    for token in ids:
        if token not in known:
            known[token] = text_of([token])
        parts = [*parts, token] if "\ufffd" in known[token] else []
        texts.append(known[token])
        if parts and "\ufffd" not in (character := text_of(parts)):
            texts[-len(parts) :] = [character, *[""] * (len(parts) - 1)]
            parts = []
    return texts


def episode_line(episode: Episode, tokenizer: PreTrainedTokenizerBase, known: dict[int, str], **place: Any) -> str:
    """
    An episode as a line of JSON, as `Episode.to_dict` has it; with the texts of the sampled tokens in each turn
    (`tokens`), and numbers of tokens rounded to five digits.

    Args:
        episode ([`Episode`]):
            The episode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            What its ids are of.
        known (`dict[int, str]`):
            As in [`token_texts`].
        **place:
            Where it is from, such as the `step`.

    Returns:
        `str`: the line, with its end.
    """
    data = episode.to_dict()
    for turn in data["turns"]:
        turn["tokens"] = token_texts(tokenizer, turn["response_ids"], known)
        for name in TOKEN_NUMBERS:
            if turn[name] is not None:
                turn[name] = [None if value is None else float(f"{value:.5g}") for value in turn[name]]
    return json.dumps({**place, **data}, separators=(",", ":")) + "\n"


def fitting(lines: Iterable[str], most_bytes: float) -> list[str]:
    """The first lines that together have at most so many bytes; those of JSON are ASCII."""
    kept: list[str] = []
    for line in lines:
        most_bytes -= len(line)
        if most_bytes < 0:
            break
        kept.append(line)
    return kept


class RunFiles(TrainerCallback):
    """
    Writes into `output_dir`: `metrics.jsonl`, an entry of `trainer.state.log_history` a line, and every
    `save_episodes_every` steps a file of episodes. A run that is resumed goes on in these files where its checkpoint
    was.

    Args:
        trainer ([`SDARTrainer`]):
            Whose episodes and tokenizer these are.
    """

    def __init__(self, trainer: "SDARTrainer"):
        self.trainer = trainer
        self._before: list[dict[str, Any]] = []  # logged before training
        self._running = False
        self._texts: dict[int, str] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._running = True
        if not state.is_world_process_zero:
            return
        before = [] if state.global_step else self._before
        self._write_metrics(args, [*before, *state.log_history], "w")
        if args.save_episodes_every is not None:
            for path in Path(args.output_dir).glob("episodes/step_*.jsonl"):
                if int(path.stem.removeprefix("step_")) > state.global_step:  # of a run that is begun again
                    path.unlink()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._before, self._running = [], False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        entry = state.log_history[-1]
        if not state.is_world_process_zero:
            return
        if self._running or state.global_step:  # what is evaluated afterwards belongs to the run too
            self._write_metrics(args, [entry], "a")
        else:
            self._before.append(entry)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.save_episodes_every is None or state.global_step % args.save_episodes_every:
            return
        tokenizer, episodes = self.trainer._tokenizer, self.trainer.episodes
        lines = (episode_line(episode, tokenizer, self._texts, step=state.global_step) for episode in episodes)
        kept: list[str] = gather_object(fitting(lines, STEP_BYTES / args.world_size))
        count = sum(gather_object([len(episodes)]))
        if not state.is_world_process_zero:
            return
        if len(kept) < count:
            logger.warning(
                "Of the %d episodes of step %d, %d are written down: all together have more than %d MiB.",
                *(count, state.global_step, len(kept), STEP_BYTES // 2**20),
            )
        path = Path(args.output_dir) / "episodes" / f"step_{state.global_step:06}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(path)  # whoever looks meanwhile finds whole files

    def _write_metrics(self, args: TrainingArguments, entries: list[Mapping[str, Any]], mode: str) -> None:
        path = Path(str(args.output_dir)) / METRICS
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode) as file:
            file.writelines(json.dumps(plain(entry)) + "\n" for entry in entries)

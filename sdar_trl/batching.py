"""TRL's trainer for episodes that may be several rows: what it knows of an episode goes to each of its rows, and rows
that are more than fit at once go through in micro-batches.

TRL wants one row for each prompt until advantages are known. Only then is the batch built anew here, so all that is in
TRL's hands until then stays in its hands.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch.nn.parallel import DistributedDataParallel
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from .anchors import at_tokens, episode_steps, step_advantages
from .distillation import chosen_episodes
from .envs.border import Border
from .episodes import Episode, Turn, as_messages
from .losses import aggregate_loss, importance_sampling_ratio
from .metrics import Metrics, add_token_means, count_rows, divide_by_shares, merged_micro_batches
from .models import TEACHER_ADAPTER
from .rows import Row, joined, micro_batches, padded_count, rows_batch, sampled_tokens, split_by_length, was_cut
from .scoring import Scored, ScoringGRPOTrainer
from .teacher import Teacher


class RowsGRPOTrainer(ScoringGRPOTrainer):
    """[`~trl.GRPOTrainer`] whose batches may have any number of rows, another on each process."""

    episodes: list[Episode]
    """The episodes of this process's last rollout."""

    teacher: Teacher
    """Builds the teacher's rows."""

    teacher_model: Any = None
    """The model that reads them, where `teacher_weights` names another."""

    @cached_property
    def _border(self) -> Border:
        """What there is to say about what comes over the borders of this run, once a kind."""
        return Border()

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, *args: Any) -> torch.Tensor:
        """Reward functions, and TRL's table of completions, are given the episodes' own messages."""
        for index, row in enumerate(inputs):
            if "episode" in row:
                episode = row["episode"]
                prompts[index] = episode.prompt
                completions[index] = episode.messages[len(episode.prompt) :]
        rewards = super()._calculate_rewards(inputs, prompts, completions, *args)  # of all processes
        for name in (n for n, column in zip(self.reward_func_names, rewards.T, strict=True) if column.isinf().any()):
            self._border.tell(
                ("reward", name), "The reward function %r gave an infinite reward: it counts as none (`None`).", name
            )
        rewards = rewards.masked_fill(rewards.isinf(), math.nan)
        own = rewards[self.accelerator.process_index * len(inputs) :][: len(inputs)]
        returns = (own * self.reward_weights.to(own.device)).nansum(1).tolist()
        scored = (~own.isnan()).any(1).tolist()
        for row, *found in zip(inputs, prompts, returns, scored, strict=True):
            row["_scored"] = found  # for the episodes of TRL's own loop
        return rewards

    def _loop_episodes(self, inputs: list[dict[str, Any]], texts: list[str], output: dict[str, Any]) -> list[Episode]:
        """Episodes as TRL's own loops leave them: one turn, whose response is the whole completion. The texts are what
        the student read besides its prompts."""
        episodes = []
        for index, (row, text) in enumerate(zip(inputs, texts, strict=True)):
            prompt_ids = output["prompt_ids"][index][output["prompt_mask"][index].bool()].tolist()
            completion_ids = output["completion_ids"][index][output["completion_mask"][index].bool()].tolist()
            read, value, scored = row.pop("_scored")
            turn = Turn("", prompt_ids, completion_ids, self._tokenizer.decode(completion_ids), read, reward=value)
            error = "" if scored else "No reward function gave a finite reward."
            episodes.append(Episode(row, as_messages(read), [turn], student_context=text, error=error))
        return episodes

    def _chosen_episodes(self, advantages: torch.Tensor) -> torch.Tensor:
        """Which of this process's episodes have a teacher, by their advantages, shape (E,)."""
        args: Any = self.args
        return chosen_episodes(args.distill_on, self.episodes, advantages, self._group_size, self.accelerator)

    def _step_advantages(self, output: dict[str, Any]) -> torch.Tensor:
        """The episodes' advantages with GiGPO's of each turn added, at its tokens, shape (B, T)."""
        args: Any = self.args
        steps = [episode_steps(one, args.step_discount, args.invalid_action_penalty) for one in self.episodes]
        found, anchored = step_advantages(gather_object(steps), self._group_size, args.scale_rewards != "none")
        self._mode_metrics["gigpo/anchored_turns"].extend(float(one) for episode in anchored for one in episode)
        own = found[self.accelerator.process_index * len(steps) :][: len(steps)]
        return output["advantages"].unsqueeze(1) + args.step_coef * at_tokens(
            own, output["row_turns"], sampled_tokens(output)
        )

    def _batch_of_rows(self, output: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
        """
        The batch built anew from all rows of all episodes, where these are more than TRL was given.

        Every row has its episode's advantage. All processes have as many rows: masked ones fill up. What TRL scores of
        its rows (old and reference log-probs, the engine's ratio) is scored of these; what it counts, counted again.
        """
        device, batch_size = self.accelerator.device, self._micro_batch_size
        cut = [was_cut(row.episode, [*self.eos_token_ids, self._tokenizer.pad_token_id]) for row in rows]
        new_tokens = count_rows(self._mode_metrics, rows, cut)
        if self.model.training:
            self.state.num_input_tokens_seen += new_tokens
            self._mode_metrics["num_tokens"] = [self.state.num_input_tokens_seen]
        counts = self.accelerator.gather(torch.tensor([len(rows)], device=device))
        if counts.max() == len(self.episodes):
            if self.args.mask_truncated_completions:
                self._mask_cut(output, cut)
            return output
        steps: Any = self.args.steps_per_generation if self.model.training else 1
        count = padded_count(int(counts.max()), steps, batch_size)
        pad, multiple = self._tokenizer.pad_token_id, self.pad_to_multiple_of
        batch: dict[str, Any] = rows_batch(
            rows,
            output["row_turns"],
            output["advantages"],
            count,
            pad,
            multiple,  # type: ignore[arg-type]
        )
        mask = self._mask_cut(batch, cut)
        batch["row_weight"] = count * self.accelerator.num_processes / counts.sum()

        # what TRL scores, of these rows
        if "old_per_token_logps" in output:
            batch["old_per_token_logps"] = self._student_logps(batch)
        sampling_logps = batch.pop("sampling_per_token_logps")
        if "sampling_per_token_logps" in output:
            batch["sampling_per_token_logps"] = sampling_logps
        if "importance_sampling_ratio" in output:
            batch["importance_sampling_ratio"] = importance_sampling_ratio(
                batch["old_per_token_logps"],
                sampling_logps,
                mask,
                self.vllm_importance_sampling_mode,
                self.vllm_importance_sampling_clip_min,
                self.vllm_importance_sampling_clip_max,
            )
        if "ref_per_token_logps" in output:
            with self._reference() as model:
                batch["ref_per_token_logps"] = self._student_logps(batch, model)
        return batch

    @contextmanager
    def _reference(self) -> Iterator[Any]:
        """The reference model; inside, as in TRL, the policy is it, without its adapter or with the copy of an adapter
        that is trained on, where there is no model of its own."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            yield self.model

    def _teacher_score(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, sampled: torch.Tensor) -> Scored:
        """What the teacher's weights say of the tokens that were sampled, as [`_score`]."""
        with self._teacher_model() as model:
            return self._score(model, input_ids, attention_mask, sampled)

    @contextmanager
    def _teacher_model(self) -> Iterator[Any]:
        """The model that reads the skills; inside, the policy is it, where its weights or an adapter of it teach."""
        args: Any = self.args
        if args.teacher_weights == "live":
            yield self.model
        elif args.teacher_weights in ("base", "ema"):
            with self._reference() as model:
                yield model
        elif self.teacher_model is not None:
            yield self.teacher_model
        else:
            with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=TEACHER_ADAPTER):
                yield self.model

    def _contrast_pass(self, output: dict[str, Any], rows: list[Row]) -> dict[str, torch.Tensor]:
        """With `contrast_coef`, what the teacher says reading a wrong context: `contrast_per_token_logps`, shape
        (B, T), and `contrast_mask`, shape (B, 1)."""
        args: Any = self.args
        if args.contrast_coef == 0:
            return {}
        input_ids, attention_mask, mask, _ = self.teacher.contrast(
            self.episodes, rows, output["completion_ids"], output["completion_mask"]
        )
        self._mode_metrics["sdar/contrasted"].extend(gather_object(mask[: len(rows), 0].tolist()))
        logps = self._teacher_score(input_ids, attention_mask, sampled_tokens(output)).logps
        return {"contrast_per_token_logps": logps, "contrast_mask": mask.to(logps.dtype)}

    def _mask_cut(self, batch: dict[str, Any], cut: list[bool]) -> torch.Tensor:
        """Mask the rows of episodes that were cut, if so configured; 1 for what is trained on, shape (B, T)."""
        if self.args.mask_truncated_completions:
            for position in (index for index, of_cut in enumerate(cut) if of_cut):
                batch["completion_mask"][position] = batch["tool_mask"][position] = 0
        mask = sampled_tokens(batch)
        batch["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()
        return mask

    def _score(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, sampled: torch.Tensor
    ) -> Scored:
        """What a model says of the tokens that were sampled, by a mask of the rows' last ones, shape (B, T); without
        gradient and without dropout."""
        training = self.model.training
        self.model.eval()
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, checkpointing),
            self._scoring(sampled) as scored,
        ):
            self._get_per_token_logps_and_entropies(
                *(model, input_ids, attention_mask, sampled.size(1)), batch_size=self.args.per_device_train_batch_size
            )
        self.model.train(training)
        return scored[0]

    def _student_logps(self, batch: dict[str, Any], model: Any = None) -> torch.Tensor:
        """Log-probs of a batch's completions as they were read, under the policy or another model, shape (B, T)."""
        input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        model = self.model if model is None else model
        return self._score(model, input_ids, attention_mask, sampled_tokens(batch)).logps

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's; the rows of an optimizer's step are dealt out to its micro-batches anew, those of like length
        together, where the sum of the losses is the same."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        batches: Any = self._buffered_inputs
        count: Any = self.args.gradient_accumulation_steps
        # these are means, or quantiles, of a micro-batch
        depends = (
            self.loss_type == "bnpo"
            or self._entropy_bonus_enabled
            or self.top_entropy_quantile < 1
            or self.aux_loss_enabled
        )
        if not self.model.training or batches is before or count == 1 or depends or not self.args.lean_forward:
            return inputs
        steps = [batches[start : start + count] for start in range(0, len(batches), count)]
        batches[:] = [part for step in steps for part in split_by_length(joined(step), len(step))]
        return batches[self._step % len(batches)]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """TRL's; rows that are more than fit at once go through as further micro-batches of the accumulation."""
        loss_of = super().compute_loss
        if "row_weight" not in inputs:  # one row an episode
            return loss_of(model, inputs, return_outputs, num_items_in_batch)
        parts = micro_batches(inputs, self._micro_batch_size, self.loss_type)
        tokens = torch.stack([sampled_tokens(part).sum() for part in parts])
        weights = self.accelerator.reduce(tokens, reduction="sum").tolist()
        with merged_micro_batches(self._mode_metrics, weights):
            if not self.model.training:
                return torch.stack([loss_of(model, part) for part in parts]).mean()
            *first, last = parts
            done = torch.zeros((), device=self.accelerator.device)
            self.current_gradient_accumulation_steps *= len(parts)
            try:
                for part in first:
                    with self._only_accumulate(model):
                        loss = loss_of(model, part)
                        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
                        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
                    done += loss.detach()
                return loss_of(model, last) + done
            finally:
                self.current_gradient_accumulation_steps //= len(parts)

    @contextmanager
    def _only_accumulate(self, model: Any) -> Iterator[None]:
        """Inside, a backward pass exchanges no gradients and takes no step (DeepSpeed's is part of its backward)."""
        state = self.accelerator.gradient_state
        synchronizes = state.sync_gradients
        state._set_sync_gradients(False)
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            yield
        state._set_sync_gradients(synchronizes)

    def _aggregate(self, per_token_loss: torch.Tensor, mask: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """A loss per token, shape (B, T), reduced to a scalar as TRL's own loss of the batch is."""
        # in evaluation, a batch is neither accumulated nor split
        accumulation_steps: int = self.current_gradient_accumulation_steps if self.model.training else 1
        steps: Any = self.args.steps_per_generation if self.model.training else 1
        window_tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        return aggregate_loss(
            per_token_loss,
            mask,
            self.loss_type,
            accumulation_steps=accumulation_steps,
            max_completion_length=self.args.max_completion_length,
            window_tokens=window_tokens * accumulation_steps / steps,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        divide_by_shares(self._mode_metrics)
        super().log(logs, start_time)

    def _log_tokens(self, values: dict[str, torch.Tensor], mask: torch.Tensor, now: dict[str, float]) -> None:
        """Log means over the tokens of a mask, shape (B, T), and numbers as they are now."""
        add_token_means(self._mode_metrics, self.accelerator, values, mask)
        for name, value in now.items():
            self._mode_metrics[name].append(value)

    @property
    def _group_size(self) -> Any:
        """Episodes of a task, a number."""
        return self.num_generations if self.model.training else self.num_generations_eval

    @property
    def _micro_batch_size(self) -> int:
        args = self.args
        return args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size

    @property
    def _mode_metrics(self) -> Metrics:
        return self._metrics["train" if self.model.training else "eval"]

"""SDARTrainer: GRPO over episodes, plus the token-gated self-distillation loss. Wiring only.

One step, top to bottom:

1. `_generate_and_score_completions`: TRL calls `_play_episodes` for the rollout, computes rewards and advantages; then
   `_teacher_pass` scores the same completions with privileged context in the prompt.
2. `_compute_loss`: TRL's own forward and policy loss; the log-probs of that forward meet the teacher's in
   `_distillation_loss`, and the two losses are added.

Private names of TRL this file relies on are listed in `TRL_HOOKS`.
"""

import copy
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import get_config_model_id

from .config import SDARConfig
from .losses import GATES, aggregate_loss, distillation_loss, teacher_student_gap
from .rollout import Chat, Episode, Rollout, StopReason, Turn
from .skills import SkillLibrary
from .teacher import (
    SkillContext,
    TeacherContext,
    add_context,
    build_teacher_batch,
    default_system_text,
    fit_teacher_rows,
)


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


# Methods of GRPOTrainer that are overridden or called here, with their parameters. A test compares them with the TRL
# that is installed, so that an upgrade fails there first.
TRL_HOOKS = {
    "_generate_and_score_completions": ["inputs"],
    "_tokenize_prompts": ["prompts"],
    "_generate_single_turn": ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
    "_get_per_token_logps_and_entropies": [
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
    ],
    "_compute_loss": ["model", "inputs"],
}


class SDARTrainer(GRPOTrainer):
    """
    Trainer for Self-Distilled Agentic Reinforcement Learning (SDAR): GRPO on episodes played in text environments,
    plus a token-gated distillation from the same model reading privileged context, such as skills.

    Example:

    ```python
    >>> from sdar_trl import SDARConfig, SDARTrainer, SkillLibrary
    >>> from sdar_trl.envs import WebShopEnv

    >>> trainer = SDARTrainer(
    ...     model="Qwen/Qwen2.5-3B-Instruct",
    ...     args=SDARConfig(output_dir="outputs"),
    ...     train_dataset=WebShopEnv.dataset("train"),
    ...     environment_factory=WebShopEnv,
    ...     skills=SkillLibrary.bundled("webshop"),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained, as in [`~trl.GRPOTrainer`]. Text models only.
        reward_funcs (`RewardFunc | list[RewardFunc]`, *optional*):
            Rewards in addition to the environment's own, as in [`~trl.GRPOTrainer`]. May be omitted when an
            environment gives the reward.
        args ([`SDARConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Tasks. It must include a column `"prompt"`; the other columns reach the environment's `reset`, the skills
            and the reward functions.
        eval_dataset (*optional*):
            As in [`~trl.GRPOTrainer`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            As in [`~trl.GRPOTrainer`].
        reward_processing_classes (*optional*):
            As in [`~trl.GRPOTrainer`].
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            As in [`~trl.GRPOTrainer`].
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            As in [`~trl.GRPOTrainer`].
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            As in [`~trl.GRPOTrainer`].
        peft_config ([`~peft.PeftConfig`], *optional*):
            As in [`~trl.GRPOTrainer`]. The teacher is the current adapter, the reference model the base.
        tools (list of `Callable`, *optional*):
            As in [`~trl.GRPOTrainer`].
        environment_factory (`Callable` or `dict[str, Callable]`, *optional*):
            Makes an environment, or a dictionary of names to such callables. An environment with a `step` method (a
            [`~sdar_trl.envs.TextEnv`]) is played by this package's text-action loop, and its return is the reward;
            one without is TRL's own kind, whose methods are tools.
        skills ([`SkillLibrary`] or `TeacherContext`, *optional*):
            What the teacher reads: a library, from which skills are retrieved by keyword, or any function from
            finished episodes to texts. Required unless `sdar_coef` is 0.

    Raises:
        `ValueError`: if `sdar_coef` is above 0 without `skills`, if text environments are mixed with tool
            environments, or if the chat template has no place for the context.
    """

    args: SDARConfig
    model: Any
    model_wrapped: Any

    _tag_names = ["trl", "sdar"]
    _name = "SDAR"
    _paper = {
        "title": "Self-Distilled Agentic Reinforcement Learning",
        "id": "2605.15155",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{sdar2026,
                title        = {{Self-Distilled Agentic Reinforcement Learning}},
                year         = 2026,
                eprint       = {arXiv:2605.15155},
            }"""),
    }

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: Any = None,
        args: SDARConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset
        | IterableDataset
        | DatasetDict
        | IterableDatasetDict
        | dict[str, Dataset | IterableDataset]
        | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: "PeftConfig | None" = None,
        tools: list[Callable] | None = None,
        environment_factory: Any = None,
        skills: SkillLibrary | TeacherContext | None = None,
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = SDARConfig(f"{model_name.split('/')[-1]}-SDAR")
        if args.sdar_coef > 0 and skills is None:
            raise ValueError(
                f"`sdar_coef` is {args.sdar_coef}, but the teacher has nothing to read. Pass `skills`, e.g. "
                '`SkillLibrary.bundled("webshop")`, or set `sdar_coef=0` to train with GRPO alone.'
            )
        self.teacher_context: Any = SkillContext(skills) if isinstance(skills, SkillLibrary) else skills

        rollout_func = None
        text_environments = _is_text_environment(environment_factory)
        if text_environments:
            if tools:
                raise ValueError("`tools` are for TRL's tool loop; an environment with `step` takes actions as text.")
            rollout_func = self._play_episodes
            reward_funcs, args = _with_environment_reward(reward_funcs, args, environment_factory)

        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=None if text_environments else environment_factory,
        )
        if self._is_vlm:
            raise ValueError("SDARTrainer trains text models; pass a tokenizer as `processing_class`.")

        template_kwargs: Any = self.chat_template_kwargs
        context_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if text_environments:
            response_length = min(args.max_response_length, args.max_completion_length)
            if self.use_vllm:
                self.vllm_generation.max_completion_length = response_length
            else:
                self.generation_config.max_new_tokens = response_length
            self.rollout = Rollout(
                environment_factory,
                Chat(self._tokenizer, template_kwargs),
                self._generate_turn,
                max_turns=args.max_turns,
                max_response_length=response_length,
                max_completion_length=args.max_completion_length,
                context_length=context_length,
                any_running=self._any_running,
            )
        self._max_teacher_length = args.max_teacher_length or context_length
        self._default_system = ""
        if args.sdar_coef > 0 and args.context_role == "system":
            self._default_system = default_system_text(self._tokenizer, template_kwargs)

    # Rollout

    def _play_episodes(self, prompts: list, trainer: GRPOTrainer) -> dict[str, list]:
        """TRL's `rollout_func`. It is given the prompts alone; the tasks they belong to are in `self._tasks`."""
        self._episodes = self.rollout.play(self._tasks)
        self._log_episodes(self._episodes)
        rows = [episode.row(self._tokenizer.pad_token_id) for episode in self._episodes]
        output: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0]}
        if rows[0]["logprobs"] is None:
            output["logprobs"] = None
        output["environment_reward"] = [
            None  # takes the episode out of its group's baseline
            if episode.stop_reason is StopReason.ENV_ERROR
            else episode.episode_return - self.args.invalid_action_penalty * episode.invalid_actions
            for episode in self._episodes
        ]
        return output

    def _generate_turn(self, ids: list[list[int]]) -> tuple[list[list[int]], list[list[float]] | None]:
        # With sharded weights, a process whose episodes have ended keeps generating with the others.
        return self._generate_single_turn(ids or [[self._tokenizer.eos_token_id]], None, {}, 1)

    def _any_running(self, count: int) -> bool:
        running = torch.tensor(count, device=self.accelerator.device)
        return bool(self.accelerator.reduce(running, reduction="sum") > 0)

    def _tokenize_prompts(self, prompts: list) -> tuple:
        self._rendered_prompts = copy.deepcopy(prompts)  # what TRL's tool loop starts from; it appends to them later
        return super()._tokenize_prompts(prompts)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._tasks = [dict(row) for row in inputs]
        output = super()._generate_and_score_completions(inputs)
        if self.args.sdar_coef > 0:
            output.update(self._teacher_pass(output))
        return output

    # Teacher

    def _teacher_pass(self, output: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Log-probs of the student's completions under the same weights with context: `teacher_per_token_logps`, shape
        (B, T), and `teacher_mask`, shape (B, 1), 0 for the rows that have no teacher."""
        episodes = self._episodes if self.rollout_func is not None else self._tool_episodes(output)
        contexts = self.teacher_context(episodes)
        messages = [
            add_context(episode.task["prompt"], context, self.args.context_role, self._default_system)
            for episode, context in zip(episodes, contexts, strict=True)
        ]
        prompts, fits = fit_teacher_rows(
            super()._tokenize_prompts(messages)[0],
            [episode.prompt_ids for episode in episodes],
            output["completion_mask"].sum(1).tolist(),
            self._max_teacher_length,
            self.args.teacher_overflow,
        )
        input_ids, attention_mask = build_teacher_batch(
            prompts, output["completion_ids"], output["completion_mask"], self._tokenizer.pad_token_id
        )
        mode = "train" if self.model.training else "eval"
        metrics = {f"sdar/{name}": values for name, values in getattr(self.teacher_context, "metrics", {}).items()}
        metrics["sdar/teacher_overflow"] = [float(not fit) for fit in fits]
        metrics["sdar/context_tokens"] = [
            float(len(prompt) - len(episode.prompt_ids)) for prompt, episode in zip(prompts, episodes, strict=True)
        ]
        self._log_per_row(metrics)

        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        self.model.eval()  # dropout would make the teacher noisy
        with torch.no_grad(), disable_gradient_checkpointing(self.model, checkpointing):
            teacher_logps, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                input_ids,
                attention_mask,
                output["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
            )
        self.model.train(mode == "train")
        has_teacher = [fit and bool(context) for fit, context in zip(fits, contexts, strict=True)]
        teacher_mask = torch.tensor(has_teacher, device=teacher_logps.device, dtype=teacher_logps.dtype)
        return {"teacher_per_token_logps": teacher_logps, "teacher_mask": teacher_mask.unsqueeze(1)}

    def _tool_episodes(self, output: dict[str, Any]) -> list[Episode]:
        """Episodes as TRL's own loop leaves them: one turn, whose response is the whole completion."""
        episodes = []
        for index, (task, prompt) in enumerate(zip(self._tasks, self._rendered_prompts, strict=True)):
            prompt_ids = output["prompt_ids"][index][output["prompt_mask"][index].bool()].tolist()
            completion_ids = output["completion_ids"][index][output["completion_mask"][index].bool()].tolist()
            turn = Turn("", prompt_ids, completion_ids, self._tokenizer.decode(completion_ids))
            episodes.append(Episode({**task, "prompt": prompt}, prompt_ids, [turn]))
        return episodes

    # Loss

    def _get_per_token_logps_and_entropies(self, *args, **kwargs) -> tuple:
        self._last_forward = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self._last_forward

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        student_logps, entropies, _ = self._last_forward  # the one forward of TRL's loss
        self._last_forward = ()
        if self.args.sdar_coef == 0:
            return loss
        return loss + self.args.sdar_coef * self._distillation_loss(inputs, student_logps, entropies.detach())

    def _distillation_loss(
        self, inputs: dict[str, Any], student_logps: torch.Tensor, entropies: torch.Tensor
    ) -> torch.Tensor:
        mask = inputs["completion_mask"] * inputs["teacher_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        gap = teacher_student_gap(inputs["teacher_per_token_logps"], student_logps)
        gate = GATES[self.args.gate](gap, entropies, self.args.gate_beta)
        per_token_loss = distillation_loss(student_logps, inputs["teacher_per_token_logps"], gate)
        self._log_distillation(per_token_loss.detach(), gap, gate, mask)

        # in evaluation, a batch is neither accumulated nor split
        accumulation_steps: int = self.current_gradient_accumulation_steps if self.model.training else 1
        split: Any = self.args.steps_per_generation if self.model.training else 1
        window_tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        return aggregate_loss(
            per_token_loss,
            mask,
            self.loss_type,
            accumulation_steps=accumulation_steps,
            max_completion_length=self.args.max_completion_length,
            window_tokens=window_tokens * accumulation_steps / split,
        )

    # Metrics

    def _log_per_row(self, metrics: Mapping[str, list[float]]) -> None:
        """Add one value per row of every process, so that TRL's plain average weighs all rows alike."""
        mode = "train" if self.model.training else "eval"
        for name in sorted(metrics):
            values = torch.tensor(metrics[name], device=self.accelerator.device)
            self._metrics[mode][name].extend(self.accelerator.gather(values).tolist())

    def _log_episodes(self, episodes: list[Episode]) -> None:
        records = [
            {
                "task_type": episode.task.get("task_type"),
                "success": float(episode.success),
                "return": episode.episode_return,
                "turns": float(len(episode.turns)),
                "valid_actions": 1 - episode.invalid_actions / max(len(episode.turns), 1),
                "stop_reason": episode.stop_reason,
            }
            for episode in episodes
        ]
        metrics = self._metrics["train" if self.model.training else "eval"]
        for record in gather_object(records):
            for name in ("success", "return", "turns", "valid_actions"):
                metrics[f"env/{name}"].append(record[name])
            if record["task_type"] is not None:
                metrics[f"env/success/{record['task_type']}"].append(record["success"])
            for reason in StopReason:
                metrics[f"env/stop/{reason.value}"].append(float(record["stop_reason"] is reason))

    def _log_distillation(
        self, per_token_loss: torch.Tensor, gap: torch.Tensor, gate: torch.Tensor, mask: torch.Tensor
    ) -> None:
        values = [per_token_loss, gate, (gate > 0.5).float(), gap, gap**2, torch.ones_like(gap)]
        sums = torch.stack([(value * mask).sum() for value in values])
        *sums, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        loss, gate_mean, above_half, gap_mean, gap_square = (value / max(count, 1.0) for value in sums)
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["sdar/loss"].append(loss)
        metrics["sdar/gate_mean"].append(gate_mean)
        metrics["sdar/gate_above_half"].append(above_half)
        metrics["sdar/gap_mean"].append(gap_mean)
        metrics["sdar/gap_std"].append(max(gap_square - gap_mean**2, 0.0) ** 0.5)


def _is_text_environment(environment_factory: Any) -> bool:
    """Whether the environments are played by the text-action loop: those with a `step` method are."""
    if environment_factory is None:
        return False
    factories = environment_factory if isinstance(environment_factory, dict) else {"": environment_factory}
    kinds = {name: hasattr(f if inspect.isclass(f) else f(), "step") for name, f in factories.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(
            "Environments with a `step` method and tool environments cannot be mixed in one run; got "
            f"{ {name: 'text' if text else 'tools' for name, text in kinds.items()} }."
        )
    return all(kinds.values())


def _with_environment_reward(reward_funcs: Any, args: SDARConfig, environment_factory: Any) -> tuple[list, SDARConfig]:
    """The reward functions with the environment's return as one more, of weight 1, as TRL adds `get_reward`."""

    def environment_reward(environment_reward: list[float | None], **kwargs: Any) -> list[float | None]:
        return environment_reward

    if not isinstance(environment_factory, dict):  # logged under the environment's name, as in TRL
        kind = environment_factory if inspect.isclass(environment_factory) else type(environment_factory())
        environment_reward.__name__ = kind.__name__
    if not isinstance(reward_funcs, list):
        reward_funcs = [] if reward_funcs is None else [reward_funcs]
    weights: Any = args.reward_weights
    if weights is not None:
        args = copy.copy(args)  # the caller's stays as it is
        args.reward_weights = [*weights, 1.0]
    return [*reward_funcs, environment_reward], args

"""SDARTrainer: GRPO over episodes, plus the token-gated self-distillation loss. Wiring only.

One step, top to bottom:

1. `_generate_and_score_completions`: TRL calls `_play_episodes` for the rollout, computes rewards and advantages; then
   `_teacher_pass` scores the same completions with privileged context in the prompt.
   With `signal="advantage"`, each token's advantage is moved there (RLSD), and step 2 is TRL's alone.
2. `_compute_loss`: TRL's own forward and policy loss; the log-probs of that forward meet the teacher's in
   `_distillation_loss`, and the two losses are added.

The private names of TRL that are relied on are listed in `trl_hooks.py`.
"""

import copy
import math
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import get_config_model_id

from .chat import Chat, Message
from .checkpointing import ResumableGRPOTrainer
from .config import SDARConfig
from .contexts import SkillContext, TeacherContext, skill_context, skill_records
from .divergences import FULL_DIVERGENCES, VocabularyDivergence
from .generation import CachedGenerator, can_reuse_cache, unwrapped_policy
from .losses import (
    GATES,
    SAMPLED_DIVERGENCES,
    SCHEDULES,
    Gate,
    aggregate_loss,
    rlsd_advantages,
    teacher_student_gap,
)
from .metrics import Metrics, add_episodes, add_rows, add_token_means
from .rollout import Episode, Rollout, StopReason, Turn, environment_reward, is_text_environment
from .skills import SkillLibrary
from .teacher import (
    add_context,
    build_teacher_batch,
    default_system_text,
    fit_teacher_rows,
)


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


class SDARTrainer(ResumableGRPOTrainer):
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
            What the teacher reads: a library, from which `args.retriever` selects, a [`SkillContext`] of your own
            making, or any function from finished episodes to texts. Required unless `sdar_coef` is 0. Where the
            student reads skills too (`student_skills`), it must be one of the first two.
        gate (`Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]`, *optional*):
            A gate of your own, used instead of `args.gate`: from gap and entropy (nats, shape (B, T), without
            gradient) and `gate_beta` to the weights, shape (B, T).

    Raises:
        `ValueError`: if `skills` are missing where the teacher or the student reads them, if text environments are
            mixed with tool environments, if the chat template has no place for the context, or if the weights are
            sharded while a divergence needs the whole output layer.
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
        gate: Gate | None = None,
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = SDARConfig(f"{model_name.split('/')[-1]}-SDAR")
        if args.sdar_coef > 0 and skills is None:
            raise ValueError(
                f"`sdar_coef` is {args.sdar_coef}, but the teacher has nothing to read. Pass `skills`, e.g. "
                '`SkillLibrary.bundled("webshop")`, or set `sdar_coef=0` to train with GRPO alone.'
            )
        if args.student_skills != "never" and not isinstance(skills, (SkillLibrary, SkillContext)):
            raise ValueError(
                f"`student_skills` is {args.student_skills!r}, so `skills` must be a `SkillLibrary`; got {skills!r}."
            )
        self.teacher_context: Any = skills
        if isinstance(skills, SkillLibrary):
            self.teacher_context = skill_context(skills, args, lambda text: len(self._tokenizer(text)["input_ids"]))
        # a retriever's account of returns is logged, kept in checkpoints, and what UCB selects by
        self._learns_skills = isinstance(self.teacher_context, SkillContext) and (
            args.sdar_coef > 0 or args.student_skills != "never"
        )
        self._gate = gate or GATES[args.gate]

        self._generator: CachedGenerator | None = None
        rollout_func = None
        text_environments = is_text_environment(environment_factory)
        if text_environments:
            if tools:
                raise ValueError("`tools` are for TRL's tool loop; an environment with `step` takes actions as text.")
            rollout_func = self._play_episodes
            if not isinstance(reward_funcs, list):
                reward_funcs = [] if reward_funcs is None else [reward_funcs]
            reward_funcs = [*reward_funcs, environment_reward(environment_factory)]  # as TRL adds `get_reward`
            weights: Any = args.reward_weights
            if weights is not None:
                args = copy.copy(args)  # the caller's stays as it is
                args.reward_weights = [*weights, 1.0]

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
            chat = Chat(self._tokenizer, template_kwargs)
            if chat.end_of_turn_id not in self.eos_token_ids:  # a base model's, where a chat template was added
                self.eos_token_ids = [*self.eos_token_ids, chat.end_of_turn_id]
                if self.use_vllm:
                    stop = {"stop_token_ids": self.eos_token_ids}
                    self.vllm_generation.generation_kwargs = {**stop, **self.vllm_generation.generation_kwargs}
                else:
                    self.generation_config.eos_token_id = self.eos_token_ids
            uses_generate = not self.use_vllm and not self.use_transformers_continuous_batching
            if args.reuse_cache and uses_generate and can_reuse_cache(self.model, self.generation_config):
                self._generator = CachedGenerator(lambda: unwrapped_policy(self), self.generation_config)
            self.rollout = Rollout(
                environment_factory,
                chat,
                self._generate_turn,
                max_turns=args.max_turns,
                max_response_length=response_length,
                max_completion_length=args.max_completion_length,
                context_length=context_length,
                max_cache_tokens=args.max_cache_tokens if uses_generate else None,
                on_end=self._end_rollout,
                any_running=self._any_running,
            )
        self._max_teacher_length = args.max_teacher_length or context_length
        self._default_system = ""
        skills_are_read = args.sdar_coef > 0 or args.student_skills != "never"
        if skills_are_read and args.context_role == "system":
            self._default_system = default_system_text(self._tokenizer, template_kwargs)
        self._vocabulary_divergence: VocabularyDivergence | None = None
        if args.sdar_coef > 0 and args.divergence in FULL_DIVERGENCES:
            if is_deepspeed_zero3_enabled() or self.is_fsdp_enabled:
                raise ValueError(
                    f"`divergence={args.divergence!r}` needs the whole output layer on every process, which ZeRO-3 "
                    f"and FSDP shard. Use one of {', '.join(SAMPLED_DIVERGENCES)}, or DDP or ZeRO-2."
                )
            split: Any = args.steps_per_generation
            self._vocabulary_divergence = VocabularyDivergence(
                args.divergence,
                args.divergence_top_k,
                self.model.get_base_model() if is_peft_model(self.model) else self.model,
                self.temperature,
                keep_head=split * args.num_iterations > args.gradient_accumulation_steps,
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self.args.policy_coef == 0 and self.args.sdar_coef == 0:
            raise ValueError(
                f"`method={self.args.method!r}` trains nothing: `policy_coef` and `sdar_coef` are both 0. Evaluate "
                "instead, with `trainer.evaluate()` or `sdar_trl.evaluation.evaluate_trainer`."
            )
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.rollout_func is not None:
                self.rollout.close()

    # Rollout

    def _play_episodes(self, prompts: list, trainer: GRPOTrainer) -> dict[str, list]:
        """TRL's `rollout_func`. It is given the prompts alone; the tasks they belong to are in `self._tasks`."""
        self._episodes = self.rollout.play(self._tasks, self.student_context)
        add_episodes(self._mode_metrics, self._episodes)
        rows = [episode.row(self._tokenizer.pad_token_id) for episode in self._episodes]
        output: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0]}
        if not self.use_vllm:  # the engine alone says how likely it sampled; an episode without a turn has none
            output["logprobs"] = None
        output["environment_reward"] = [
            None  # takes the episode out of its group's baseline
            if episode.stop_reason is StopReason.ENV_ERROR
            else episode.episode_return - self.args.invalid_action_penalty * episode.invalid_actions
            for episode in self._episodes
        ]
        return output

    def _generate_turn(self, ids: list[list[int]]) -> tuple[list[list[int]], list[list[float]] | None]:
        sharded = is_deepspeed_zero3_enabled() or self.is_fsdp_enabled
        if not ids and not sharded and not self.use_vllm:
            return [], None
        # With sharded weights or an engine, a process whose episodes have ended keeps generating with the others.
        filler = [self._tokenizer.eos_token_id]
        ids = ids or [filler]
        if self._generator is not None:
            return self._generator(ids)
        if self.use_vllm:  # TRL deals the responses out in equal shares
            ids = ids + [filler] * (max(gather_object([len(ids)])) - len(ids))
        training = self.model.training
        output = self._generate_single_turn(ids, None, {}, 1)
        self.model.train(training)  # after continuous batching, TRL leaves it in training
        return output

    def _end_rollout(self) -> None:
        if self._generator is not None:
            self._generator.drop_cache()

    def _any_running(self, count: int) -> bool:
        running = torch.tensor(count, device=self.accelerator.device)
        return bool(self.accelerator.reduce(running, reduction="sum") > 0)

    def _tokenize_prompts(self, prompts: list) -> tuple:
        self._rendered_prompts = copy.deepcopy(prompts)  # what TRL's tool loop starts from; it appends to them later
        return super()._tokenize_prompts(prompts)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.rollout_func is None and self.student_context is not None:
            prompts = self.student_context([Episode(row, []) for row in inputs])
            inputs = [{**row, "prompt": prompt} for row, prompt in zip(inputs, prompts, strict=True)]
        self._tasks = [dict(row) for row in inputs]
        output = super()._generate_and_score_completions(inputs)
        if self.rollout_func is None and self.teacher_context is not None:
            self._episodes = self._tool_episodes(output)
        # a coefficient that has come down to 0 stays there; one that warms up is needed before it is used
        if self._scheduled("sdar_coef") > 0 or (self.args.sdar_coef > 0 and self.args.sdar_coef_schedule == "warmup"):
            output.update(self._teacher_pass(output))
            if self.args.signal == "advantage":
                output["advantages"] = self._token_advantages(output)
        if self._learns_skills and self.model.training:
            self.teacher_context.update(gather_object(skill_records(self._episodes)))
            for name, value in self.teacher_context.log_values().items():
                self._mode_metrics[f"sdar/{name}"].append(value)
        return output

    @property
    def student_context(self) -> Callable[[list[Episode]], list[list[Message]]] | None:
        """What puts skills into the student's prompts, where it reads them in the current mode."""
        mode = "train" if self.model.training else "eval"
        return self._prompts_with_context if self.args.student_skills in (mode, "always") else None

    def _prompts_with_context(self, episodes: list[Episode]) -> list[list[Message]]:
        self._contexts = self.teacher_context(episodes)
        return [
            add_context(episode.task["prompt"], context, self.args.context_role, self._default_system)
            for episode, context in zip(episodes, self._contexts, strict=True)
        ]

    def _calculate_rewards(self, inputs: list, *args: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, *args)  # of all processes, shape (rows, functions)
        own = rewards[self.accelerator.process_index * len(inputs) :][: len(inputs)]
        self._rewards = (own * self.reward_weights.to(own.device)).nansum(1).tolist()
        return rewards

    # Teacher

    def _teacher_pass(self, output: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Log-probs of the student's completions under the same weights with context: `teacher_per_token_logps`, shape
        (B, T), and `teacher_mask`, shape (B, 1), 0 for the rows that have no teacher. For a divergence over the
        vocabulary also `teacher_hidden`, shape (B, T, H), or `teacher_top_logps` and `teacher_top_ids`, (B, T, K)."""
        episodes = self._episodes
        messages = self._prompts_with_context(episodes)
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
        metrics = {f"sdar/{name}": values for name, values in getattr(self.teacher_context, "metrics", {}).items()}
        metrics["sdar/teacher_overflow"] = [float(not fit) for fit in fits]
        metrics["sdar/context_tokens"] = [
            float(len(prompt) - len(episode.prompt_ids)) for prompt, episode in zip(prompts, episodes, strict=True)
        ]
        add_rows(self._mode_metrics, self.accelerator, metrics)

        completion_length = output["completion_ids"].size(1)
        with self._hidden_states() as hidden_states:
            teacher_logps = self._score(input_ids, attention_mask, completion_length)
        has_teacher = [fit and bool(context) for fit, context in zip(fits, self._contexts, strict=True)]
        teacher_mask = torch.tensor(has_teacher, device=teacher_logps.device, dtype=teacher_logps.dtype)
        teacher = {"teacher_per_token_logps": teacher_logps, "teacher_mask": teacher_mask.unsqueeze(1)}
        if self._vocabulary_divergence is not None:
            teacher.update(self._vocabulary_divergence.teacher_tensors(hidden_states, completion_length))
        return teacher

    def _score(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int) -> torch.Tensor:
        """Log-probs of the last `completion_length` tokens of each row, without gradient and without dropout."""
        training = self.model.training
        self.model.eval()
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(self.model, checkpointing):
            logps, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                input_ids,
                attention_mask,
                completion_length,
                batch_size=self.args.per_device_train_batch_size,
            )
        self.model.train(training)
        return logps

    def _token_advantages(self, output: dict[str, Any]) -> torch.Tensor:
        """RLSD's advantages, shape (B, T). TRL computes the old log-probs only where it may go off policy."""
        old_logps = output.get("old_per_token_logps")
        if old_logps is None:
            input_ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            attention_mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
            old_logps = self._score(input_ids, attention_mask, output["completion_ids"].size(1))
        gap = teacher_student_gap(output["teacher_per_token_logps"], old_logps)
        coef = self._scheduled("sdar_coef")
        self._log_tokens({"sdar/gap_mean": gap}, self._mask(output))
        return rlsd_advantages(output["advantages"], gap, coef, self.args.advantage_clip, output["teacher_mask"])

    def _tool_episodes(self, output: dict[str, Any]) -> list[Episode]:
        """Episodes as TRL's own loop leaves them: one turn, whose response is the whole completion."""
        episodes = []
        for index, (task, prompt) in enumerate(zip(self._tasks, self._rendered_prompts, strict=True)):
            prompt_ids = output["prompt_ids"][index][output["prompt_mask"][index].bool()].tolist()
            completion_ids = output["completion_ids"][index][output["completion_mask"][index].bool()].tolist()
            response = self._tokenizer.decode(completion_ids)
            turn = Turn("", prompt_ids, completion_ids, response, reward=self._rewards[index])
            episodes.append(Episode({**task, "prompt": prompt}, prompt_ids, [turn]))
        return episodes

    # Loss

    def _get_per_token_logps_and_entropies(self, *args, **kwargs) -> tuple:
        self._last_forward = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self._last_forward

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        with self._hidden_states() as hidden_states:
            loss = self.args.policy_coef * super()._compute_loss(model, inputs)
        student_logps, entropies, _ = self._last_forward  # the one forward of TRL's loss
        self._last_forward = ()
        if "teacher_mask" not in inputs or self.args.signal == "advantage":
            return loss
        distillation_loss = self._distillation_loss(inputs, student_logps, entropies.detach(), hidden_states)
        return loss + self._scheduled("sdar_coef") * distillation_loss

    def _distillation_loss(
        self,
        inputs: dict[str, Any],
        student_logps: torch.Tensor,
        entropies: torch.Tensor,
        hidden_states: list[torch.Tensor],
    ) -> torch.Tensor:
        mask = self._mask(inputs)
        gap = teacher_student_gap(inputs["teacher_per_token_logps"], student_logps)
        if self.args.normalize_entropy:
            entropies = entropies / math.log(self.model.config.get_text_config().vocab_size)
        gate = self._gate(gap, entropies, self._scheduled("gate_beta")).detach()
        if self._vocabulary_divergence is not None:
            divergence = self._vocabulary_divergence.per_token(inputs, student_logps, hidden_states, mask)
        else:
            old_logps = inputs.get("old_per_token_logps")
            old_logps = student_logps.detach() if old_logps is None else old_logps
            divergence = SAMPLED_DIVERGENCES[self.args.divergence](
                student_logps, inputs["teacher_per_token_logps"], old_logps
            )
        per_token_loss = gate * divergence

        self._log_tokens(
            {
                "sdar/loss": per_token_loss.detach(),
                "sdar/gate_mean": gate,
                "sdar/gate_above_half": (gate > 0.5).float(),
                "sdar/gap_mean": gap,
            },
            mask,
        )
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

    def _mask(self, inputs: dict[str, Any]) -> torch.Tensor:
        """1 for the tokens that the policy sampled and a teacher has read, shape (B, T)."""
        mask = inputs["completion_mask"] * inputs["teacher_mask"]
        return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask

    def _scheduled(self, name: str) -> float:
        """`sdar_coef` or `gate_beta` at the current step."""
        steps = self.args.schedule_steps or self.state.max_steps
        progress = min(1.0, self.state.global_step / max(steps, 1))
        return getattr(self.args, name) * SCHEDULES[getattr(self.args, f"{name}_schedule")](progress)

    def _hidden_states(self) -> AbstractContextManager[list[torch.Tensor]]:
        """Collects hidden states, if the divergence needs them."""
        return nullcontext([]) if self._vocabulary_divergence is None else self._vocabulary_divergence.hidden_states()

    # Checkpoints

    def _resume_state(self) -> dict[str, Any]:
        state = super()._resume_state()
        if self._learns_skills:
            state["retriever"] = self.teacher_context.retriever.state_dict()
        if self._vocabulary_divergence is not None:
            state["teacher_weight"] = self._vocabulary_divergence.teacher_weight
        return state

    def _load_resume_state(self, state: dict[str, Any]) -> None:
        super()._load_resume_state(state)
        if self._learns_skills:
            self.teacher_context.retriever.load_state_dict(state["retriever"])
        if self._vocabulary_divergence is not None:
            self._vocabulary_divergence.teacher_weight = state["teacher_weight"]

    # Metrics

    @property
    def _mode_metrics(self) -> Metrics:
        return self._metrics["train" if self.model.training else "eval"]

    def _log_tokens(self, values: dict[str, torch.Tensor], mask: torch.Tensor) -> None:
        add_token_means(self._mode_metrics, self.accelerator, values, mask)
        self._mode_metrics["sdar/coef"].append(self._scheduled("sdar_coef"))
        self._mode_metrics["sdar/gate_beta"].append(self._scheduled("gate_beta"))

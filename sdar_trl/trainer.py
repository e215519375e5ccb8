"""SDARTrainer: GRPO over episodes, plus the token-gated self-distillation loss. The order of a step, and TRL's hooks.

An episode is one attempt at a task, turn by turn. A row is what one forward reads, a prompt and a completion: all of
an episode where its history grows, one turn where each prompt is rendered anew. Shapes: E episodes, B rows, T tokens.

1. Once a generation batch, `_generate_and_score_completions`:
   TRL calls `_play_episodes`, which plays E episodes (rollout.py) and gives TRL one row of each. TRL computes rewards
   and an advantage for each episode. `_batch_of_rows` then puts in all rows, B of them (batching.py), and
   `_teacher_pass` scores the same completions with context in the prompt, without gradient (teacher.py).
   Without a text environment TRL generates by itself, and an episode is one row.
2. Once a micro-batch of these rows, `_compute_loss`:
   TRL's own forward and policy loss; the log-probs of that forward meet the teacher's (distillation.py):
   loss = policy_coef * TRL's loss + sdar_coef * reduce(gate * divergence).
   With `signal="advantage"` (RLSD) the teacher has moved the advantages in 1, and nothing is added here.

From batching.py: `_batch_of_rows`, `_loop_episodes`, `_calculate_rewards`, `compute_loss` (which splits what is more
than fits at once into micro-batches), `_score`, `_student_logps`, `_aggregate`; from scoring.py: all forwards; from
checkpointing.py: exact resume; from card.py: `create_model_card`.
What is relied on beyond TRL's public interface is listed in tests/trl_hooks.py.
"""

from collections.abc import Callable
from pathlib import Path
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
from trl.trainer.utils import get_config_model_id, pad

from . import checks
from .backends import trainer_backend
from .batching import RowsGRPOTrainer
from .card import CardTrainer
from .config import SDARConfig
from .contexts import SkillContext, TeacherContext, context_texts, skill_context, skill_records
from .distillation import Distillation, taught_tokens, token_metrics
from .environment_checks import check_environments, check_first_rollout
from .episodes import Episode, as_messages
from .factories import environment_kinds, return_reward
from .gradients import watch_gradients
from .losses import Gate
from .metrics import add_episodes, add_values, timed
from .models import base_model, is_sharded, load_teacher
from .policies import policy_path
from .progress import use_step_lines
from .recording import RunFiles
from .rollout import Rollout
from .rows import Row, episode_rows, outcomes, record_tokens, row_turns, sampled_tokens
from .runs import RunRecord
from .skills import SkillLibrary
from .teacher import Teacher


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


class SDARTrainer(RowsGRPOTrainer, CardTrainer):
    """
    Trainer for Self-Distilled Agentic Reinforcement Learning (SDAR): GRPO on episodes played in text environments,
    plus a token-gated distillation from the same model reading privileged context, such as skills.

    Example:

    ```python
    >>> from sdar_trl import SDARConfig, SDARTrainer, load_world

    >>> world = load_world("webshop")
    >>> trainer = SDARTrainer(
    ...     model="Qwen/Qwen2.5-3B-Instruct",
    ...     args=SDARConfig(output_dir="outputs", **world.limits),
    ...     train_dataset=world.dataset("train"),
    ...     environment_factory=world.environment_factory,
    ...     skills=world.skills(),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained, as in [`~trl.GRPOTrainer`], or a name of [`policy_path`]. Text models only.
        reward_funcs (`RewardFunc | list[RewardFunc]`, *optional*):
            Rewards in addition to the environment's own, as in [`~trl.GRPOTrainer`]. May be omitted when an
            environment gives the reward.
        args ([`SDARConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Tasks. It must include a column `"prompt"`, unless an environment states the task; the other columns reach
            the environment's `reset`, the skills and the reward functions. May be omitted as in [`~trl.GRPOTrainer`].
        eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers, quantization_config, tools,
        rollout_func:
            As in [`~trl.GRPOTrainer`]. The last two are for its own loops, where the teacher reads the dataset's
            prompts with the context inside.
        peft_config ([`~peft.PeftConfig`], *optional*):
            As in [`~trl.GRPOTrainer`]. The teacher is the current adapter (`teacher_weights`), the reference the base.
        environment_factory (`Callable` or `dict[str, Callable]`, *optional*):
            Makes an environment, or a dictionary of names to such callables. An environment with a `step` method (a
            [`~sdar_trl.envs.TextEnv`]) is played by this package's text-action loop, and its return is the reward;
            one without is TRL's own kind, whose methods are tools.
        skills ([`SkillLibrary`], `str` or `TeacherContext`, *optional*):
            What the teacher reads: a library or its folder, from which `args.retriever` selects, a [`SkillContext`] of
            your own making, or any function from finished episodes to texts. Required unless `sdar_coef` is 0. Where
            the student reads skills too (`student_skills`), it must be no function.
        gate (`Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]`, *optional*):
            A gate of your own, used instead of `args.gate`: from gap and entropy (nats, shape (B, T), without
            gradient) and `gate_beta` to the weights, shape (B, T).

    Raises:
        `ValueError`: if `skills` are missing where the teacher or the student reads them, if a text environment lacks
            a method, cannot begin a task or is mixed with tool environments, if there are fewer tasks than a batch
            needs, if the chat template has no place for the context, or if the weights are sharded while a divergence
            needs the whole output layer.
    """

    args: SDARConfig
    model: Any
    model_wrapped: Any

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
        rollout_func: Any = None,
        environment_factory: Any = None,
        skills: SkillLibrary | TeacherContext | str | Path | None = None,
        gate: Gate | None = None,
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = SDARConfig(f"{model_name.split('/')[-1]}-SDAR")
        model = policy_path(model) if isinstance(model, str) else model
        checks.check_args(args)
        gate = checks.read_gate(gate)
        skills = checks.read_skills(skills, args)
        reads_skills = args.student_skills != "never"
        environments = environment_kinds(environment_factory)
        plays_text = any(hasattr(kind, "step") for kind in environments.values())
        train_dataset = checks.read_tasks(train_dataset, environment_factory, args, plays_text)
        if plays_text:
            if tools or rollout_func:
                given = "tools" if tools else "rollout_func"
                raise ValueError(f"`{given}` is for TRL's own loops; an environment with `step` has one of its own.")
            check_environments(environment_factory, environments, train_dataset)
            own = return_reward(environments, args.invalid_action_penalty)
            rewards = checks.read_rewards(reward_funcs, reward_processing_classes, args, own)
            reward_funcs, reward_processing_classes, args = rewards

        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=[RunRecord(), *(callbacks or [])],
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_func=self._play_episodes if plays_text else rollout_func,
            environment_factory=None if plays_text else environment_factory,
        )
        if self._is_vlm:
            raise ValueError("SDARTrainer trains text models; pass a tokenizer as `processing_class`.")
        checks.check_teacher_weights(self)
        if args.sdar_coef > 0 and args.teacher_weights not in ("live", "base", "ema"):
            self.teacher_model = load_teacher(self, args.teacher_weights)

        self._plays_text = self._first_rollout = plays_text
        if plays_text:  # TRL looks at a row's last token; `_batch_of_rows` knows how the episode ended
            self.mask_truncated_completions = False
        self.episodes = []
        self._inputs: list[dict[str, Any]] = []  # the rows of the dataset, one an episode
        chat = self._chat
        context_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if plays_text:
            response_length = min(args.max_response_length, args.max_completion_length)
            uses_generate = not self.use_vllm and not self.use_transformers_continuous_batching
            self.rollout = Rollout(
                environment_factory,
                chat,
                trainer_backend(self, response_length, chat.end_of_turn_id),
                max_turns=args.max_turns,
                max_response_length=response_length,
                max_completion_length=args.max_completion_length,
                context_length=context_length,
                max_cache_tokens=args.max_cache_tokens if uses_generate else None,
                history=args.history,
                history_window=args.history_window,
                show_progress=not args.disable_tqdm and self.is_world_process_zero(),
            )
        self.teacher_context: Any = skills
        if isinstance(skills, SkillLibrary):
            self.teacher_context = skill_context(skills, args, lambda text: len(self._tokenizer(text)["input_ids"]))
        # a retriever's account of returns is logged, kept in checkpoints, and what UCB selects by
        reads_context = args.sdar_coef > 0 or reads_skills
        self._learns_skills = isinstance(self.teacher_context, SkillContext) and reads_context
        if reads_context and args.context_role == "system" and not checks.reads_text(train_dataset):
            chat.default_system  # noqa: B018  a template without a system message is refused here
        self.teacher = Teacher(
            self.teacher_context,
            chat,
            # what renders the student's prompts: TRL's loop adds its tools
            (lambda p: list(map(chat.prompt_ids, p))) if plays_text else (lambda p: self._tokenize_prompts(p)[0]),
            args.max_teacher_length or context_length,
            args.teacher_overflow,
            self._tokenizer.pad_token_id,
            self._border,
        )
        self.distillation = Distillation(args, gate, base_model(self.model), sharded=is_sharded(self))
        self.needs_hidden_states = self.distillation.divergence.needs_hidden_states
        self.gradient_share = watch_gradients(self) if args.log_grad_share else None
        use_step_lines(self)
        self.add_callback(RunFiles(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self.args.policy_coef == 0 and self.args.sdar_coef == 0:
            raise ValueError(
                f"`method={self.args.method!r}` trains nothing: `policy_coef` and `sdar_coef` are both 0. Evaluate "
                "instead, with `trainer.evaluate()` or `sdar_trl.evaluation.evaluate_trainer`."
            )
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._plays_text:
                self.rollout.close()

    # Episodes

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._inputs = [dict(row) for row in inputs]  # `_play_episodes` is given the prompts alone
        rows_of_trl, texts = checks.plain_rows(inputs, self._border, self._plays_text), [""] * len(inputs)
        if not self._plays_text and self.student_context is not None:
            episodes = [Episode(row, as_messages(checks.prompt_of(row))) for row in rows_of_trl]
            texts = context_texts(self.student_context, episodes, self._border)
            for row, text in zip(rows_of_trl, texts, strict=True):
                row["prompt"] = self.teacher.in_prompt(checks.prompt_of(row), text)
        with self._scoring(None):  # of which tokens, `_play_episodes` says
            output = super()._generate_and_score_completions(rows_of_trl)
        if not self._plays_text:
            self.episodes = self._loop_episodes(rows_of_trl, texts, output)
        rows = [row for episode in self.episodes for row in episode_rows(episode, self._tokenizer.pad_token_id)]
        output["row_turns"] = row_turns(rows, self.episodes).to(self.accelerator.device)  # (B, 3)
        chosen = self._chosen_episodes(output["advantages"])  # (E + 1,)
        if self._plays_text:  # from E rows to all B; masked rows may follow them
            output = self._batch_of_rows(output, rows)
        if self.args.step_coef > 0:
            output["advantages"] = self._step_advantages(output)
        # a coefficient that has come down to 0 stays there; one that warms up is needed before it is used
        if self._scheduled("sdar_coef") > 0 or (self.args.sdar_coef > 0 and self.args.sdar_coef_schedule == "warmup"):
            with timed(self._mode_metrics, "time/teacher"):
                output.update(self._teacher_pass(output, rows, chosen))
            if self.args.signal == "advantage":
                output["advantages"] = self._token_advantages(output)
        if self._learns_skills and self.model.training:
            self.teacher_context.update(gather_object(skill_records(self.episodes)))
            for name, value in self.teacher_context.retriever.log_values().items():
                self._mode_metrics[f"sdar/{name}"].append(value)
        return output

    @property
    def student_context(self) -> Callable[[list[Episode]], list[str]] | None:
        """What the student itself reads besides its prompt: the teacher's context, in the modes that `student_skills`
        names; else nothing."""
        mode = "train" if self.model.training else "eval"
        return self.teacher_context if self.args.student_skills in (mode, "always") else None

    def _play_episodes(self, prompts: list, trainer: GRPOTrainer) -> dict[str, list]:
        """TRL's `rollout_func`. TRL takes one row a prompt, so of an episode with several it gets the last, until
        `_batch_of_rows` puts in all."""
        with timed(self._mode_metrics, "time/rollout"):
            self.episodes = self.rollout.play(self._inputs, self.student_context)
        if self._first_rollout:
            check_first_rollout(self.episodes)
            self._first_rollout = False
        add_episodes(self._mode_metrics, self.episodes, self.rollout.seconds)
        rows = [episode_rows(episode, self._tokenizer.pad_token_id)[-1] for episode in self.episodes]
        masks = [torch.tensor(row.mask) for row in rows]
        multiple: Any = self.pad_to_multiple_of
        self._sampled = pad(masks, padding_value=0, pad_to_multiple_of=multiple).to(self.accelerator.device)
        return {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": [row.completion_ids for row in rows],
            "env_mask": [row.mask for row in rows],  # 1 = sampled by the policy
            # `generate` does not say how likely it sampled
            "logprobs": [row.logprobs for row in rows] if self.use_vllm else None,  # type: ignore[dict-item]
            "episode": self.episodes,  # what reward functions get as `episode`
        }

    # Teacher

    def _teacher_pass(self, output: dict[str, Any], rows: list[Row], chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        """Log-probs of the student's completions with context in the prompt, without gradient, at the teacher's
        weights: `teacher_per_token_logps`, shape (B, T), and `teacher_mask`, shape (B, 1), 0 for the rows that have no
        teacher. For a divergence over the vocabulary also what its `teacher_tensors` gives."""
        input_ids, attention_mask, teacher_mask, metrics = self.teacher.inputs(
            self.episodes, rows, output["completion_ids"], output["completion_mask"]
        )
        metrics["sdar/distilled"] = chosen[:-1].tolist()
        add_values(self._mode_metrics, metrics)
        teacher_mask = teacher_mask * chosen[output["row_turns"][:, :1]]
        sampled = sampled_tokens(output)
        scored = self._teacher_score(input_ids, attention_mask, sampled)
        return {
            "teacher_per_token_logps": scored.logps,
            "teacher_mask": teacher_mask.to(scored.logps.dtype),
            **self.distillation.divergence.teacher_tensors(scored.hidden_states, sampled),
            **self._contrast_pass(output, rows),
        }

    def _token_advantages(self, output: dict[str, Any]) -> torch.Tensor:
        """RLSD's advantages, shape (B, T): the episode's, times a factor of the gap. TRL computes the old log-probs
        only where it may go off policy."""
        old_logps = output.get("old_per_token_logps")
        old_logps = self._student_logps(output) if old_logps is None else old_logps
        gap, coef = self.distillation.gap(output, old_logps), self._scheduled("sdar_coef")
        self._log_tokens({"sdar/gap_mean": gap}, taught_tokens(output), {"sdar/coef": coef})
        return self.distillation.advantages(output, old_logps, coef)

    # Loss

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        with self._scoring(sampled_tokens(inputs)) as forwards:
            loss = self.args.policy_coef * super()._compute_loss(model, inputs)
        [student] = forwards  # the one forward of TRL's loss
        assert student.entropies is not None
        found = {"logprobs": student.logps, "entropies": student.entropies}
        if "teacher_mask" in inputs and self.args.signal == "loss":
            gate_beta, coef = self._scheduled("gate_beta"), self._scheduled("sdar_coef")
            gated_loss, gap, gate = self.distillation.loss(
                inputs, student.logps, student.entropies.detach(), student.hidden_states, gate_beta
            )
            mask = taught_tokens(inputs)
            distilled = coef * self._aggregate(gated_loss, mask, inputs)
            if self.gradient_share is not None and self.model.training:
                self.gradient_share.add(loss, distilled, inputs.get("loss_weight", 1.0))
            loss = loss + distilled
            found |= {"gaps": gap, "gates": gate, "losses": gated_loss}
            means = token_metrics(gated_loss, gap, gate, *outcomes(self.episodes, inputs))
            self._log_tokens(means, mask, {"sdar/coef": coef, "sdar/gate_beta": gate_beta})
        record_tokens(self.episodes, inputs, found)  # detached, into the turns of `episodes`
        if "loss_weight" in inputs:  # one of several micro-batches, see `compute_loss`
            loss = loss * inputs["loss_weight"]
        return loss

    def _scheduled(self, name: str) -> float:
        return self.distillation.scheduled(name, self.state.global_step, self.state.max_steps)

    # Checkpoints

    def _resume_state(self) -> dict[str, Any]:
        state = {**super()._resume_state(), **self.distillation.divergence.state_dict()}
        if self._learns_skills:
            state["retriever"] = self.teacher_context.retriever.state_dict()
        return state

    def _load_resume_state(self, state: dict[str, Any]) -> None:
        super()._load_resume_state(state)
        self.distillation.divergence.load_state_dict(state)
        if self._learns_skills and "retriever" in state:  # it may have been written without a teacher
            self.teacher_context.retriever.load_state_dict(state["retriever"])

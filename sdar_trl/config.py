"""SDARConfig: every knob of SDAR, once."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from trl import GRPOConfig

from .combinations import check_combinations, check_numbers, check_types
from .envs.border import not_one_of
from .losses import GATES, SAMPLED_DIVERGENCES, SCHEDULES
from .methods import METHODS
from .skills import RETRIEVERS
from .vocabulary import FULL_DIVERGENCES


DIVERGENCES = (*SAMPLED_DIVERGENCES, *FULL_DIVERGENCES)


@dataclass
class SDARConfig(GRPOConfig):
    r"""
    Configuration class for the [`SDARTrainer`].

    This class includes only the parameters that are specific to SDAR. For a full list of training arguments, please
    refer to the [`~trl.GRPOConfig`] and [`~transformers.TrainingArguments`] documentation. Note that the default of
    `max_completion_length` differs from [`~trl.GRPOConfig`]: with the default history it bounds a whole episode here.
    And what `mask_truncated_completions` masks in text environments, and `completions/clipped_ratio` counts, are the
    rows of episodes that were cut: by the token budget (`stop/length`), by the environment (`stop/truncated`), or
    where the response in the last of `max_turns` was cut before its end. An episode that the environment ended, or
    that used all its turns, is whole, whether or not its last response ends in an end-of-turn token.

    Parameters:
        > Parameters that control the self-distillation

        method (`str`, *optional*, defaults to `"sdar"`):
            Which method's values the parameters marked "the method's" have where they are not given: `"sdar"`,
            `"grpo"`, `"skill_grpo"`, `"gigpo"`, `"skill_prompt"`, `"opsd"`, `"grpo_opsd"`, `"grpo_opsd_uniform"`,
            `"skill_sd"` or `"rlsd"`. See `sdar_trl/methods.py`.
        sdar_coef (`float`, *optional*, defaults to the method's):
            Weight of the self-distillation loss next to the policy loss (lambda in the paper, 0.01 for SDAR); with
            `signal="advantage"`, how far the advantages are moved. With `0.0` no teacher pass is run.
        sdar_coef_schedule (`str`, *optional*, defaults to the method's):
            How `sdar_coef` changes over the steps: `"constant"`, `"linear"` or `"cosine"` down to 0, or `"warmup"`
            linearly up from 0.
        policy_coef (`float`, *optional*, defaults to the method's):
            Weight of TRL's loss, the KL to the reference model included.
        signal (`str`, *optional*, defaults to the method's):
            Where the teacher's signal goes: `"loss"` adds a loss, `"advantage"` moves each token's advantage (RLSD).
        advantage_clip (`float`, *optional*, defaults to `0.2`):
            With `signal="advantage"`, half-width of the range around 1 of the factor of an advantage.
        credit (`str`, *optional*, defaults to `"exp"`):
            With `signal="advantage"`, how the gap becomes that factor: `"exp"` of it (RLSD), or with `"normalized"` 1
            plus the gap normalised within the episode (AgentOPSD). Either keeps the advantage's sign.
        divergence (`str`, *optional*, defaults to the method's):
            What is minimised: `"sampled_reverse_kl"` (SDAR), `"sampled_k3"`, `"sampled_k3_weighted"` (Skill-SD) and
            `"sampled_score"` look at the sampled token, `"reverse_kl"`, `"forward_kl"` and `"jsd"` at the whole
            vocabulary. Their gradients are derived in docs/objective.md.
        divergence_top_k (`int`, *optional*):
            Reduces a whole-vocabulary divergence to the teacher's likeliest tokens at each position and one bucket
            for all others.
        gate (`str`, *optional*, defaults to the method's):
            What weighs each token of the self-distillation loss: `"gap"` is `sigmoid(gate_beta * gap)`, where the gap
            is the teacher's log-probability of the sampled token minus the student's, `"entropy"` and `"soft_or"`
            look at the student's entropy too, `"uniform"` is 0.5, `"none"` is 1. A gate of your own goes to the
            trainer.
        gate_beta (`float`, *optional*, defaults to `5.0`):
            Sharpness of the gate (beta in the paper; not the KL coefficient, which TRL calls `beta`).
        gate_beta_schedule (`str`, *optional*, defaults to `"constant"`):
            How `gate_beta` changes over the steps, as `sdar_coef_schedule`.
        schedule_steps (`int`, *optional*, defaults to the method's):
            Steps that the schedules take; afterwards they stay where they end. If `None`, all steps of the training.
        normalize_entropy (`bool`, *optional*, defaults to `False`):
            Divide the entropy by the logarithm of the vocabulary's size before it reaches the gate, so that it lies
            in [0, 1]. The paper does not.
        granularity (`str`, *optional*, defaults to `"token"`):
            Whose gap weighs a token: its own, or with `"turn"` the mean over the sampled tokens of its turn.
        distill_on (`str`, *optional*, defaults to `"all"`):
            Which episodes have a teacher: `"all"`, those that `"failed"`, or with `"no_signal"` those of groups whose
            rewards are all the same, of which the policy loss learns nothing.
        step_coef (`float`, *optional*, defaults to the method's):
            Weight of GiGPO's step advantage, which is added to that of the episode (omega in its paper, 1 for GiGPO):
            what followed a turn, against the turns of the task's other episodes that had the same observation.
        step_discount (`float`, *optional*, defaults to `0.95`):
            With `step_coef`, the discount per turn of what followed.
        contrast_coef (`float`, *optional*, defaults to `0.0`):
            Weight with which the gap of a wrong context, that of another task of the batch, is subtracted from the gap
            (RLCSD), at the cost of one more teacher pass. With `0.0` none is run.
        teacher_weights (`str`, *optional*, defaults to `"live"`):
            Whose weights teach: the policy's (`"live"`), the reference model's, which is the policy before training
            and with an adapter the base (`"base"`), with TRL's `sync_ref_model` an average of the policy (`"ema"`), or
            those of another model, by its name or path; with an adapter, also those of another adapter of its base.
        log_grad_share (`bool`, *optional*, defaults to `False`):
            Log how large the distillation's gradient is against the policy loss's (`sdar/grad_share`), and the cosine
            of the angle between them (`sdar/grad_cosine`), at the cost of two more backward passes.
        student_skills (`str`, *optional*, defaults to the method's):
            When the student reads the skills: `"never"` (SDAR), `"train"` (Skill-GRPO), `"eval"` (skill prompting) or
            `"always"`.

        > Parameters that control what the teacher reads

        retriever (`str`, *optional*, defaults to `"keyword"`):
            How the skills for a task are found, where the trainer is given a library: `"keyword"` (by task type, else
            by keywords), `"ucb"` (learns from returns), `"random"`, `"full"` (all), `"none"`, `"bm25"` or
            `"embedding"`.
        skills_top_k (`int`, *optional*):
            Most skills of a task besides those for every task. If `None`, 1 for `"ucb"`, `"random"`, `"bm25"` and
            `"embedding"`, which rank the whole library, and else no limit.
        max_context_tokens (`int`, *optional*):
            Most tokens of skills in a prompt. What does not fit is dropped whole, lowest rank first, and counted in
            `sdar/dropped_skills`.
        ucb_c (`float`, *optional*, defaults to `1.0`):
            Weight of UCB's bonus for skills that were seldom tried.
        ucb_per_task_type (`bool`, *optional*, defaults to `True`):
            Whether UCB learns for each task type by itself.
        embedding_model (`str`, *optional*):
            Sentence-transformers model of the `"embedding"` retriever, a hub id or a folder.
        context_role (`str`, *optional*, defaults to `"system"`):
            Message of the teacher's prompt that receives the privileged context. `"system"` appends it to the system
            message (a template's own default system text is kept), `"user"` puts it in front of the first user
            message, for chat templates without a system role.
        max_teacher_length (`int`, *optional*):
            Longest teacher row (context, prompt and completion) in tokens. If `None`, the model's
            `max_position_embeddings`.
        teacher_overflow (`str`, *optional*, defaults to `"error"`):
            What happens to a teacher row longer than `max_teacher_length`; it is never cut. `"error"` stops with both
            lengths, `"skip"` leaves the row out of the self-distillation loss and counts it in
            `sdar/teacher_overflow`.

        > Parameters that control the episodes

        history (`str`, *optional*, defaults to `"growing"`):
            What the policy reads in each turn. `"growing"` is the conversation so far, and an episode one training
            row; with `"window"` the prompt is rendered anew from the task, the last turns and the present observation,
            and each turn is a row, as in the published runs.
        history_window (`int`, *optional*, defaults to `2`):
            With `history="window"`, how many turns the policy reads besides the present observation.
        max_turns (`int`, *optional*, defaults to `15`):
            Most turns of an episode.
        max_response_length (`int`, *optional*, defaults to `512`):
            Most tokens the policy samples in one turn.
        max_completion_length (`int`, *optional*, defaults to `4096`):
            Most tokens of a training row after its prompt: with a growing history, responses and observations of an
            episode, with a window its response. An episode ends before a turn that might not fit.
        invalid_action_penalty (`float`, *optional*, defaults to `0.1`):
            Subtracted from the episode's return for every invalid action.
        reuse_cache (`bool`, *optional*, defaults to `True`):
            Keep the keys and values of a rollout from turn to turn, so that only new tokens are computed. Concerns
            generation with Transformers' `generate`; models for which it cannot be done prefill the history again.
        lean_forward (`bool`, *optional*, defaults to `True`):
            Leave out of every forward what nobody looks at: padding, the output layer where no token was sampled, and,
            without gradient, prompts that another row has too. Losses and gradients are TRL's but for rounding; if
            `False`, to the bit.
        max_cache_tokens (`int`, *optional*):
            Most tokens of the episodes that one process plays at once with Transformers' `generate`, each counted as
            its prompt and `max_completion_length`. A batch that needs more is played in waves, of one episode at
            least. If `None`, all episodes are played at once.
        save_episodes_every (`int`, *optional*):
            After each so many steps, write the episodes of the last rollout into `output_dir/episodes`, one file a
            step, for `python -m sdar_trl.view`; docs/episodes.md has their format. If `None`, none are written.
    """

    max_completion_length: int = field(
        default=4096,
        metadata={"help": "Most tokens of a row after its prompt. An episode ends before a turn that might not fit."},
    )

    # `None` stands for the method's value and is gone after `__post_init__`
    method: str = field(
        default="sdar",
        metadata={
            "help": "Whose values the parameters below have where they are not given; see sdar_trl/methods.py.",
            "choices": list(METHODS),
        },
    )
    sdar_coef: float = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Weight of the self-distillation loss next to the policy loss, by default the method's (SDAR: "
            "0.01). With signal='advantage', how far the advantages are moved. With 0.0 no teacher pass is run."
        },
    )
    sdar_coef_schedule: str = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "How sdar_coef changes over the steps: constant, 'linear' or 'cosine' down to 0, or 'warmup' "
            "linearly up from 0. By default the method's.",
            "choices": list(SCHEDULES),
        },
    )
    policy_coef: float = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Weight of TRL's loss, its KL included. By default the method's (SDAR: 1)."},
    )
    signal: str = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Where the teacher's signal goes: 'loss' adds a loss, 'advantage' moves each token's advantage "
            "(RLSD). By default the method's.",
            "choices": ["loss", "advantage"],
        },
    )
    advantage_clip: float = field(
        default=0.2,
        metadata={"help": "With signal='advantage', half-width of the range around 1 of the factor of an advantage."},
    )
    credit: str = field(
        default="exp",
        metadata={
            "help": "With signal='advantage', how the gap becomes that factor: 'exp' of it (RLSD), or 'normalized' "
            "within the episode.",
            "choices": ["exp", "normalized"],
        },
    )
    divergence: str = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "What is minimised. The sampled_ ones look at the sampled token, 'reverse_kl', 'forward_kl' and "
            "'jsd' at the whole vocabulary. By default the method's (SDAR: sampled_reverse_kl).",
            "choices": list(DIVERGENCES),
        },
    )
    divergence_top_k: int | None = field(
        default=None,
        metadata={"help": "Reduces a whole-vocabulary divergence to the teacher's likeliest tokens and one bucket."},
    )
    gate: str = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "What weighs each token of the self-distillation loss. 'gap' is sigmoid(gate_beta * gap), where "
            "the gap is the teacher's log-probability of the sampled token minus the student's; 'entropy' and "
            "'soft_or' look at the student's entropy too, 'uniform' is 0.5, 'none' is 1. By default the method's.",
            "choices": list(GATES),
        },
    )
    gate_beta: float = field(
        default=5.0,
        metadata={"help": "Sharpness of the gate (beta in the paper; not the KL coefficient, TRL's `beta`)."},
    )
    gate_beta_schedule: str = field(
        default="constant",
        metadata={"help": "How gate_beta changes over the steps, as sdar_coef.", "choices": list(SCHEDULES)},
    )
    schedule_steps: int | None = field(
        default=None,
        metadata={"help": "Steps that the schedules take. By default the method's, or all steps of the training."},
    )
    normalize_entropy: bool = field(
        default=False,
        metadata={"help": "Divide the gate's entropy by the logarithm of the vocabulary's size. The paper does not."},
    )
    granularity: str = field(
        default="token",
        metadata={
            "help": "Whose gap weighs a token: its own ('token'), or the mean over its turn's tokens ('turn').",
            "choices": ["token", "turn"],
        },
    )
    distill_on: str = field(
        default="all",
        metadata={
            "help": "Which episodes have a teacher: 'all', those that 'failed', or those of groups whose rewards are "
            "all the same ('no_signal').",
            "choices": ["all", "failed", "no_signal"],
        },
    )
    contrast_coef: float = field(
        default=0.0,
        metadata={"help": "Weight with which the gap of a wrong context is subtracted; one more teacher pass."},
    )
    teacher_weights: str = field(
        default="live",
        metadata={
            "help": "Whose weights teach: the policy's ('live'), the reference model's ('base'), with "
            "sync_ref_model an average of the policy's ('ema'), or another model or adapter, by its name or path."
        },
    )
    step_coef: float = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Weight of GiGPO's step advantage: what followed a turn, against turns of the task's other "
            "episodes that had the same observation. By default the method's (SDAR: 0)."
        },
    )
    step_discount: float = field(
        default=0.95, metadata={"help": "With step_coef, the discount per turn of what followed."}
    )
    log_grad_share: bool = field(
        default=False,
        metadata={"help": "Log the share and the direction of the distillation's gradient; two more backward passes."},
    )
    student_skills: str = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "When the student reads the skills: 'never' (SDAR), 'train' (Skill-GRPO), 'eval' (skill "
            "prompting) or 'always'. By default the method's.",
            "choices": ["never", "train", "eval", "always"],
        },
    )

    retriever: str = field(
        default="keyword",
        metadata={
            "help": "How the skills for a task are found: 'keyword' (by task type, else by keywords), 'ucb' (learns "
            "from returns), 'random', 'full' (all), 'none', 'bm25' or 'embedding'.",
            "choices": list(RETRIEVERS),
        },
    )
    skills_top_k: int | None = field(
        default=None,
        metadata={"help": "Most skills of a task besides those for every task. If None, 1 or no limit, by retriever."},
    )
    max_context_tokens: int | None = field(
        default=None,
        metadata={"help": "Most tokens of skills in a prompt. What does not fit is dropped whole, lowest rank first."},
    )
    ucb_c: float = field(default=1.0, metadata={"help": "Weight of UCB's bonus for skills that were seldom tried."})
    ucb_per_task_type: bool = field(
        default=True, metadata={"help": "Whether UCB learns for each task type by itself."}
    )
    embedding_model: str | None = field(
        default=None,
        metadata={"help": "Sentence-transformers model of the 'embedding' retriever, a hub id or a folder."},
    )
    context_role: str = field(
        default="system",
        metadata={
            "help": "Message of the teacher's prompt that has the context: the 'system' or the first 'user' message.",
            "choices": ["system", "user"],
        },
    )
    max_teacher_length: int | None = field(
        default=None,
        metadata={"help": "Longest teacher row in tokens. If None, the model's max_position_embeddings."},
    )
    teacher_overflow: str = field(
        default="error",
        metadata={
            "help": "What a teacher row longer than max_teacher_length does: 'error' stops, 'skip' leaves it out.",
            "choices": ["error", "skip"],
        },
    )

    history: str = field(
        default="growing",
        metadata={
            "help": "What the policy reads in each turn: 'growing', the conversation so far, or 'window', a prompt "
            "rendered anew from the task, the last turns and the present observation; then each turn is a training "
            "row.",
            "choices": ["growing", "window"],
        },
    )
    history_window: int = field(
        default=2,
        metadata={"help": "With history='window', how many turns are read besides the present observation."},
    )
    max_turns: int = field(default=15, metadata={"help": "Most turns of an episode."})
    max_response_length: int = field(default=512, metadata={"help": "Most tokens the policy samples in one turn."})
    invalid_action_penalty: float = field(
        default=0.1, metadata={"help": "Subtracted from the episode's return for every invalid action."}
    )
    reuse_cache: bool = field(
        default=True,
        metadata={"help": "Keep a rollout's keys and values from turn to turn, with Transformers' `generate`."},
    )
    lean_forward: bool = field(
        default=True,
        metadata={"help": "Leave out of every forward what nobody looks at. If False, TRL's arithmetic to the bit."},
    )
    max_cache_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of the episodes that one process plays at once with Transformers' `generate`. A "
            "batch that needs more is played in waves. If None, all episodes are played at once."
        },
    )
    save_episodes_every: int | None = field(
        default=None,
        metadata={"help": "After each so many steps, write the last rollout's episodes into output_dir/episodes."},
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_one_of("method", METHODS)
        for name, value in METHODS[self.method].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        check_types(self, SDARConfig.__annotations__)
        for parameter in fields(SDARConfig):
            if parameter.name in SDARConfig.__annotations__ and "choices" in parameter.metadata:
                self._check_one_of(parameter.name, parameter.metadata["choices"])
        check_numbers(self)
        check_combinations(self)

    def _check_one_of(self, name: str, allowed: Iterable[str]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(not_one_of(f"`{name}`", allowed, getattr(self, name)))

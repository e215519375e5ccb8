"""SDARConfig: every knob of SDAR, once."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from .losses import GATES


@dataclass
class SDARConfig(GRPOConfig):
    r"""
    Configuration class for the [`SDARTrainer`].

    This class includes only the parameters that are specific to SDAR. For a full list of training arguments, please
    refer to the [`~trl.GRPOConfig`] and [`~transformers.TrainingArguments`] documentation. Note that the default of
    `max_completion_length` differs from [`~trl.GRPOConfig`]: it bounds a whole episode here.

    Parameters:
        > Parameters that control the self-distillation loss

        sdar_coef (`float`, *optional*, defaults to `0.01`):
            Weight of the self-distillation loss next to the policy loss (lambda in the paper). With `0.0` the trainer
            is [`~trl.GRPOTrainer`], and no teacher pass is run.
        gate (`str`, *optional*, defaults to `"gap"`):
            What weighs each token of the self-distillation loss. `"gap"` is `sigmoid(gate_beta * gap)`, where the gap
            is the teacher's log-probability of the sampled token minus the student's.
        gate_beta (`float`, *optional*, defaults to `5.0`):
            Sharpness of the gate (beta in the paper; not the KL coefficient, which TRL calls `beta`).

        > Parameters that control what the teacher reads

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

        max_turns (`int`, *optional*, defaults to `15`):
            Most turns of an episode.
        max_response_length (`int`, *optional*, defaults to `512`):
            Most tokens the policy samples in one turn.
        max_completion_length (`int`, *optional*, defaults to `4096`):
            Most tokens of an episode after its prompt: responses and observations. An episode ends before a turn that
            might not fit.
        invalid_action_penalty (`float`, *optional*, defaults to `0.1`):
            Subtracted from the episode's return for every invalid action.
    """

    max_completion_length: int = field(
        default=4096,
        metadata={
            "help": "Most tokens of an episode after its prompt: responses and observations. An episode ends before a "
            "turn that might not fit."
        },
    )

    sdar_coef: float = field(
        default=0.01,
        metadata={
            "help": "Weight of the self-distillation loss next to the policy loss (lambda in the paper). With 0.0 the "
            "trainer is GRPOTrainer, and no teacher pass is run."
        },
    )
    gate: str = field(
        default="gap",
        metadata={
            "help": "What weighs each token of the self-distillation loss. 'gap' is sigmoid(gate_beta * gap), where "
            "the gap is the teacher's log-probability of the sampled token minus the student's.",
            "choices": list(GATES),
        },
    )
    gate_beta: float = field(
        default=5.0,
        metadata={"help": "Sharpness of the gate (beta in the paper; not the KL coefficient, TRL's `beta`)."},
    )

    context_role: str = field(
        default="system",
        metadata={
            "help": "Message of the teacher's prompt that receives the privileged context: 'system' appends it to the "
            "system message, 'user' puts it in front of the first user message.",
            "choices": ["system", "user"],
        },
    )
    max_teacher_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest teacher row (context, prompt and completion) in tokens. If None, the model's "
            "max_position_embeddings."
        },
    )
    teacher_overflow: str = field(
        default="error",
        metadata={
            "help": "What happens to a teacher row longer than max_teacher_length; it is never cut. 'error' stops "
            "with both lengths, 'skip' leaves the row out of the self-distillation loss and counts it.",
            "choices": ["error", "skip"],
        },
    )

    max_turns: int = field(default=15, metadata={"help": "Most turns of an episode."})
    max_response_length: int = field(default=512, metadata={"help": "Most tokens the policy samples in one turn."})
    invalid_action_penalty: float = field(
        default=0.1, metadata={"help": "Subtracted from the episode's return for every invalid action."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in {
            "gate": tuple(GATES),
            "context_role": ("system", "user"),
            "teacher_overflow": ("error", "skip"),
        }.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        for name in ("sdar_coef", "gate_beta", "invalid_action_penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        for name in ("max_turns", "max_response_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.max_completion_length is None:
            raise ValueError("`max_completion_length` must be set: it is the token budget of an episode.")
        if self.remove_unused_columns:
            raise ValueError(
                "`remove_unused_columns` must stay False: environments and skills need the dataset's other columns."
            )

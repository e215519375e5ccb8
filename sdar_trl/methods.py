"""The methods: each a set of values of `SDARConfig`, any of which can still be overridden.

Print the table:

    python -m sdar_trl.methods
"""

from typing import Any


SDAR: dict[str, Any] = {
    "sdar_coef": 0.01,
    "policy_coef": 1.0,
    "signal": "loss",
    "divergence": "sampled_reverse_kl",
    "gate": "gap",
    "sdar_coef_schedule": "constant",
    "schedule_steps": None,
    "step_coef": 0.0,
    "student_skills": "never",
}
"""What a method decides, with SDAR's own values: those of the official scripts."""

METHODS: dict[str, dict[str, Any]] = {
    "sdar": SDAR,
    # reward alone
    "grpo": {**SDAR, "sdar_coef": 0.0},
    "skill_grpo": {**SDAR, "sdar_coef": 0.0, "student_skills": "train"},
    # reward alone, also of each step against others from the same state
    "gigpo": {**SDAR, "sdar_coef": 0.0, "step_coef": 1.0},
    # no training: the policy as it is, with skills in its prompt
    "skill_prompt": {**SDAR, "sdar_coef": 0.0, "policy_coef": 0.0, "student_skills": "eval"},
    # distillation alone, then next to the reward: with weight 1, and with the constant one half of the official code
    "opsd": {**SDAR, "sdar_coef": 1.0, "policy_coef": 0.0, "gate": "none"},
    "grpo_opsd": {**SDAR, "gate": "none"},
    "grpo_opsd_uniform": {**SDAR, "gate": "uniform"},
    # its optional warm-down: sdar_coef_schedule="linear"
    "skill_sd": {**SDAR, "sdar_coef": 0.001, "gate": "none", "divergence": "sampled_k3_weighted"},
    # sdar_coef is the weight w
    "rlsd": {
        **SDAR,
        "sdar_coef": 0.5,
        "signal": "advantage",
        "gate": "none",
        "sdar_coef_schedule": "linear",
        "schedule_steps": 100,
    },
}


def methods_table() -> str:
    """The methods as a Markdown table; what a method shares with SDAR is left blank."""
    rows = [["method", *(f"`{name}`" for name in SDAR)]]
    rows.append(["---"] * len(rows[0]))
    for method, values in METHODS.items():
        cells = [f"`{values[name]}`" if method == "sdar" or values[name] != SDAR[name] else "" for name in SDAR]
        rows.append([f"`{method}`", *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(methods_table())

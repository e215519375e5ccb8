"""The model card of a trained model: what it is, how it was trained, how well it plays, with what versions."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from .contexts import SkillContext
from .evaluation import read_records, results_table, summarize
from .factories import environment_kinds
from .methods import SDAR
from .progress import duration
from .runs import read_run


if TYPE_CHECKING:
    from .trainer import SDARTrainer


OPTIONS = [
    *("learning_rate", "num_generations", "beta", "loss_type", "temperature", "gate_beta", "granularity"),
    *("distill_on", "retriever", "history", "max_turns", "max_response_length", "max_completion_length"),
]
"""Options that a card names, besides those that a method decides."""


class CardTrainer(GRPOTrainer):
    """[`~trl.GRPOTrainer`] whose model card tells of the run, between TRL's metadata and citations."""

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

    def create_model_card(  # type: ignore[override]
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            path = Path(str(self.args.output_dir)) / "README.md"
            card = ModelCard.load(path)
            # TRL's text knows nothing of episodes, and takes a model from a folder for one called None
            badges = [line for line in card.text.splitlines() if line.startswith("[<img")]
            citations = card.text.partition("## Citations")[2]
            name = model_name or path.resolve().parent.name
            card.text = "\n".join([card_text(self, name, badges), "\n## Citations\n", citations.strip(), ""])  # type: ignore[arg-type]
            card.save(path)


def card_text(trainer: "SDARTrainer", name: str, badges: list[str]) -> str:
    """
    The text of a card, without its citations.

    Args:
        trainer ([`SDARTrainer`]):
            Whose model it is. What `run.json` and the records `panel_*.jsonl` in its `output_dir` say is told too.
        name (`str`):
            The model's name.
        badges (`list[str]`):
            Links to trackers, in Markdown.

    Returns:
        `str`: Markdown.
    """
    run = read_run(str(trainer.args.output_dir))
    parts = [
        f"# Model card for {name}",
        _introduction(trainer, run),
        _quick_start(trainer, name),
        "## Training",
        *badges,
        _table("option", "value", _options(trainer)),
        _teacher(trainer),
        _course(trainer, run),
        _panels(trainer, run),
        "### Versions",
        ", ".join(f"{package} {number}" for package, number in run.get("versions", {}).items() if number),
    ]
    return "\n\n".join(part for part in parts if part)


def _introduction(trainer: "SDARTrainer", run: dict[str, Any]) -> str:
    base = str(get_config_model_id(trainer.model.config) or "")
    # the path of a folder is of no use to others, its name may be
    origin = f"`{Path(base).name}`" if Path(base).is_dir() else f"[{base}](https://huggingface.co/{base})"
    of = f" from {origin}" if base else ""
    world = f" on the world `{run['world']}`" if "world" in run else ""
    kinds = environment_kinds(trainer.rollout.factories).values() if trainer._plays_text else []
    played = f", in episodes of {', '.join(f'`{kind.__name__}`' for kind in kinds)}" if kinds else ""
    return (
        f"An agent trained{of}{world}{played}, by `method={trainer.args.method!r}` of sdar_trl: GRPO over multi-turn "
        "episodes, and its methods of self-distillation, on [TRL](https://github.com/huggingface/trl)."
    )


def _quick_start(trainer: "SDARTrainer", name: str) -> str:
    return textwrap.dedent(f"""\
        ## Quick start

        It answers observations of its environment, one turn at a time, in the format that it was trained with.

        ```python
        from transformers import pipeline

        agent = pipeline("text-generation", model="{trainer.hub_model_id or name}", device_map="auto")
        messages = [{{"role": "user", "content": "the task and the first observation"}}]
        [answer] = agent(messages, max_new_tokens={trainer.args.max_response_length}, return_full_text=False)
        print(answer["generated_text"])
        ```""")


def _options(trainer: "SDARTrainer") -> dict[str, Any]:
    args: Any = trainer.args
    episodes = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    found = {option: getattr(args, option) for option in ("method", *SDAR, *OPTIONS)}
    return {**{option: value for option, value in found.items() if value is not None}, "episodes of a step": episodes}


def _teacher(trainer: "SDARTrainer") -> str:
    context = trainer.teacher_context
    if trainer.args.sdar_coef == 0 and trainer.args.student_skills == "never":
        return "No skills were read."
    if not isinstance(context, SkillContext):
        return f"In training, the teacher read what the function `{getattr(context, '__name__', context)}` gave."
    reader = "the teacher, which is the same model," if trainer.args.student_skills == "never" else "the policy"
    rows = {skill: count for skill, (count, _) in context.retriever.totals().items() if count}
    return f"Skills that {reader} read in training:\n\n" + _table("skill", "episodes", rows)


def _course(trainer: "SDARTrainer", run: dict[str, Any]) -> str:
    seconds, steps, processes = run.get("seconds", 0.0), trainer.state.global_step, run.get("processes", 1)
    parts = [
        f"{steps} step{'s' if steps != 1 else ''}",
        f"{processes} process{'es' if processes != 1 else ''}",
        duration(seconds) if seconds else "",
        f"seed {trainer.args.seed}",
        run.get("machine", ""),
        f"commit {run['commit']}" if run.get("commit") else "",
    ]
    return ", ".join(part for part in parts if part) + "."


def _panels(trainer: "SDARTrainer", run: dict[str, Any]) -> str:
    results, hashes = {}, set()
    for path in sorted(
        Path(str(trainer.args.output_dir)).glob("panel_*.jsonl"), key=lambda path: path.stat().st_mtime
    ):
        about, records = read_records(path)
        if records:
            results[path.stem.removeprefix("panel_")] = summarize(records)
            panel = about.get("panel", {})
            hashes.add(f"the panel `{panel['name']}` (hash {panel['sha256'][:12]})" if panel else "a panel")
    if not results:
        return ""
    return f"## Evaluation\n\nOn {', '.join(sorted(hashes))}:\n\n```\n{results_table(results)}\n```"


def _table(first: str, second: str, rows: dict[str, Any]) -> str:
    lines = [f"| {first} | {second} |", "|---|---|", *(f"| `{name}` | {value} |" for name, value in rows.items())]
    return "\n".join(lines)

"""One run of the study: train, play the panel, say what was logged."""

import math
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from common import make_trainer, parse, write_json
from transformers import TrainerCallback

from sdar_trl.envs import world_class
from sdar_trl.evaluation import PanelCallback, evaluate, policy_rollout, summarize, world_panel
from sdar_trl.runs import note_run, provenance, read_run


LOGGED = (
    *("env/success", "reward", "frac_reward_zero_std", "env/turns", "gigpo/anchored_turns"),
    *("sdar/gap_mean", "sdar/gap_won", "sdar/gap_lost", "sdar/large_gap", "sdar/gate_mean", "sdar/gate_large_gap"),
    *("sdar/grad_share", "sdar/grad_cosine"),
)
"""Of what a run logged, what its result has: the mean over its first and over its last third."""


class GapOrder(TrainerCallback):
    """
    Does the gap tell good from bad? Counts, over all pairs of a won and a lost episode of one task and step, how often
    the won one has the higher mean gap: over its tokens, and over those of its first turn, before which both read the
    same. One half is chance.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.higher: dict[str, list[float]] = {"episode": [], "first_turn": []}

    def on_step_end(self, *_: Any, **__: Any) -> None:
        size, episodes = self.trainer.num_generations, self.trainer.episodes
        for start in range(0, len(episodes), size):
            group = [episode for episode in episodes[start : start + size] if _gaps(episode)]
            for won in (episode for episode in group if episode.success):
                for lost in (episode for episode in group if not episode.success):
                    self._compare("episode", _gaps(won), _gaps(lost))
                    self._compare("first_turn", won.turns[0].gaps, lost.turns[0].gaps)

    def _compare(self, name: str, won: list[float], lost: list[float]) -> None:
        left, right = sum(won) / len(won), sum(lost) / len(lost)
        self.higher[name].append(0.5 if left == right else float(left > right))

    def shares(self) -> dict[str, Any]:
        counted = {name: found for name, found in self.higher.items() if found}
        return {name: {"share": sum(found) / len(found), "pairs": len(found)} for name, found in counted.items()}


def _gaps(episode: Any) -> list[float]:
    return [gap for turn in episode.turns for gap in turn.gaps or ()]


def train_one(world_name: str, options: dict[str, Any], split: str, with_skills: bool, folder: Path) -> None:
    """Train, play a panel of a split, perhaps with skills too, and write `result.json`; without steps, play alone."""
    demo = {**import_module(f"train_{world_name}").DEMO, "output_dir": str(folder)}
    given = [f"--{name}={value}" for name, value in options.items()]
    script_args, world, args, model_args = parse(world_class(world_name), demo, given)
    trainer = make_trainer(script_args, world, args, model_args)
    temperature = script_args.panel_temperature
    if script_args.curve_every and args.max_steps > 0:
        panel, every = world_panel(world, "validation", script_args.curve_size), script_args.curve_every
        played = PanelCallback(trainer, panel, world.dataset("validation"), every=every, temperature=temperature)
        trainer.add_callback(played)
    gaps = GapOrder(trainer)
    trainer.add_callback(gaps)
    if args.max_steps > 0:
        trainer.train()

    panel = world_panel(world, split, script_args.panel_size)
    about = {"policy": model_args.model_name_or_path, "panel": panel.about(), "temperature": temperature}
    limits = {name: getattr(args, name) for name in ("max_turns", "max_response_length", "max_completion_length")}
    rollout = policy_rollout(
        trainer.model.eval(),
        trainer.processing_class,
        world.environment_factory,
        temperature=temperature,
        history=args.history,
        history_window=args.history_window,
        **limits,
    )
    result: dict[str, Any] = {}
    for name, skills in {"after": None, **({"with_skills": world.skills()} if with_skills else {})}.items():
        path, tasks = folder / f"panel_{name}.jsonl", panel.tasks(world.dataset(split))
        result[name] = summarize(evaluate(rollout, tasks, skills=skills, path=path, about=about)).success
    note_run(folder, world=world.name, panels={split: panel.about()}, seeds={"seed": args.seed}, **provenance())
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    third = max(1, len(history) // 3)
    found = {name: [_mean(part, name) for part in (history[:third], history[-third:])] for name in LOGGED}
    result["logged"] = {name: pair for name, pair in found.items() if pair != [None, None]}
    result |= {"sdar_coef": args.sdar_coef, "seconds": read_run(folder).get("seconds"), "gap_order": gaps.shares()}
    write_json(folder / "result.json", result)


def _mean(entries: Sequence[dict[str, Any]], name: str) -> float | None:
    known = [entry[name] for entry in entries if not math.isnan(entry.get(name, math.nan))]  # nobody won: no gap
    return sum(known) / len(known) if known else None

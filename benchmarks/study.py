"""
When does self-distillation help? Methods against each other on the embedded worlds, at equal steps and episodes.

    make study                                                                    # two cores, a night
    python benchmarks/study.py --worlds questions --seeds 0 1 2 --steps 24 --episodes 32    # shorter, for all alike
    python benchmarks/study.py --worlds questions --arms sdar_entropy sdar_turn    # ablations
    python benchmarks/study.py --report --json study.json                         # what there is, without another run
    python benchmarks/study.py --quick                                            # minutes: shows that it runs

Each run is a process of its own and a folder of `--output`; those that are finished are not run again, so it can be
stopped and started at any time. All arms of a seed come before the next seed, so that a part of a study is one too.

In a world every arm has the steps, episodes and settings of the world's training script, but for what `ARMS` says. The
coefficient of the arms called `tuned` is chosen first: one run for each of `COEFFICIENTS`, with a seed that is not
used again, and the highest success on a validation panel of the test panel's size at the end. The test panel is played
once, at the end of each run; of the first seed also with skills, which is what the teacher reads.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_NUM_THREADS", "1")  # of two runs at once, each has a core

from sdar_trl.compare import compare, plot_curves
from sdar_trl.evaluation import Record, read_records
from sdar_trl.evaluation.comparison import Arm, Run, subtract, values
from sdar_trl.methods import METHODS
from sdar_trl.runs import provenance


@dataclass(frozen=True)
class Setting:
    """A world, and in what a run differs from its training script."""

    world: str
    options: dict[str, Any] = field(default_factory=dict)


WORLDS = {
    "questions": Setting("search_qa"),
    "questions_early": Setting("search_qa", {"max_steps": 8}),
    "shop": Setting("webshop"),
    "shop_early": Setting("webshop", {"max_steps": 8}),
    "sparse_shop": Setting("webshop", {"reward": "success"}),
    "sparse_shop_early": Setting("webshop", {"reward": "success", "max_steps": 8}),
    "household": Setting("alfworld"),
}

COEFFICIENTS = (0.1, 0.5, 2.0)
CHOICE_SEED = 100
TUNED = {"sdar_coef": "tuned"}

ARMS: dict[str, dict[str, Any]] = {
    "sdar": {"method": "sdar", "sdar_coef": 0.01},  # a training script may have another
    "grpo": {"method": "grpo"},
    "grpo_opsd": {"method": "grpo_opsd"},
    "sdar_tuned": {"method": "sdar", **TUNED},
    "grpo_opsd_tuned": {"method": "grpo_opsd", **TUNED},
    "gigpo": {"method": "gigpo"},
    "rlsd": {"method": "rlsd"},
    "sdar_random": {"method": "sdar", "retriever": "random", **TUNED},
    "sdar_full": {"method": "sdar", "retriever": "full", **TUNED},
}
"""What `make study` runs. The published coefficient is 0.01; `tuned` is what validation says."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "opsd": {"method": "opsd"},
    "grpo_opsd_uniform": {"method": "grpo_opsd_uniform"},
    "grpo_opsd_half": {"method": "grpo_opsd", "sdar_coef": 0.5},
    "grpo_opsd_reverse_kl": {"method": "grpo_opsd", "divergence": "reverse_kl", **TUNED},
    "skill_sd": {"method": "skill_sd"},
    "skill_grpo": {"method": "skill_grpo"},
    "sdar_tenth": {"method": "sdar", "sdar_coef": 0.1},
    "sdar_entropy": {"method": "sdar", "gate": "entropy", **TUNED},
    "sdar_soft_or": {"method": "sdar", "gate": "soft_or", **TUNED},
    "sdar_reverse_kl": {"method": "sdar", "divergence": "reverse_kl", **TUNED},
    "sdar_score": {"method": "sdar", "divergence": "sampled_score", **TUNED},
    "sdar_ucb": {"method": "sdar", "retriever": "ucb", **TUNED},
    "sdar_turn": {"method": "sdar", "granularity": "turn", **TUNED},
    "sdar_failed": {"method": "sdar", "distill_on": "failed", **TUNED},
    "sdar_no_signal": {"method": "sdar", "distill_on": "no_signal", **TUNED},
    "gigpo_sdar": {"method": "sdar", "step_coef": 1.0, **TUNED},
}

PLOTTED = ("sdar_tuned", "grpo", "grpo_opsd_tuned")  # bands of more would hide each other

QUICK = {"steps": 2, "episodes": 16, "panel_size": 8, "curve_size": 4}

LOOKED_AT = {
    "sdar/grad_share": "gradient's share",
    "sdar/grad_cosine": "cosine",
    "sdar/gap_won": "gap, won",
    "sdar/gap_lost": "gap, lost",
    "sdar/large_gap": "large gaps",
    "frac_reward_zero_std": "groups without signal",
}


# All runs


@dataclass(frozen=True)
class Job:
    """A run that is wanted."""

    setting: str
    name: str
    seed: int
    options: dict[str, Any]
    split: str = "test"
    with_skills: bool = False

    def folder(self, output: Path) -> Path:
        return output / self.setting / self.name / f"seed_{self.seed}"

    def finished(self, output: Path) -> bool:
        return (self.folder(output) / "result.json").exists()

    def result(self, output: Path) -> dict[str, Any]:
        return json.loads((self.folder(output) / "result.json").read_text())


def first_jobs(setting: str, arms: Sequence[str]) -> Iterator[Job]:
    """What comes before a world's arms: the policy as it is, and what chooses a coefficient, if an arm needs one."""
    yield Job(setting, "untrained", 0, {"method": "grpo", "max_steps": 0}, with_skills=True)
    if any(TUNED.items() <= _options(arm).items() for arm in arms):
        for coefficient in COEFFICIENTS:
            options = {"method": "sdar", "sdar_coef": coefficient, "curve_every": 0}
            yield Job(setting, f"choice_{coefficient}", CHOICE_SEED, options, "validation")


def arm_jobs(setting: str, arms: Sequence[str], seeds: Sequence[int], output: Path) -> Iterator[Job]:
    """The runs of the arms, by seed; called once those that choose are finished."""
    for seed in seeds:
        for arm in arms:
            options = dict(_options(arm))
            if TUNED.items() <= options.items():
                options["sdar_coef"] = max(choice(setting, output).items(), key=lambda one: one[1])[0]
            values_of_method = METHODS[options["method"]]
            distils = values_of_method["sdar_coef"] > 0 and values_of_method["signal"] == "loss"
            if distils and seed == seeds[0]:  # two more backward passes: one run of each tells
                options["log_grad_share"] = True
            yield Job(setting, arm, seed, options, with_skills=seed == seeds[0])


def _options(arm: str) -> dict[str, Any]:
    return {**ARMS, **ABLATIONS}[arm]


def choice(setting: str, output: Path) -> dict[float, float]:
    """Validation success by coefficient, of those that were tried."""
    jobs = {one: Job(setting, f"choice_{one}", CHOICE_SEED, {}) for one in COEFFICIENTS}
    return {one: job.result(output)["after"] for one, job in jobs.items() if job.finished(output)}


def same_settings(output: Path, common: dict[str, Any]) -> None:
    """Refuse a folder whose runs had other settings: they would not be comparable."""
    path = output / "settings.json"
    if path.exists() and json.loads(path.read_text()) != common:
        sys.exit(f"error: the runs of {output} had other settings, {path.read_text()}. Give another --output.")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(common))


def run_all(jobs: Sequence[Job], output: Path, common: dict[str, Any], at_once: int) -> None:
    """Run what is not finished, each in a process of its own; what a stopped run left is removed first."""

    def run(job: Job) -> None:
        folder = job.folder(output)
        if job.finished(output):
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        options = {**common, **WORLDS[job.setting].options, **job.options, "seed": job.seed}
        told = json.dumps({"options": options, "split": job.split, "with_skills": job.with_skills})
        command = [sys.executable, __file__, "--run", job.setting, str(folder), told]
        with (folder / "log.txt").open("w") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise RuntimeError(f"{job.name} failed; see {folder / 'log.txt'}.")
        print(f"{job.setting}, {job.name}, seed {job.seed}: {job.result(output)['after']:.3f}", flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(run, jobs))


# What came of it


def report(output: Path, plots: Path | None = None) -> dict[str, Any]:
    """Everything that is finished: each run, each arm, and the differences between arms at their common seeds."""
    found: dict[str, Any] = {"worlds": {}, "runs": [], "summary": {}}
    for setting in WORLDS:
        arms: dict[str, Arm] = {}
        for name in ("untrained", *ARMS, *ABLATIONS):
            folders = sorted(path.parent for path in (output / setting / name).glob("seed_*/result.json"))
            runs = sorted((Run.read(folder) for folder in folders), key=lambda run: run.seed)
            if runs:
                arms[name] = Arm(name, runs)
                found["runs"] += [_run(setting, name, run, output) for run in runs]
        trained = {name: arm for name, arm in arms.items() if name != "untrained"}
        if not arms:
            continue
        compared = compare(list(arms.values()))
        for told in compared["arms"].values():
            del told["runs"]
        found["worlds"][setting] = {
            **{name: compared[name] for name in ("panel", "arms")},
            "validation_by_coefficient": {str(one): success for one, success in choice(setting, output).items()},
        }
        for first, arm in trained.items():
            for other, against in trained.items():
                wanted = first != other and (first.startswith("sdar") or other == "grpo")
                if wanted and {run.seed for run in arm.runs} & {run.seed for run in against.runs}:
                    difference = subtract(arm, against).to_dict()
                    found["summary"].setdefault(f"{first}_minus_{other}", {})[setting] = difference
        plotted = [arm for name, arm in trained.items() if name in PLOTTED]
        if plots is not None and plotted:
            plots.mkdir(parents=True, exist_ok=True)
            plot_curves(plotted, plots / f"study_{setting}.png")
    return found


def _run(setting: str, name: str, run: Run, output: Path) -> dict[str, Any]:
    result = json.loads((run.path / "result.json").read_text())
    config = run.run.get("config", {})
    won = "".join(str(int(one)) for one in values([run.records], "success")[0])
    about = {"world": setting, "arm": name, "seed": run.seed, "steps": run.run.get("steps", 0)}
    about |= {"episodes_a_step": config.get("generation_batch_size"), "commit": run.run.get("commit")}
    curve = {step: float(values([records], "success").mean()) for step, (_, records) in run.curve.items()}
    types = {"by_type": by_type(run.records)}
    if (run.path / "panel_with_skills.jsonl").exists():
        types["with_skills_by_type"] = by_type(read_records(run.path / "panel_with_skills.jsonl")[1])
    # `won` is by task id, one try each
    return {**about, **result, **types, "validation": curve, "won": won, "machine": run.run.get("machine")}


def by_type(records: Sequence[Record]) -> dict[str, float]:
    """Success within each task type."""
    types: dict[str, list[float]] = {}
    for record in records:
        types.setdefault(record.task_type, []).append(record.success)
    return {name: sum(won) / len(won) for name, won in sorted(types.items())}


def tables(found: dict[str, Any]) -> str:
    """
    What is in docs/study.md, from a report: all worlds at a glance; of each world, the arms, the differences, and what
    the teacher did in the run in which its gradient was measured.
    """
    overview = _overview(found)
    parts = ["all worlds", _markdown(overview)] if len(overview) > 1 else []
    for world, told in found["worlds"].items():
        of_world = [run for run in found["runs"] if run["world"] == world]
        types = sorted({name for run in of_world for name in run["by_type"]})
        arms = [["arm", "success", "95% interval", "runs", *types]]
        orders = [["arm", "won episode has the higher gap", "pairs", "runs"]]
        teachers = [["arm", "with skills less without", *LOOKED_AT.values()]]
        for name, arm in told["arms"].items():
            interval = "" if arm["ci_low"] is None else f"{arm['ci_low']:.3f} to {arm['ci_high']:.3f}"
            runs = [run for run in of_world if run["arm"] == name]
            kinds = [f"{sum(run['by_type'][kind] for run in runs) / len(runs):.3f}" for kind in types]
            arms.append([name, f"{arm['mean']:.3f}", interval, str(len(arm["seeds"])), *kinds])
            for run in [run for run in runs if "with_skills" in run][:1]:  # of the first seed
                if name == "untrained":
                    kinds = [f"{run['with_skills_by_type'][kind]:.3f}" for kind in types]
                    arms.append(["untrained, with skills", f"{run['with_skills']:.3f}", "", "1", *kinds])
                pairs = [run["logged"].get(metric) for metric in LOOKED_AT]
                cells = ["" if pair is None else " to ".join(_short(one) for one in pair) for pair in pairs]
                teachers.append([name, f"{run['with_skills'] - run['after']:+.3f}", *cells])
            known = [run["gap_order"]["episode"] for run in runs if run.get("gap_order")]
            if known:
                count = sum(one["pairs"] for one in known)
                share = sum(one["share"] * one["pairs"] for one in known) / count
                orders.append([name, f"{share:.3f}", str(count), str(len(known))])
        pairs = [["", "difference", "95% interval", "p over tasks", "p over runs", "seeds"]]
        for pair, by_world in found["summary"].items():
            first, other = pair.split("_minus_")
            if world in by_world and (other == "grpo" or first == "sdar_tuned" or pair == "sdar_minus_grpo_opsd"):
                one = by_world[world]
                tests = ["" if one[p] is None else f"{one[p]:.3f}" for p in ("p_tasks", "p_runs")]
                pairs.append([f"{first} - {other}", *_difference(one), *tests, str(one["seeds"])])
        tried = ", ".join(f"{one}: {success:.3f}" for one, success in told["validation_by_coefficient"].items())
        parts += [f"{world}; validation success by coefficient: {tried or 'not tried'}"]
        parts += [_markdown(rows) for rows in (arms, pairs, teachers, orders) if len(rows) > 1]
    return "\n\n".join(parts)


def _overview(found: dict[str, Any]) -> list[list[str]]:
    """Of each world, what the teacher knows before training and what SDAR made of it."""
    rows = [["world", "teacher's lead", "coefficient", "GRPO", "SDAR", "difference", "95% interval", "seeds"]]
    for world, one in found["summary"].get("sdar_tuned_minus_grpo", {}).items():
        of_world = [run for run in found["runs"] if run["world"] == world]
        [untrained] = [run for run in of_world if run["arm"] == "untrained"]
        grpo, sdar = ({run["seed"]: run for run in of_world if run["arm"] == name} for name in ("grpo", "sdar_tuned"))
        seeds = grpo.keys() & sdar.keys()
        means = [f"{sum(arm[seed]['after'] for seed in seeds) / len(seeds):.3f}" for arm in (grpo, sdar)]
        lead, coefficient = untrained["with_skills"] - untrained["after"], next(iter(sdar.values()))["sdar_coef"]
        rows.append([world, f"{lead:+.3f}", f"{coefficient:g}", *means, *_difference(one), str(one["seeds"])])
    return rows


def _difference(one: dict[str, Any]) -> list[str]:
    return [f"{one['difference']:+.3f}", f"{one['ci_low']:+.3f} to {one['ci_high']:+.3f}"]


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"


def _markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=["questions", "shop", "household"], choices=list(WORLDS))
    parser.add_argument(
        "--arms",
        nargs="+",
        default=list(ARMS),
        choices=[*ARMS, *ABLATIONS, "all"],
        metavar="ARM",
        help=f"Of {', '.join([*ARMS, *ABLATIONS])}; 'all' is all of them.",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="Seeds of the trainings.")
    parser.add_argument("--panel_size", type=int, default=128, help="Tasks of the test panel.")
    parser.add_argument("--steps", type=int, help="Steps of a training; the world's script's if not given.")
    parser.add_argument("--episodes", type=int, help="Episodes of a step; likewise.")
    parser.add_argument("--curve_size", type=int, default=32, help="Validation tasks of the curves.")
    parser.add_argument("--curve_every", type=int, default=12, help="Steps between points of the curves; 0 for none.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at once.")
    parser.add_argument("--output", default="outputs/study", help="Folder of the runs.")
    parser.add_argument("--report", action="store_true", help="Run nothing; report what is finished.")
    parser.add_argument("--quick", action="store_true", help="Two steps, two arms, two seeds: shows that it runs.")
    parser.add_argument("--plots", help="Folder for a picture of each world's curves.")
    parser.add_argument("--json", help="File to write the results to.")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        setting, folder, told = args.run
        sys.path.append(sys.path.pop(0))  # `alfworld` is the package, not the benchmark in this folder
        from study_run import train_one  # which imports torch

        train_one(WORLDS[setting].world, **json.loads(told), folder=Path(folder))
        return
    if args.quick:
        vars(args).update(QUICK, worlds=["questions"], arms=["sdar", "grpo"], seeds=[0, 1])
        args.output = f"{args.output}_quick"
    common: dict[str, Any] = {"disable_tqdm": True}
    common |= {name: getattr(args, name) for name in ("panel_size", "curve_size", "curve_every")}
    common |= {"max_steps": args.steps} if args.steps else {}
    common |= {"per_device_train_batch_size": args.episodes} if args.episodes else {}
    arms = [*ARMS, *ABLATIONS] if "all" in args.arms else args.arms
    output = Path(args.output)
    if not args.report:
        same_settings(output, common)
    for setting in () if args.report else args.worlds:
        run_all(list(first_jobs(setting, arms)), output, common, args.jobs)
        run_all(list(arm_jobs(setting, arms, args.seeds, output)), output, common, args.jobs)
    result = report(output, Path(args.plots) if args.plots else None)
    print(tables(result))
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        written = {**provenance(), "options": {**vars(args), "arms": arms}, **result}
        Path(args.json).write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()

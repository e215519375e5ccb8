"""The model card says what the model is."""

import json

import yaml
from huggingface_hub import ModelCard

from sdar_trl import evaluate_trainer, results_table, summarize
from sdar_trl.evaluation import Panel
from sdar_trl.runs import note_run


def card_of(trainer, tmp_path):
    trainer.create_model_card()
    return (tmp_path / "out" / "README.md").read_text()


def test_the_card_tells_method_options_skills_panel_interval_and_versions(make_trainer, make_config, tasks, tmp_path):
    trainer = make_trainer(make_config(max_steps=1, sdar_coef=0.25, gate_beta=3.0))
    trainer.train()
    panel = Panel("counting", tuple(tasks["task_id"]))
    records = evaluate_trainer(
        trainer, panel.tasks(tasks), path=tmp_path / "out" / "panel_after.jsonl", about={"panel": panel.about()}
    )
    note_run(tmp_path / "out", world="counting")
    card = card_of(trainer, tmp_path)
    for row in (
        "`method` | sdar",
        "`sdar_coef` | 0.25",
        "`gate_beta` | 3.0",
        "`gate` | gap",
        "`episodes of a step` | 4",
    ):
        assert f"| {row} |" in card
    assert "`CountingEnv`" in card and "world `counting`" in card and "| `general` | 4 |" in card
    assert results_table({"after": summarize(records)}) in card and panel.sha256[:12] in card
    versions = json.loads((tmp_path / "out" / "run.json").read_text())["versions"]
    assert f"trl {versions['trl']}" in card


def test_the_card_keeps_trls_metadata_and_citations_and_names_no_folder(make_trainer, make_config, tmp_path):
    trainer = make_trainer(make_config(max_steps=1))
    trainer.create_model_card(model_name="my-agent", tags="mine")
    card = (tmp_path / "out" / "README.md").read_text()
    data = yaml.safe_load(card.split("---")[1])
    assert {"trl", "sdar", "mine"} <= set(data["tags"]) and data["model_name"] == "my-agent"
    assert "# Model card for my-agent" in card and 'model="my-agent"' in card
    assert "arXiv:2605.15155" in card and "vonwerra2020trl" in card
    assert "None" not in card and str(tmp_path.parent) not in card
    assert ModelCard.load(tmp_path / "out" / "README.md").text in card


def test_the_card_of_a_run_without_a_teacher_says_so_and_one_with_a_function_names_it(
    make_trainer, make_config, tmp_path
):
    assert "No skills were read." in card_of(make_trainer(make_config(method="grpo")), tmp_path)

    def what_was_said(episodes):
        return ["advice" for _ in episodes]

    assert "`what_was_said`" in card_of(make_trainer(make_config(), skills=what_was_said), tmp_path)

"""
Train an agent to answer questions with a search engine, with SDAR.

With its defaults, the embedded policy on the embedded questions, on two CPU cores:

    accelerate launch examples/train_search_qa.py

Any model, one GPU, LoRA, on the question files of Search-R1 and a search server (docs/search_qa.md):

    python -m sdar_trl.envs.search_qa.serve --corpus wiki-18.jsonl
    accelerate launch examples/train_search_qa.py --config examples/configs/search_qa_qwen2.5_3b.yaml \
        --data_dir nq_hotpotqa_train --search_url http://127.0.0.1:8000 --use_peft --lora_target_modules all-linear \
        --learning_rate 1e-5 --gradient_accumulation_steps 256

Eight GPUs, full weights, with the published values:

    accelerate launch --config_file examples/accelerate_configs/zero3.yaml examples/train_search_qa.py \
        --config examples/configs/search_qa_qwen2.5_3b.yaml --data_dir nq_hotpotqa_train \
        --search_url http://127.0.0.1:8000

Another method (see sdar_trl/methods.py), such as GRPO alone, into outputs/search_qa_grpo:

    accelerate launch examples/train_search_qa.py --method grpo
"""

from typing import Any

from common import train

from sdar_trl.envs.search_qa import SearchQA


# Defaults where nothing else is given, beside those of common.py: for the embedded policy on two CPU cores.
DEMO: dict[str, Any] = {
    "model_name_or_path": "tiny-search_qa",
    "output_dir": "outputs/search_qa{variant}",
    "max_steps": 60,
    "per_device_train_batch_size": 64,
    "beta": 0.001,
    "temperature": 0.6,  # at 1, the embedded policy misreads most of what it finds
    "sdar_coef": 0.5,  # its teacher answers twice as often
    "invalid_action_penalty": 0.01,
}

if __name__ == "__main__":
    train(SearchQA, DEMO)

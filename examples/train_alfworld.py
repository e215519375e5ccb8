"""
Train an agent in a household with SDAR.

With its defaults, the embedded policy on the embedded games, on two CPU cores:

    accelerate launch examples/train_alfworld.py

Any model, one GPU, LoRA, on the official games (the folder that `alfworld-download --data-dir` was given):

    accelerate launch examples/train_alfworld.py --config examples/configs/alfworld_qwen2.5_3b.yaml \
        --data_dir alfworld_data --use_peft --lora_target_modules all-linear --learning_rate 1e-5 \
        --gradient_accumulation_steps 32

Eight GPUs, full weights, with the published values:

    accelerate launch --config_file examples/accelerate_configs/zero3.yaml examples/train_alfworld.py \
        --config examples/configs/alfworld_qwen2.5_3b.yaml --data_dir alfworld_data

Another method (see sdar_trl/methods.py), such as GRPO alone, into outputs/alfworld_grpo:

    accelerate launch examples/train_alfworld.py --method grpo
"""

from typing import Any

from common import train

from sdar_trl.envs.alfworld import AlfWorld


# Defaults where nothing else is given, beside those of common.py: for the embedded policy on two CPU cores.
DEMO: dict[str, Any] = {
    "model_name_or_path": "tiny-alfworld",
    "output_dir": "outputs/alfworld{variant}",
    "admissible_actions": False,  # the embedded policy has learned what is possible, and reads less
    "max_steps": 44,
    "per_device_train_batch_size": 48,
    "learning_rate": 2e-4,
    "beta": 0.01,
    # a group in which nobody wins would learn from its invalid actions alone, and this policy then stops trying
    "invalid_action_penalty": 0.0,
}

if __name__ == "__main__":
    train(AlfWorld, DEMO)

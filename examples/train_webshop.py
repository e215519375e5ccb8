"""
Train an agent to shop with SDAR.

With its defaults, the embedded policy on the embedded shop, on two CPU cores:

    accelerate launch examples/train_webshop.py

Any model, one GPU, LoRA, on the official files (the folder of `items_shuffle_1000.json` or `items_shuffle.json`):

    accelerate launch examples/train_webshop.py --config examples/configs/webshop_qwen2.5_3b.yaml \
        --data_dir WebShop/data --use_peft --lora_target_modules all-linear --learning_rate 1e-5 \
        --gradient_accumulation_steps 32

Eight GPUs, full weights, with the published values:

    accelerate launch --config_file examples/accelerate_configs/zero3.yaml examples/train_webshop.py \
        --config examples/configs/webshop_qwen2.5_3b.yaml --data_dir WebShop/data

Another method (see sdar_trl/methods.py), such as GRPO alone, into outputs/demo_grpo:

    accelerate launch examples/train_webshop.py --method grpo

The task and the last two turns as the prompt of each turn, as the published runs have it, into outputs/demo_window:

    accelerate launch examples/train_webshop.py --history window --history_window 2
"""

from typing import Any

from common import train

from sdar_trl.envs.webshop import WebShop


# Defaults where nothing else is given, beside those of common.py: for the embedded policy on two CPU cores.
DEMO: dict[str, Any] = {
    "model_name_or_path": "tiny",
    "output_dir": "outputs/demo{variant}",
    "max_steps": 28,
    "per_device_train_batch_size": 48,
    "beta": 0.01,
    "save_episodes_every": 7,
}

if __name__ == "__main__":
    train(WebShop, DEMO)

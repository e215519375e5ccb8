"""
Memory of a GPU that weights, gradients and optimizer states take, computed, for a 3B and a 7B model.

    python benchmarks/memory.py --json benchmarks/results/memory.json

By DeepSpeed's own estimators for ZeRO (mixed precision, Adam). The other rows count bytes as those do: 2 for a weight,
18 for one that is trained. Activations, the rollout's KV cache and a reference model (2 bytes a weight, with `beta`
above 0 and without LoRA) come on top. The teacher takes none: it is the same weights.
"""

import argparse
from typing import Any

import torch
from common import table, write_json
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM


# shapes of Qwen2.5-3B and 7B
MODELS = {
    "3B": {
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11_008,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18_944,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
}


def main() -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="The same: nothing here takes long.")
    parser.add_argument("--json", help="File to write the results to.")
    args = parser.parse_args()
    gigabyte = 1e9
    rows: list[dict[str, Any]] = []
    for name, shape in MODELS.items():
        with torch.device("meta"):
            model = Qwen2ForCausalLM(Qwen2Config(**shape))
            total = sum(p.numel() for p in model.parameters())
            largest = max(sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules())
            adapter = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
            trained = sum(p.numel() for p in adapter.parameters() if p.requires_grad)

        def add(setting: str, gpus: int, gpu: float, cpu: float = 0.0, name: str = name, total: int = total) -> None:
            rows.append(
                {
                    "model": f"{name} ({total / 1e9:.2f} billion weights)",
                    "setting": setting,
                    "GPUs": gpus,
                    "GB a GPU": round(gpu / gigabyte, 1),
                    "GB of CPU memory": round(cpu / gigabyte, 1),
                }
            )

        add(f"LoRA, rank 16 ({trained / 1e6:.0f} million trained)", 1, 2 * total + 18 * trained)
        add("full, one GPU or DDP", 1, 18 * total)
        for gpus in (2, 8):
            cpu, gpu = zero2(total, num_gpus_per_node=gpus, cpu_offload=False)
            add("full, ZeRO-2", gpus, gpu)
            cpu, gpu, _ = zero3(total, largest, num_gpus_per_node=gpus, cpu_offload=False, cpu_offload_params=False)
            add("full, ZeRO-3", gpus, gpu)
            cpu, gpu, _ = zero3(total, largest, num_gpus_per_node=gpus, cpu_offload=True, cpu_offload_params=True)
            add("full, ZeRO-3 with offload", gpus, gpu, cpu)
    print(table(rows))
    summary = {f"{row['model'][:2]}, {row['setting']}, {row['GPUs']} GPUs": row["GB a GPU"] for row in rows}
    write_json(args.json, {"rows": rows, "summary": summary})


if __name__ == "__main__":
    main()

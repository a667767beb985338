#!/bin/bash
# The paper's distillation on two machines of eight GPUs without SLURM. On both machines, with the first one's address:
# scripts/torchrun_two_nodes.sh ADDRESS[:PORT] [further options of vlkd-pl fit]
set -euo pipefail
endpoint=${1:?give the address of the first machine, for instance node1:29500}
shift
num_nodes=${NUM_NODES:-2}
num_gpus=${NUM_GPUS:-8}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

# 36 pairs × 16 GPUs are the paper's 576 pairs in one batch, where 8 GPUs accumulate two
torchrun --nnodes "$num_nodes" --nproc-per-node "$num_gpus" \
    --rdzv-id vlkd --rdzv-backend c10d --rdzv-endpoint "$endpoint" \
    -m vlkd_pl fit --config configs/distill.yaml --config configs/overlays/ddp.yaml --ckpt_path last \
    --trainer.num_nodes "$num_nodes" --trainer.devices "$num_gpus" \
    --trainer.accumulate_grad_batches 1 --trainer.val_check_interval 10000 "$@"

#!/bin/bash
# The paper's distillation on two nodes of eight GPUs: sbatch scripts/slurm_two_nodes.sh [further options of vlkd-pl fit]
#SBATCH --job-name=vlkd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8     # one task for each GPU: Lightning takes ranks and addresses from SLURM
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6       # 4 workers and the process itself
#SBATCH --signal=SIGUSR1@120    # two minutes before the time is up: Lightning saves and asks for another turn
#SBATCH --requeue
#SBATCH --time=24:00:00
set -euo pipefail
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

# 36 pairs × 16 GPUs are the paper's 576 pairs in one batch, where 8 GPUs accumulate two
srun vlkd-pl fit --config configs/distill.yaml --config configs/overlays/ddp.yaml --ckpt_path last \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" \
    --trainer.accumulate_grad_batches 1 --trainer.val_check_interval 10000 "$@"
